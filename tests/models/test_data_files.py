"""Data sets on disk: image folders, npz, IDX and torchvision's layouts, and the user's own factories."""

import gzip
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fineprune.common.errors import RunError, UsageError
from fineprune.models.data import ImageData, builtin, load_data
from fineprune.models.data.decode import Plan, choose_plan
from fineprune.models.data.files import Header, open_file
from fineprune.models.data.raw import Reading
from fineprune.models.vision import import_torchvision
from fineprune.models.zoo import build, load_checkpoint
from support.image_files import write_images


def test_image_folder_in_memory(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 10, "ant": 12}, seed=1)
    write_images(tmp_path / "test", {"ant": 2, "cat": 3}, seed=2)
    data = load_data(f"imagefolder:{tmp_path}", validation=0.25, mean=[0], std=[1])
    assert data.classes == ("ant", "cat") and data.input_shape == (3, 6, 9)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 6, 5)
    batch = next(data.test.batches(5))
    assert batch.labels.tolist() == [0, 0, 1, 1, 1]
    with Image.open(tmp_path / "test" / "cat" / "001.png") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(batch.images[3], expected)


def test_image_folder_with_a_validation_part(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        write_images(tmp_path / part, {"a": count, "b": count})
    data = load_data(f"imagefolder:{tmp_path}", validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 6, 4)


def test_image_folder_with_train_and_val_only_tests_on_val(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 3)):
        write_images(tmp_path / part, {"a": count, "b": count})
    data = load_data(f"imagefolder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)


def test_image_folder_without_parts_is_divided(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 20, "b": 30})
    data = load_data(f"imagefolder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert data.test.labels.bincount().tolist() == [4, 6]


def test_large_images_are_read_sample_by_sample(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 15, "b": 15}, size=(120, 150))
    data = load_data(f"imagefolder:{tmp_path}", validation=0)
    assert data.input_shape == (3, 224, 224) and str(data.augmentation) == "resized crop + flip"
    args = {"generator": torch.Generator().manual_seed(3), "augment": True}
    alone, threaded = (list(data.train.batches(5, workers=workers, **args)) for workers in (0, 3))
    resumed = list(data.train.batches(5, workers=2, start_batch=2, **args))
    assert len(alone) == 5 and alone[0].images.shape == (5, 3, 224, 224)
    for a, b in zip(alone + alone[2:], threaded + resumed, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    plain = next(data.train.batches(5, indices=alone[0].indices))
    assert not torch.equal(plain.images, alone[0].images)


def test_evaluation_crop_is_central(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        pixels = np.zeros((256, 400, 3), np.uint8)
        pixels[16:240, 88:312] = 200  # the central 224x224
        Image.fromarray(pixels).save(tmp_path / part / "a" / "0.png")
    image = next(load_data(f"imagefolder:{tmp_path}", mean=[0], std=[1]).test.batches(1)).images
    torch.testing.assert_close(image, torch.full((1, 3, 224, 224), 200 / 255))


def test_asked_size_goes_before_the_images_own(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 5, "b": 5}, size=(120, 150))
    assert load_data(f"imagefolder:{tmp_path}", image_size=16).input_shape == (3, 16, 16)
    assert load_data(f"imagefolder:{tmp_path}", image_size=128).input_shape == (3, 128, 128)


def test_plan_counts_memory() -> None:
    def plan(total: int) -> Plan:
        return choose_plan(lambda i: Header((32, 24), "RGB"), 10, total, Reading(), "here")

    assert plan(10_000).in_memory and plan(10).size == (24, 32)
    assert not plan(10_000_000).in_memory


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (8, 8)).save(tmp_path / "a" / f"{mode}.{suffix}")
    palette = Image.new("P", (8, 8))
    palette.save(tmp_path / "a" / "clear.png", transparency=b"\x00" * 5)
    assert all(open_file(path).mode == "RGB" for path in (tmp_path / "a").iterdir())
    assert next(load_data(f"imagefolder:{tmp_path}").test.batches(1)).images.shape == (1, 3, 8, 8)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 6})
    broken = tmp_path / "a" / "003.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = load_data(f"imagefolder:{tmp_path}")
    with pytest.raises(RunError, match=r"cannot read the image .*003.png .*; replace or remove it"):
        everything(data)


def everything(data: ImageData, workers: int = 0) -> None:
    for split in (data.train, data.validation, data.test):
        list(split.batches(8, workers=workers))


