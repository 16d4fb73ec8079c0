"""Names of folders, files of labels, and the number and order of classes: understood with a line that says so, or refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fineprune.common.errors import RunError, UsageError
from fineprune.models.data import ImageData, data_from_arrays, load_data
from fineprune.networks import load_arguments
from support.image_files import Lines, write_images

COUNTS = {"cat": 3, "dog": 3}


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


@pytest.mark.parametrize(
    ("parts", "expected", "said"),
    [
        (("train", "val", "test"), (10, 6, 4), None),
        (("train", "valid", "test"), (10, 6, 4), "validation from valid/"),
        (("TRAIN", "Validation", "Testing"), (10, 6, 4), "validation from Validation/"),
        (("train", "val"), (9, 1, 6), "val/ is the test part, for there is no test/"),
        (("training", "Valid"), (9, 1, 6), "Valid/ is the test part"),
    ],
)
def test_parts_by_the_names_that_people_give_them(tmp_path: Path, parts: tuple[str, ...], expected: tuple, said: str | None) -> None:
    for part, count in zip(parts, (5, 3, 2), strict=False):
        write_images(tmp_path / part, {"cat": count, "dog": count})
    log = Lines()
    data = load_data(f"imagefolder:{tmp_path}", progress=log)
    assert data.classes == ("cat", "dog") and sizes(data) == expected
    assert (not log.lines) if said is None else said in log.lines[0]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "val", "valid"), "has val and valid, which both name the validation part"),
        (("train", "Train"), "has Train and train, which both name the train part"),
        (("train", "holdout"), "has train and holdout, which holds cat, dog too, but no part is called so; rename it"),
        (("test", "val"), "has test, val but no train folder"),
        (("fold1", "fold2"), "fold1, fold2 hold no images but the same folders cat, dog"),
        (("photos/train", "photos/test"), "holds only the folder photos, and that holds test, train; give .*photos as ROOT"),
    ],
)
def test_folders_that_can_be_read_in_two_ways_are_refused(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    for name in folders:
        write_images(tmp_path / name, COUNTS)
    with pytest.raises(RunError, match=message):
        load_data(f"imagefolder:{tmp_path}")


def test_parts_inside_classes_are_refused(tmp_path: Path) -> None:
    for label in COUNTS:
        write_images(tmp_path / label, {"train": 2})
    with pytest.raises(RunError, match="cat, dog hold no images but the same folders train"):
        load_data(f"imagefolder:{tmp_path}")


def test_one_folder_inside_every_class_is_read(tmp_path: Path) -> None:
    for label in COUNTS:
        write_images(tmp_path / label, {"images": 5})  # as Tiny ImageNet has it
    assert load_data(f"imagefolder:{tmp_path}").classes == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_images(tmp_path, {"bus": 5, "train": 5})
    assert load_data(f"imagefolder:{tmp_path}").classes == ("bus", "train")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / part, {"1": 5, "10": 5, "2": 5})
    write_images(tmp_path / "unlabelled", {"more": 2})
    Image.new("RGB", (9, 6)).save(tmp_path / "train" / "loose.png")
    for name in ("a.GIF", "b.gif", "c.npy", "notes.txt", ".d.gif"):
        (tmp_path / "train" / "10" / name).touch()
    log = Lines()
    load_data(f"imagefolder:{tmp_path}", progress=log)
    for said in (
        "unlabelled/ is left out (it has none of the classes of train/)",
        "1 images outside class folders are left out",
        "left out: 2 .gif, 1 .npy",
        "class folders are numbers but sorted as text",
    ):
        assert said in log.lines[0]


def test_every_class_keeps_an_image_to_train_on(tmp_path: Path) -> None:
    log = Lines()
    write_images(tmp_path, {f"{i:02}": 1 for i in range(20)})
    data = load_data(f"imagefolder:{tmp_path}", progress=log)
    assert sizes(data) == (20, 0, 0) and data.train.labels.tolist() == list(range(20))
    assert "no image is left for test and validation: classes have a single one" in log.lines[0]
    images, labels = np.zeros((30, 4, 4), np.uint8), np.concatenate([np.arange(20), np.zeros(10, int)])
    mixed = data_from_arrays("mixed", (images, labels), progress=log)
    assert mixed.train.labels.unique().tolist() == list(range(20)) and 0 < len(mixed.test) < 6
    assert "test is smaller than asked, for classes of a single image keep it" in log.lines[1]


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        ([1, 2, 3, 4], None, "no image to train on for 1 of 5 classes: 0"),
        ([0, 1, 2, 4], None, "no image to train on for 1 of 5 classes: 3"),
        ([0, 3, 7, 99], "labels go up to 99, but only 4 of them occur; number the classes from 0 to 3, or give classes=", ""),
        ([0, 1, 2, 10**6], "labels go up to 1000000, but only 4", ""),
        ([0, 1, 2, 2**62], "labels go up to 4611686018427387904", ""),
        ([0, 1, 2, 2**63], "labels go up to 9223372036854775808; number the classes from 0", ""),
    ],
)
def test_labels_with_gaps(labels: list[int], error: str | None, said: str) -> None:
    arrays = np.zeros((40, 4, 4, 3), np.uint8), np.array(labels, dtype=np.uint64)[np.arange(40) % 4]
    log = Lines()
    if error is not None:
        with pytest.raises(RunError, match=error):
            data_from_arrays("d", arrays)
        return
    assert len(data_from_arrays("d", arrays, progress=log).classes) == 5 and said in log.lines[0]


def test_labels_with_gaps_and_given_classes() -> None:
    arrays = np.zeros((40, 4, 4, 3), np.uint8), np.array([0, 3, 7, 99])[np.arange(40) % 4]
    data = data_from_arrays("d", arrays, classes=100)
    assert len(data.classes) == 100 and data.train.labels.unique().tolist() == [0, 3, 7, 99]
    with pytest.raises(UsageError, match="50 class names, but labels go up to 99"):
        data_from_arrays("d", arrays, classes=50)
    with pytest.raises(UsageError, match="classes is at least 1 and at most 1,000,000, got 0"):
        data_from_arrays("d", arrays, classes=0)


WANTED = ["n02 is no id", "n00000003 zebra", "n00000001 ant", "crane", "n00000002 bee", "crane"]
FILES = {
    "classes.txt": "\n".join(WANTED) + "\n",
    "classes.json": json.dumps(WANTED),
    "index.json": json.dumps({str(i): name for i, name in enumerate(WANTED)}),
    "pairs.json": json.dumps({str(i): name.split(maxsplit=1) for i, name in enumerate(WANTED)}),
}


@pytest.mark.parametrize("file", FILES)
def test_some_classes_of_a_list_keep_its_order(tmp_path: Path, file: str) -> None:
    write_images(tmp_path / "d", {"n00000001_ant": 5, "n00000002": 5, "n00000003": 5})
    (tmp_path / file).write_text(FILES[file])
    data = load_data(f"imagefolder:{tmp_path}/d", classes=tmp_path / file)
    assert len(data.classes) == 6 and data.train.labels.unique().tolist() == [1, 2, 4]
    again = load_data(**load_arguments(data.to_json()))
    assert again.classes == data.classes and torch.equal(again.train.labels, data.train.labels)
    assert "n00000003" in data.classes[1]


def test_classes_that_only_another_part_has(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 5})
    write_images(tmp_path / "test", {"a": 2, "b": 2})
    data = load_data(f"imagefolder:{tmp_path}", classes=["b", "a", "c"])
    assert data.train.labels.unique().tolist() == [1] and data.test.labels.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds 0 class names"),
        ("cat\nsheep\n", "classes lacks dog of .*; the names must agree"),
        ("cat\ndogs\n", "classes lacks dog of .*; did you mean dogs"),
        ('{"0": "cat", "2": "dog"}', "classes lacks cat, dog"),  # a text file: one name
    ],
)
def test_lists_of_classes_that_cannot_serve(tmp_path: Path, content: str, message: str) -> None:
    write_images(tmp_path / "d", COUNTS)
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(UsageError, match=message):
        load_data(f"imagefolder:{tmp_path}/d", classes=str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("content", ['{"0": "cat", "2": "dog"}', "[1, 2]", "[" * 100_000, "7", "{", '[["cat", 1]]', "\ud800"])
def test_broken_json_lists_of_classes(tmp_path: Path, content: str) -> None:
    path = tmp_path / "classes.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match=r"classes.json is no list of class names"):
        load_data("digits", classes=str(path))


def test_a_number_says_no_place_of_named_classes(tmp_path: Path) -> None:
    write_images(tmp_path, COUNTS)
    with pytest.raises(UsageError, match="classes=1000: a number does not say the place of the 2 named classes"):
        load_data(f"imagefolder:{tmp_path}", classes="1000")
    with pytest.raises(UsageError, match=r"the file 10x does not exist"):
        load_data("digits", classes="10x")


def test_flat_files_with_imagenets_ids(tmp_path: Path) -> None:
    for name in ("n00000002_bee.png", "n00000001_ant.png", "n00000002_bee_2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    data = load_data(f"imagefolder:{tmp_path}", validation=0)
    assert data.classes == ("n00000001", "n00000002") and data.train.labels.bincount().tolist() == [1, 1]
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(RunError, match="holds no images in class folders"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\nx/000.png,cat\nx/001.png,cat\nx/002.png,dog\n"),
        ("labels.csv", "000,cat,extra\r\n001,cat,extra\r\n002,dog,extra\r\n"),
        ("labels.tsv", "000.png\tcat\n001.png\tcat\n\n002.png\tdog\n"),
        ("labels.txt", "x/000.png cat\nx/001.png cat\nx/002.png dog\n"),
        ("labels.csv", "image;label\nx\\000.png;0\nx\\001.png;0\nx\\002.png;1\n"),
    ],
)
def test_a_file_of_labels(tmp_path: Path, name: str, text: str) -> None:
    write_images(tmp_path, {"x": 4})
    (tmp_path / name).write_text(text)
    log = Lines()
    data = load_data(f"imagefolder:{tmp_path}", labels=name, validation=0, progress=log)
    assert sorted([*data.train.labels.tolist(), *data.test.labels.tolist()]) == [0, 0, 1]
    assert data.classes in {("cat", "dog"), ("0", "1")} and f"1 images have no line in {name}" in log.lines[0]
    assert torch.equal(load_data(**load_arguments(data.to_json())).train.labels, data.train.labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000.png,cat\nlost.png,dog\n", r"labels.csv, line 2: expected the path of an image below .* got lost.png,dog"),
        ("000.png,cat\n001.png,\n", "line 2: expected the path"),
        ("/etc/passwd,cat\n../x.png,dog\n", "line 2: expected the path"),
        ("000.png,1000000000\n", "labels go up to 1000000000, but only 1"),
        ("", "names no image below"),
    ],
)
def test_files_of_labels_that_cannot_serve(tmp_path: Path, text: str, message: str) -> None:
    write_images(tmp_path, {"x": 3})
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(RunError, match=message):
        load_data(f"imagefolder:{tmp_path}", labels=tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 1.0, "labels": "x"}, "crop and labels cannot be set for digits; leave them out"),
        ({"crop": 2}, r"crop is the part of the shorter side that is kept, in \(0,1\], got 2"),
        ({"crop": "all"}, "crop is the part of the shorter side that is kept, .* got 'all'"),
        ({"channels": 4}, r"channels is 1 \(grey\) or 3"),
        ({"white": float("inf")}, "white is a number above 0, got inf"),
        ({"seed": -1}, "seed is a whole number of at least 0, got -1"),
        ({"validation": "most"}, r"validation is a fraction in \[0,1\), got 'most'"),
        ({"image_size": 9999}, "image_size is at least 1 pixel and at most 8192, got 9999"),
        ({"image_size": 32.5}, "image_size is at least 1 pixel and at most 8192, got 32.5"),
        ({"mean": 0.5}, "mean is one number per channel, got 0.5"),
        ({"std": ["x"]}, r"std is one number per channel, got \['x'\]"),
        ({"classes": 3.5}, "classes is a list of names, a file of them, or their number, got 3.5"),
        ({"classes": True}, "classes is a list of names, .* got True"),
        ({"classes": [None]}, r"classes is a list of names, .* got \[None\]"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data("digits", **arguments)


def test_grey_and_colour_by_choice(tmp_path: Path) -> None:
    colour = load_data("digits", channels=3)
    grey = load_data("digits")
    assert colour.input_shape == (3, 32, 32) and colour.mean == grey.mean * 3 and colour.to_json()["channels"] == 3
    assert torch.equal(next(colour.test.batches(4)).images[:, 2:], next(grey.test.batches(4)).images)
    write_images(tmp_path, COUNTS)
    data = load_data(f"imagefolder:{tmp_path}", channels=1, mean=[0], std=[1], validation=0)
    assert data.input_shape == (1, 6, 9)
    batch, coloured = (next(d.train.batches(1)).images for d in (data, load_data(data.spec, mean=[0], std=[1], validation=0)))
    expected = (coloured * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(batch, expected, atol=0.6 / 255, rtol=0)
    assert load_data(**load_arguments(data.to_json())).input_shape == (1, 6, 9)
