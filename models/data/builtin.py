"""Data sets with a name of their own: scikit-learn's digits, CIFAR, Fashion-MNIST."""

import gzip
import math
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError

from ..vision import import_torchvision
from .augment import Augmentation
from .raw import RawData, Reading, array_source

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_DIGITS_SIZE = 32
_MOST_EXPANSION = 1032
"""Bytes that deflate can make of one."""


def read_digits(root: str | None, reading: Reading) -> RawData:
    """1,797 scanned digits of 8x8 pixels from scikit-learn's wheel, scaled to 32x32 (or image_size), one channel."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    source, _ = array_source(pixels, digits.target, "digits")
    size = reading.image_size or _DIGITS_SIZE
    return RawData(
        name="digits",
        classes=tuple(map(str, range(10))),
        named=False,
        input_shape=(1, size, size),
        train=source.resized(size),
        test=None,
        mean=(0.3055,),
        std=(0.3235,),
        augmentation=Augmentation(flip=False, padding=max(1, size // 8)),
    )


def read_cifar10(root: str | None, reading: Reading) -> RawData:
    """CIFAR-10 as torchvision stores it; downloaded into ROOT where it is not there yet."""
    return _read_cifar("CIFAR10", root, reading.image_size)


def read_cifar100(root: str | None, reading: Reading) -> RawData:
    """CIFAR-100 as torchvision stores it; downloaded into ROOT where it is not there yet."""
    return _read_cifar("CIFAR100", root, reading.image_size)


def read_fashion_mnist(root: str | None, reading: Reading) -> RawData:
    """60,000 + 10,000 images of 28x28: IDX files in ROOT (Debian's dataset-fashion-mnist) or in torchvision's layout, or downloaded."""
    folder = _fashion_folder(root)
    size = reading.image_size or 28
    sources = {}
    for part, (images, labels) in _IDX_FILES.items():
        source, (_, height, width) = array_source(_read_idx(folder, images), _read_idx(folder, labels), f"{folder} ({part})")
        sources[part] = source if (height, width) == (size, size) else source.resized(size)
    return RawData(
        name="fashion-mnist",
        classes=_FASHION_CLASSES,
        input_shape=(1, size, size),
        train=sources["train"],
        test=sources["test"],
        mean=(0.2860,),
        std=(0.3530,),
        augmentation=Augmentation(padding=max(1, round(size / 8))),
    )


def cache_folder() -> Path:
    """Where downloads go when no ROOT is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fineprune" / "data"


def _read_cifar(name: str, root: str | None, image_size: int | None) -> RawData:
    folder = Path(root) if root else cache_folder()
    train, test = (_torchvision_set(name, folder, train=part) for part in (True, False))
    size = image_size or 32
    sources = [array_source(part.data, part.targets, f"{name} in {folder}")[0] for part in (train, test)]
    if size != 32:
        sources = [source.resized(size) for source in sources]
    return RawData(
        name=name.lower(),
        classes=tuple(train.classes),
        input_shape=(3, size, size),
        train=sources[0],
        test=sources[1],
        augmentation=Augmentation(padding=max(1, size // 8)),
    )


def _torchvision_set(name: str, folder: Path, **args: Any) -> Any:
    """The data set in `folder`, downloaded there if need be; RunError where that fails."""
    factory = getattr(import_torchvision().datasets, name)
    with warnings.catch_warnings():
        # NumPy 2.4 warns about how CIFAR's files of 2009 spell their array types.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        try:
            return factory(folder, download=False, **args)
        except RuntimeError:  # torchvision's way to say that it is not there, or not whole
            pass
        try:
            return factory(folder, download=True, **args)
        except Exception as error:  # network, disk and checksum failures, each with a type of its own
            detail = " ".join(str(error).split())
            raise RunError(
                f"{name} is not in {folder} and cannot be downloaded ({detail}); give the folder that holds it as ROOT"
            ) from error


def _fashion_folder(root: str | None) -> Path:
    default = DEBIAN_FASHION_MNIST if DEBIAN_FASHION_MNIST.is_dir() else cache_folder()
    folder = Path(root) if root else default
    downloaded = folder / "FashionMNIST" / "raw"
    for candidate in (folder, downloaded):
        if _idx_path(candidate, _IDX_FILES["train"][0]) is not None:
            return candidate
    _torchvision_set("FashionMNIST", folder)
    return downloaded


def _idx_path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An IDX array of unsigned bytes: 0, 0, type 8, number of axes, each axis big-endian in 4 bytes, then the values."""
    path = _idx_path(folder, name)
    if path is None:
        raise RunError(f"{folder} holds no {name} or {name}.gz; give the folder of all four Fashion-MNIST files as ROOT")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            kind, axes = struct.unpack(">HBB", stream.read(4))[1:]
            shape = struct.unpack(f">{axes}I", stream.read(4 * axes))
            if kind != 8:
                raise ValueError(f"values of type {kind}, not bytes")
            count = math.prod(shape)
            if count > _MOST_EXPANSION * path.stat().st_size:
                raise ValueError(f"it claims {count} values")
            return np.frombuffer(stream.read(count), np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise RunError(f"{path} is truncated or not an IDX file ({error}); copy or download it again") from error