def test_a_truncated_large_image_is_named_by_worker_threads(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 6}, size=(120, 120), suffix=".jpg")
    broken = tmp_path / "a" / "003.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(RunError, match=r"cannot read the image .*003.jpg"):
        everything(load_data(f"imagefolder:{tmp_path}", image_size=100), workers=2)


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no images in class folders"):
        load_data(f"imagefolder:{tmp_path}")
    write_images(tmp_path / "train", {"a": 2, "b": 0})
    with pytest.raises(RunError, match=r"train/b holds no images .*remove the class folder or fill it"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "train" / "b").rmdir()
    write_images(tmp_path / "test", {"zebra": 1})
    with pytest.raises(RunError, match="test has classes that the training part has not: zebra"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "test" / "zebra").rename(tmp_path / "test" / ".hidden")
    with pytest.raises(RunError, match="test holds no images"):
        load_data(f"imagefolder:{tmp_path}")


def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), np.arange(count) % 2


def test_npz_parts_and_class_names(tmp_path: Path) -> None:
    (x, y), (tx, ty), (vx, vy) = arrays(10), arrays(4), arrays(3)
    names = np.array(["ant", "bee"])
    path = tmp_path / "d.npz"
    np.savez(path, train_images=x, train_labels=y, test_images=tx, test_labels=ty, val_images=vx, val_labels=vy, class_names=names)
    data = load_data(f"npz:{path}", mean=[0], std=[1])
    assert data.name == "d" and data.classes == ("ant", "bee")
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 3, 4)
    torch.testing.assert_close(next(data.test.batches(4)).images, torch.from_numpy(tx).permute(0, 3, 1, 2) / 255)
    assert load_data(f"npz:{path}", image_size=16).input_shape == (3, 16, 16)


def test_npz_of_one_part_is_divided(tmp_path: Path) -> None:
    x, y = arrays(20)
    np.savez(tmp_path / "d.npz", images=x, labels=y)
    data = load_data(f"npz:{tmp_path}/d.npz")
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)


def test_npz_that_cannot_serve(tmp_path: Path) -> None:
    x, y = arrays(10)
    path = tmp_path / "d.npz"
    np.savez(path, pictures=x, labels=y)
    with pytest.raises(RunError, match=r"d.npz holds pictures, labels; expected train_images and train_labels"):
        load_data(f"npz:{path}")
    np.savez(path, images=x, labels=y[:5])
    with pytest.raises(RunError, match="10 images but 5 labels"):
        load_data(f"npz:{path}")
    np.savez(path, images=np.array([{}, []], dtype=object), labels=y[:2])
    with pytest.raises(RunError, match="holds Python objects, which are not loaded"):
        load_data(f"npz:{path}")
    np.savez(path, images=x, labels=y)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RunError, match=r"d.npz is truncated or not an npz file"):
        load_data(f"npz:{path}")
    np.save(tmp_path / "one.npy", x)
    with pytest.raises(RunError, match="it is a single array; save images and labels together"):
        load_data(f"npz:{tmp_path}/one.npy")
    path.write_bytes(b"")
    with pytest.raises(RunError, match=r"d.npz is truncated or not an npz file"):
        load_data(f"npz:{path}")


def write_idx(path: Path, values: np.ndarray) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, suffix: str) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    for name, values in zip(("train-images-idx3", "train-labels-idx1"), (images, np.arange(20) % 10), strict=True):
        write_idx(folder / f"{name}-ubyte{suffix}", values)
    for name, values in zip(("t10k-images-idx3", "t10k-labels-idx1"), (images[:5], np.arange(5)), strict=True):
        write_idx(folder / f"{name}-ubyte{suffix}", values)
    return images


@pytest.mark.parametrize(("place", "suffix"), [("", ".gz"), ("", ""), ("FashionMNIST/raw", ""), ("FashionMNIST/raw", ".gz")])
def test_fashion_mnist_in_debian_and_torchvision_layout(tmp_path: Path, place: str, suffix: str) -> None:
    images = write_fashion(tmp_path / place, suffix)
    data = load_data(f"fashion-mnist:{tmp_path}", mean=[0], std=[1])
    assert data.input_shape == (1, 28, 28) and data.classes[9] == "Ankle boot"
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 5)
    torch.testing.assert_close(next(data.test.batches(5)).images[:, 0], torch.tensor(images[:5] / 255, dtype=torch.float32))
    assert load_data(f"fashion-mnist:{tmp_path}", image_size=32).input_shape == (1, 32, 32)


