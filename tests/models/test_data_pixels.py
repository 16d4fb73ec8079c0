"""Pixels of unusual types and ranges: scaled rightly with a line that says so, or refused by name."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fineprune.common.errors import RunError, UsageError
from fineprune.models.data import ImageData, data_from_arrays, load_data
from fineprune.models.data.files import open_file, read_header
from fineprune.networks import load_arguments
from support.image_files import Lines

RAMP = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
PLAIN = {"mean": [0], "std": [1]}


def folder_of(root: Path, pixels: np.ndarray, suffix: str, count: int = 5) -> str:
    for label in "ab":
        (root / label).mkdir()
        for i in range(count):
            Image.fromarray(pixels).save(root / label / f"{i}.{suffix}")
    return f"imagefolder:{root}"


def first(data: ImageData) -> torch.Tensor:
    return next(data.train.batches(2)).images[0, 0]


@pytest.mark.parametrize(
    ("pixels", "suffix", "white"),
    [
        (RAMP, "png", 65535),
        (RAMP, "tif", 65535),
        (RAMP.astype(">u2"), "tif", 65535),
        (RAMP.astype(np.int32), "tif", 65535),
        (RAMP // 16, "png", 4095),
        (RAMP // 64, "tif", 1023),
        (RAMP // 257, "png", 255),
        ((RAMP / 65535).astype(np.float32), "tif", 1),
        ((RAMP // 257).astype(np.float32), "tif", 255),
    ],
)
def test_grey_images_of_more_than_8_bits_keep_their_levels(tmp_path: Path, pixels: np.ndarray, suffix: str, white: float) -> None:
    log = Lines()
    data = load_data(folder_of(tmp_path, pixels, suffix), **PLAIN, progress=log)
    torch.testing.assert_close(first(data), torch.from_numpy(pixels.astype(np.float32) / white))
    assert data.white == white and data.to_json()["white"] == white
    assert white == 1 or len(log.lines) == 1  # one line; floating-point pixels of 0 to 1 are the usual
    large = load_data(data.spec, image_size=100, **PLAIN, progress=log)
    assert float(first(large).mean()) == pytest.approx(0.5, abs=0.01)


def test_white_is_kept_and_held_against_every_file(tmp_path: Path) -> None:
    data = load_data(folder_of(tmp_path, RAMP // 16, "png"), white=65535, **PLAIN)
    assert float(first(data).max()) == pytest.approx(4095 / 65535)
    again = load_data(**load_arguments(load_data(data.spec).to_json()))
    assert again.white == 4095
    Image.fromarray(RAMP).save(tmp_path / "b" / "4.png")
    with pytest.raises(RunError, match=r"b/4.png: pixels are I;16 from 0 to 65535, but white is 4095; give another white="):
        load_data(data.spec, white=4095)
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "b" / "4.png")
    mixed = next(load_data(data.spec, **PLAIN, validation=0).train.batches(9)).images
    assert mixed.dtype == torch.float32 and float(mixed.max()) == 1


def test_a_16_bit_image_among_many_of_8_bits_is_named(tmp_path: Path) -> None:
    spec = folder_of(tmp_path, np.zeros((8, 8), np.uint8), "png", count=40)
    Image.fromarray(RAMP[:8, :8]).save(tmp_path / "a" / "1.png")  # not among those looked at beforehand
    with pytest.raises(RunError, match=r"a/1.png is of mode I;16, of more than 8 bits, unlike the others; convert it"):
        list(load_data(spec, validation=0).train.batches(100))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype(np.int32) * 1000, "pixels are integers of 0 to 65535 or floating-point, got I from 0 to 6.5535e"),
        (RAMP.astype(np.int32) - 5, "got I from -5 to 65530"),
        ((RAMP / 65535).astype(np.float32) * 2 - 1, "pixels are F from -1 to 1; expected 0 to 1"),
        (RAMP.astype(np.float32), "pixels are F from 0 to 65535; expected 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), "images hold NaN"),
    ],
)
def test_images_without_a_sensible_reading_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    with pytest.raises(RunError, match=message):
        load_data(folder_of(tmp_path, pixels, "tif"))


def test_white_needs_deep_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="white= is for images of more than 8 bits"):
        load_data(folder_of(tmp_path, np.zeros((8, 8), np.uint8), "png"), white=4095)


def test_colour_of_16_bits_is_scaled_by_pillow(tmp_path: Path) -> None:
    content = b"P6 2 1 65535\n" + np.array([0, 32896, 65535, 0, 257, 514], ">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(content)
    assert np.asarray(open_file(tmp_path / "a.ppm")).tolist() == [[[0, 128, 255], [0, 1, 2]]]


def png(channels: int, samples: list[int]) -> bytes:
    """One row of 16-bit samples as PNG: grey and alpha (2), colour (3), colour and alpha (4)."""
    row = zlib.compress(b"\0" + np.array(samples, ">u2").tobytes())
    header = struct.pack(">IIBBBBB", len(samples) // channels, 1, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", row), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_pngs_of_several_channels_are_scaled(tmp_path: Path, channels: int) -> None:
    (tmp_path / "a.png").write_bytes(png(channels, [0, 65535, 32896, 65535, 257, 65535, 65535, 65535, 514, 65535, 0, 65535]))
    found = np.asarray(open_file(tmp_path / "a.png"))[0]
    expected = {
        2: [[v] * 3 for v in (0, 128, 1, 255, 2, 0)],
        3: [[0, 255, 128], [255, 1, 255], [255, 255, 2], [255, 0, 255]],
        4: [[0, 255, 128], [1, 255, 255], [2, 255, 0]],
    }
    assert found.tolist() == expected[channels]


def test_frames_and_orientation_are_said(tmp_path: Path) -> None:
    grey = Image.new("L", (8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(tmp_path / "turned.jpg", exif=exif)
    grey.save(tmp_path / "frames.png", save_all=True, append_images=[Image.new("L", (8, 6), 9)])
    assert "without the turn that EXIF asks for" in read_header(tmp_path / "turned.jpg").notes[0]
    assert read_header(tmp_path / "frames.png").notes == ("of several frames the first is read",)
    assert read_header(tmp_path / "turned.jpg").size == (8, 6)


def blobs(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 4
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8)).astype(np.uint8)
    images[0, 0, 0, :2] = 0, 255
    return images, labels


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.astype(np.float32), "float32 from 0 to 255, all whole numbers, read as 0 to 255"),
        (lambda x: x.astype(np.float64), "float64 from 0 to 255"),
        (lambda x: x.astype(np.uint16) * 257, "uint16 from 0 to 65535, read as 16 bits"),
        (lambda x: torch.from_numpy(x).to(torch.bfloat16), "float32 from 0 to 255"),
        (lambda x: x.astype(np.int32), None),
        (lambda x: x / np.float32(255), None),
        (lambda x: torch.from_numpy(x / np.float32(255)).requires_grad_(), None),
    ],
)
def test_arrays_of_other_ranges_become_the_same_images(change, said: str | None) -> None:
    images, labels = blobs()
    log = Lines()
    usual = data_from_arrays("d", (images, labels))
    data = data_from_arrays("d", (change(images), labels), progress=log)
    torch.testing.assert_close(next(data.train.batches(8)).images, next(usual.train.batches(8)).images, atol=1e-6, rtol=0)
    assert (not log.lines) if said is None else said in log.lines[0]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_zeros_and_ones_are_black_and_white(dtype: type) -> None:
    images, labels = blobs()
    log = Lines()
    data = data_from_arrays("d", ((images > 100).astype(dtype), labels), mean=[0], std=[1], progress=log)
    assert next(data.train.batches(8)).images.unique().tolist() == [0, 1] and "pixels are only 0 and 1" in log.lines[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / np.float32(127.5) - 1, "pixels are float32 from -1 to 1; expected 0 to 1"),
        (lambda x: x * np.float32(0.9), "from 0 to 229.5; expected 0 to 1. Divide them, or say which value is white"),
        (lambda x: x.astype(np.int8), "got int8 from -128 to 127"),
        (lambda x: x.astype(np.int32) * 100, "pixels are integers of 0 to 255 or floating-point, got int32 from 0 to 25500"),
        (lambda x: x.astype(np.complex64), "got complex64"),
        (lambda x: [[1, 2], [3]], "images is no array"),
    ],
)
def test_arrays_without_a_sensible_reading_are_refused(change, message: str) -> None:
    images, labels = blobs()
    with pytest.raises(RunError, match=message):
        data_from_arrays("d", (change(images), labels))


def test_white_scales_any_array(tmp_path: Path) -> None:
    images, labels = blobs()
    np.savez(tmp_path / "d.npz", images=images.astype(np.float32) * 0.9, labels=labels)
    data = load_data(f"npz:{tmp_path}/d.npz", white=229.5, **PLAIN)
    assert float(next(data.train.batches(40)).images.max()) <= 1
    assert torch.equal(first(load_data(**load_arguments(data.to_json()))), first(data))


def test_given_mean_and_std_are_of_the_pixels_own_units() -> None:
    images, labels = blobs()
    log = Lines()
    scaled = data_from_arrays("d", (images.astype(np.float32), labels), mean=[127.5], std=[50], progress=log)
    assert float(first(scaled).min()) >= -2.55 and "taken as they are" in log.lines[0]
    standard = data_from_arrays("d", ((images - np.float32(127)) / 50, labels), mean=[0], std=[1])
    assert float(first(standard).min()) < -1
    with pytest.raises(UsageError, match=r"mean and std are of pixels of 0 to 1, got mean \(127.5, .*; divide both by 255"):
        data_from_arrays("d", (images, labels), mean=[127.5], std=[50])
    with pytest.raises(RunError, match="expected 0 to 1"):
        data_from_arrays("d", (images / np.float32(127.5) - 1, labels), mean=[0.5], std=[0.5])


@pytest.mark.parametrize(
    ("pixels", "said"), [(16, "reach only 16 of 255: if that is white, give white=16"), (1 / 256, "divided by 255 twice")]
)
def test_dark_arrays_are_said(pixels: float, said: str) -> None:
    log = Lines()
    data_from_arrays("d", (np.full((8, 4, 4), pixels), np.arange(8) % 2), progress=log) if pixels < 1 else data_from_arrays(
        "d", (np.full((8, 4, 4), int(pixels)), np.arange(8) % 2), progress=log
    )
    assert said in log.lines[0]


def test_odd_data_are_said_on_stderr_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = blobs()
    data_from_arrays("d\x1b[2J", ((images > 9).astype(int), labels))
    said = capsys.readouterr()
    assert said.err.endswith(
        "[2J: 4 classes (0, 1, 2, ...), train 29, validation 3, test 8; pixels are only 0 and 1 (int64): 1 is taken for white\n"
    )
    assert said.out == "" and "\x1b" not in said.err
    data_from_arrays("d", (images, labels))
    assert capsys.readouterr().err == ""


def test_a_huge_image_is_named_before_memory_is_taken(tmp_path: Path) -> None:
    Image.new("L", (8, 6)).save(tmp_path / "huge.bmp")
    content = (tmp_path / "huge.bmp").read_bytes()
    for size, match in (((20000, 12000), r"huge.bmp \(Image size"), ((14000, 10000), "14000x10000 pixels, too many")):
        (tmp_path / "huge.bmp").write_bytes(content.replace(struct.pack("<ii", 8, 6), struct.pack("<ii", *size)))
        with pytest.raises(RunError, match=match):
            open_file(tmp_path / "huge.bmp")


def test_pillows_warnings_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (12, 12)).save(tmp_path / "large.png")
    before = list(warnings.filters)
    assert open_file(tmp_path / "large.png").size == (12, 12)  # a warning would be an error here
    assert list(warnings.filters) == before


def test_other_formats_do_not_run_programs(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "EPS")
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    with pytest.raises(RunError, match="cannot identify image file"):
        open_file(tmp_path / "a.jpg")
