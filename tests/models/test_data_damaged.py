"""Damaged and hostile files of data: one clear line each, and their sizes are bounded before memory is taken."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fineprune.common.errors import RunError
from fineprune.models.data import load_data
from fineprune.models.data.npz import load_arrays
from support.image_files import write_images

IMAGES, LABELS = np.arange(6 * 48, dtype=np.uint8).reshape(6, 4, 4, 3), np.arange(6) % 2


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(path: Path, images: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", npy(LABELS))
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"(6, 4, 4, 3)", b"(60**9,4, 3)"),  # no literal
        (b"(6, 4, 4, 3)", b"(9999999999)"),
        (b"(6, 4, 4, 3)", b"(6, 4, -4,3)"),
        (b"(6, 4, 4, 3)", b"(6, 4, '4',)"),
        (b"(6, 4, 4, 3)", b"(True, 4, 3)"),
        (b"(6, 4, 4, 3)", b"(6, 4, 4, 3L"),
        (b"'shape'", b'"""pe\' '),
        (b"{'descr'", b"\\'descr'"),
        (b"|u1", b"|u9"),
        (b"|u1", b"<u8"),
        (b"False", b"(1,2)"),
        (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00"),
        (b"\x93NUMPY", b"\x93NUMPX"),
    ],
)
def test_damaged_headers_of_arrays(tmp_path: Path, before: bytes, after: bytes) -> None:
    whole = npy(IMAGES)
    assert before in whole and len(before) == len(after)
    with pytest.raises(RunError, match=r"d.npz is truncated or not an npz file \(.+\); write it again$") as error:
        load_data(f"npz:{npz(tmp_path / 'd.npz', whole.replace(before, after))}")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("type_name", ["M8[ns]", "V3", "S0", "c8", "T"])
def test_arrays_of_no_numbers(tmp_path: Path, type_name: str) -> None:
    path = npz(tmp_path / "d.npz", npy(IMAGES).replace(b"'|u1'", f"'{type_name}'".encode()).replace(b" " * 6 + b"\n", b"\n"))
    with pytest.raises(RunError, match=r"d.npz"):
        load_data(f"npz:{path}")


def test_a_header_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size is believed only where the archive's directory has it, too, and never far beyond the file's own."""
    claimed = npy(IMAGES).replace(b"(6, 4, 4, 3)", b"(6,40000,3) ")
    with pytest.raises(RunError, match=r"images.npy is not of the size that its header says"):
        load_arrays(npz(tmp_path / "d.npz", claimed), {"images"})
    monkeypatch.setattr("fineprune.models.data.npz._FREE_BYTES", 1 << 20)
    bomb = npz(tmp_path / "bomb.npz", npy(np.zeros((100, 150, 150), np.uint8)))
    with pytest.raises(RunError, match=r"bomb.npz would take 2 MiB, far more than its size; save the arrays with numpy.savez"):
        load_arrays(bomb, {"images", "labels"})
    assert load_arrays(bomb, {"labels"})["images"].size == 0
    assert load_arrays(npz(tmp_path / "plain.npz", npy(np.zeros((100, 150, 150), np.uint8)), zipfile.ZIP_STORED), {"images"})


def test_archives_that_numpy_never_writes(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", npy(IMAGES))
    content = path.read_bytes()
    entry = content.index(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, 99), (42, 2**31)):  # encrypted; an unknown compression; a place beyond the end
        field = struct.pack("<H" if offset < 42 else "<I", value)
        path.write_bytes(content[: entry + offset] + field + content[entry + offset + len(field) :])
        with pytest.raises(RunError, match=r"d.npz is truncated or not an npz file"):
            load_data(f"npz:{path}")


def test_odd_names_of_arrays_stay_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **{"ima\n\nges": IMAGES, "labels": LABELS, "x" * 500: LABELS})
    with pytest.raises(RunError, match=r"d.npz holds ima ges, labels, x{60}; expected train_images"):
        load_data(f"npz:{tmp_path}/d.npz")


@pytest.mark.parametrize("names", [np.arange(2), np.array([["a", "b"]]), np.array(7)])
def test_class_names_that_are_no_list_of_text(tmp_path: Path, names: np.ndarray) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=LABELS, class_names=names)
    with pytest.raises(RunError, match="class names are a list of text"):
        load_data(f"npz:{tmp_path}/d.npz")


def test_class_names_of_bytes(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=LABELS, class_names=np.array([b"cat", b"d\xf6g"]))
    assert load_data(f"npz:{tmp_path}/d.npz").classes == ("cat", "d\ufffdg")


def test_an_idx_file_takes_no_more_than_it_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**20, 2**10, 2**10)))
    with pytest.raises(RunError, match=r"train-images-idx3-ubyte.gz is truncated or not an IDX file \(it claims 1099511627776 values\)"):
        load_data(f"fashion-mnist:{tmp_path}")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n" * 50,
        encoded(PICTURE, "JPEG")[:400],
        encoded(PICTURE, "PNG")[:400],
        encoded(PICTURE, "TIFF")[:40],
        encoded(PICTURE, "PNG").replace(b"IHDR\0\0\0\x32\0\0\0\x28", b"IHDR\0\0\0\0\0\0\0\x28"),
        encoded(PICTURE, "BMP").replace(struct.pack("<ii", 50, 40), struct.pack("<ii", 2**30, 2**30)),
        b"P6 2 2 99999999999999999999\n" + bytes(24),
        b"P6 99999999 99999999 255\n" + bytes(24),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    write_images(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "001.png").write_bytes(content)
    with pytest.raises(RunError, match=r"image .*b/001.png") as error:
        data = load_data(f"imagefolder:{tmp_path}")
        for split in (data.train, data.validation, data.test):
            list(split.batches(8))
    assert "\n" not in str(error.value)
