"""What a reader hands over: sources with their labels, before splitting and normalisation."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.errors import RunError
from .augment import Augmentation
from .sources import ArraySource, Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN = (0.449,)
GREY_STD = (0.226,)
"""ImageNet's constants averaged over the colours."""


@dataclass(frozen=True, kw_only=True)
class RawData:
    """test and validation are None where the source has none of its own."""

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    train: Source
    test: Source | None
    validation: Source | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    augmentation: Augmentation = field(default_factory=Augmentation)


def array_source(images: NDArray | Tensor, labels: NDArray | Tensor, where: str) -> tuple[ArraySource, tuple[int, int, int]]:
    """Source and (C,H,W) of images [N,H,W], [N,H,W,C] or [N,C,H,W], C of 1 or 3, uint8 0-255 or float; integer labels [N].

    Raises RunError, naming `where`, for other shapes and types, NaN, an empty set, or lengths that differ.
    """
    x = _images(np.asarray(images), where)
    y = check_labels(np.asarray(labels), where)
    if len(x) != len(y):
        raise RunError(f"{where}: {len(x)} images but {len(y)} labels")
    if not len(x):
        raise RunError(f"{where}: the data set is empty")
    pixels = torch.from_numpy(np.require(x, requirements=["C", "W"]))  # a read-only view of a file is copied
    return ArraySource(lambda: pixels, torch.from_numpy(y)), (x.shape[1], x.shape[2], x.shape[3])


def check_labels(labels: NDArray, where: str) -> NDArray[np.int64]:
    """int64 [N] from integers [N] or [N,1]; RunError for anything else or a negative label."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise RunError(f"{where}: labels are whole numbers, one per image; got {labels.dtype} of shape {labels.shape}")
    if len(labels) and labels.min() < 0:
        raise RunError(f"{where}: labels start at 0, got {labels.min()}")
    return labels.astype(np.int64)


def class_names(names: list[str] | None, labels: list[Tensor], where: str) -> tuple[str, ...]:
    """The given names, or "0", "1", ... up to the largest label; RunError where the names are too few."""
    count = 1 + max(int(part.max()) for part in labels if len(part))
    if names is None:
        return tuple(map(str, range(count)))
    if len(names) < count:
        raise RunError(f"{where}: {len(names)} class names, but labels go up to {count - 1}")
    return tuple(names)


def defaults_for(channels: int, size: tuple[int, int]) -> dict:
    """Normalisation and augmentation of images of unknown content: grey ones may be characters and are not mirrored."""
    padding = max(1, round(max(size) / 8))
    if channels == 3:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "augmentation": Augmentation(padding=padding)}
    return {"mean": GREY_MEAN, "std": GREY_STD, "augmentation": Augmentation(padding=padding, flip=False)}


def _images(x: NDArray, where: str) -> NDArray:
    """uint8 or float32 [N,C,H,W]."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise RunError(f"{where}: images are [N,H,W], [N,H,W,C] or [N,C,H,W] with 1 or 3 channels, got shape {x.shape}")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "iu" and (not x.size or (x.min() >= 0 and x.max() <= 255)):
        return x.astype(np.uint8)
    if x.dtype.kind != "f":
        raise RunError(f"{where}: pixels are integers of 0 to 255 or floating-point, got {x.dtype}")
    if not np.isfinite(x).all():
        raise RunError(f"{where}: images hold NaN or infinite values")
    return x.astype(np.float32)