def test_broken_idx_files_are_named(tmp_path: Path) -> None:
    write_fashion(tmp_path, ".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:1000], b"x" * 100, gzip.compress(gzip.decompress(whole)[:-1])):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"t10k-images-idx3-ubyte.gz is truncated or not an IDX file"):
            load_data(f"fashion-mnist:{tmp_path}")
    path.unlink()
    with pytest.raises(RunError, match="holds no t10k-images-idx3-ubyte"):
        load_data(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize(("name", "label_key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_in_torchvision_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, label_key: str) -> None:
    dataset = getattr(import_torchvision().datasets, name.upper())
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    content = {"data": np.arange(4 * 3072).reshape(4, 3072).astype(np.uint8), label_key: [0, 1, 2, 3]}
    for file in [entry[0] for entry in dataset.train_list + dataset.test_list]:
        (folder / file).write_bytes(pickle.dumps(content))
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: ["ant", "bee", "cat", "dog"]}))
    monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
    monkeypatch.setitem(dataset.meta, "md5", None)
    data = load_data(f"{name}:{tmp_path}", mean=[0], std=[1], validation=0)
    assert data.classes == ("ant", "bee", "cat", "dog") and data.input_shape == (3, 32, 32) and len(data.test) == 4
    batch = next(data.test.batches(4))
    assert batch.labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(batch.images[1].flatten(), torch.from_numpy(content["data"][1]) / 255)


@pytest.mark.parametrize("spec", ["cifar10", "cifar100", "fashion-mnist"])
def test_a_failed_download_says_where_to_put_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    datasets = import_torchvision().datasets
    for dataset in (datasets.CIFAR10, datasets.FashionMNIST):

        def offline(self: object) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr(dataset, "download", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(builtin, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(RunError, match=r"is not in .*fineprune/data and cannot be downloaded \(no route to host\); give the folder"):
        load_data(spec)


USER_FILE = """
import io

import numpy as np
import torch
from PIL import Image
from fineprune.models.data import data_from_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3

class Pictures:
    classes = ["a", "b", "c"]
    def __len__(self):
        return 12
    def __getitem__(self, i):
        return Image.fromarray(IMAGES[i]), int(LABELS[i])

class Tensors(Pictures):
    targets = LABELS.tolist()
    def __getitem__(self, i):
        return torch.full((2, 5, 7), float(i)), self.targets[i]

class Bytes(Tensors):
    def __getitem__(self, i):
        return torch.from_numpy(IMAGES[i]).permute(2, 0, 1).float(), self.targets[i]

class Fails(Pictures):
    targets = LABELS.tolist()
    def __getitem__(self, i):
        if i == 3:
            raise KeyError("lost")
        return super().__getitem__(i)

class Empty(Pictures):
    def __len__(self):
        return 0

class Deep(Pictures):
    def __getitem__(self, i):
        return Image.fromarray(IMAGES[i, ..., 0].astype(np.uint16) * 257), int(LABELS[i])

class Ragged(Pictures):
    targets = [[0], [1, 2]]

class Odd(Pictures):
    def __init__(self, image):
        self.image = image
    def __getitem__(self, i):
        return self.image, int(LABELS[i])

class Endless(Pictures):
    def __len__(self):
        raise NotImplementedError("endless")

class Sparse(Pictures):
    classes = None
    targets = [0, 500] * 6

def deep(): return Deep(), Deep()
def ragged(): return Ragged(), Pictures()
def five(): return Odd(np.zeros((4, 4, 5), np.uint8)), Pictures()
def wide(): return Odd(torch.zeros(4, 4, dtype=torch.int32)), Pictures()
def cut():
    stream = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(stream, "PNG")
    return Odd(Image.open(io.BytesIO(stream.getvalue()[:80]))), Pictures()
def void(): return Odd(Image.new("RGB", (0, 4))), Pictures()
def endless(): return Pictures(), Endless()
def sparse(): return Sparse(), Sparse()
def arrays(): return (IMAGES, LABELS), (IMAGES[:4], LABELS[:4])
def whole(): return data_from_arrays("mine", (IMAGES, LABELS), validation=0.5)
def pictures(): return Pictures(), Pictures()
def tensors(): return Tensors(), Tensors(), Tensors()
def floats(): return Bytes(), Bytes()
def fails(): return Fails(), Pictures()
def empty(): return Empty(), Pictures()
def mixed(): return (IMAGES, LABELS), Pictures()
def number(): return 7
def needs(x): return x
"""


@pytest.fixture
def user_file(tmp_path: Path) -> str:
    (tmp_path / "mydata.py").write_text(USER_FILE)
    return f"{tmp_path}/mydata.py"


def test_users_arrays(user_file: str) -> None:
    data = load_data(f"{user_file}:arrays", validation=0.25)
    assert data.spec == f"{user_file}:arrays"
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 4) and data.classes == ("0", "1", "2")


def test_users_image_data(user_file: str) -> None:
    data = load_data(f"{user_file}:whole")
    assert isinstance(data, ImageData) and data.name == "mine" and data.spec == f"{user_file}:whole" and data.validation_fraction == 0.5
    assert load_data(data.spec, mean=data.mean, std=data.std).mean == data.mean
    with pytest.raises(UsageError, match="returns a finished ImageData; set image_size and std in the factory"):
        load_data(data.spec, image_size=16, std=[1])


def test_users_picture_dataset_is_treated_as_a_folder(user_file: str) -> None:
    data = load_data(f"{user_file}:pictures", validation=0)
    assert data.classes == ("a", "b", "c") and data.input_shape == (3, 8, 8) and data.augmentation.flip
    same = load_data(f"{user_file}:arrays", validation=0)
    assert torch.equal(next(data.train.batches(12)).images, next(same.train.batches(12)).images)
    assert torch.equal(data.train.labels, same.train.labels)


def test_users_tensors_are_taken_as_prepared(user_file: str) -> None:
    data = load_data(f"{user_file}:tensors")
    assert data.input_shape == (2, 5, 7) and (len(data.validation), len(data.test)) == (12, 12)
    assert data.notes == ()
    batch = next(data.train.batches(4, generator=torch.Generator().manual_seed(0), augment=True, workers=2))
    assert torch.equal(batch.images[:, 1, 4, 6], batch.indices.float())


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("empty", RunError, r"mydata.py:empty \(train\): the data set is empty"),
        ("mixed", UsageError, "train is neither .* all parts have the same form"),
        ("number", UsageError, "returned int; return an ImageData"),
        ("ragged", RunError, r"ragged \(train\): labels is no array"),
        ("five", RunError, r"sample 0 is an array of uint8 \(4, 4, 5\); expected uint8 \[H,W\] or \[H,W,C\] with 1, 3 or 4 channels"),
        ("wide", RunError, r"sample 0 is an array of int32 \(4, 4\)"),
        ("void", RunError, r"sample 0 has no pixels \(0x4\)"),
        ("endless", RunError, r"endless \(test\): its length failed: NotImplementedError: endless"),
        ("sparse", RunError, "labels go up to 500, but only 2 of them occur"),
        ("needs", UsageError, "missing a required argument: 'x'"),
        ("nothing", UsageError, "no callable named 'nothing'"),
    ],
)
def test_users_mistakes(user_file: str, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(f"{user_file}:{name}")


def test_users_prepared_tensors_of_whole_numbers_are_said(user_file: str) -> None:
    assert "are they normalised? Nothing is done to them" in load_data(f"{user_file}:floats").notes[0]


def test_users_deep_pictures_are_scaled(user_file: str) -> None:
    deep = load_data(f"{user_file}:deep", mean=[0], std=[1], validation=0)
    assert deep.white == 65535
    plain = load_data(f"{user_file}:pictures", mean=[0], std=[1], validation=0)
    torch.testing.assert_close(next(deep.train.batches(12)).images[:, 0], next(plain.train.batches(12)).images[:, 0])


def test_users_picture_that_cannot_be_decoded_is_numbered(user_file: str) -> None:
    with pytest.raises(RunError, match=r"cannot read .*cut: sample \d+ \(.+\); replace or remove it"):
        list(load_data(f"{user_file}:cut").train.batches(4))


def test_users_failing_sample_is_numbered(user_file: str) -> None:
    with pytest.raises(RunError, match=r"sample 3 failed: KeyError: 'lost' \(.*mydata.py, line \d+\)"):
        list(load_data(f"{user_file}:fails").train.batches(4))


def real(name: str) -> Path:
    path = Path(os.environ.get("FINEPRUNE_DATA", ""), name)
    if not os.environ.get("FINEPRUNE_DATA") or not path.exists():
        pytest.skip(f"FINEPRUNE_DATA does not point to a folder with {name}")
    return path


def public_resnet20_accuracy(data: ImageData) -> float:
    model = build("resnet20", shortcut="A")
    load_checkpoint(model, real("checkpoints/resnet20-12fca82f.th"))
    model.eval()
    with torch.inference_mode():
        correct = sum(int((model(b.images).argmax(1) == b.labels).sum()) for b in data.test.batches(500))
    return correct / len(data.test)


@pytest.mark.realdata
def test_public_checkpoint_on_lossless_images() -> None:
    data = load_data(f"npz:{real('cifar10_lossless_partial.npz')}")
    assert data.classes[0] == "airplane" and len(data.test) == 200
    assert public_resnet20_accuracy(data) == pytest.approx(0.9, abs=1e-9)


@pytest.mark.realdata
@pytest.mark.slow
def test_public_checkpoint_on_jpeg_images(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("cifar10-jpeg")
    with tarfile.open(real("cifar10_jpeg.tar.xz")) as archive:
        archive.extractall(root, filter="data")
    data = load_data(f"imagefolder:{root}")
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert public_resnet20_accuracy(data) == pytest.approx(0.8103, abs=0.001)
