"""What a reader hands over: sources with their labels, before splitting and normalisation."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fineprune.common.errors import RunError
from fineprune.common.progress import Progress, Silent

from .augment import Augmentation
from .pixels import BYTE, Units
from .sources import ArraySource, Source

if TYPE_CHECKING:
    from .classes import ClassList

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN = (0.449,)
GREY_STD = (0.226,)
"""ImageNet's constants averaged over the colours."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is asked of a reader; None leaves it to the data. labels: a file of paths and labels."""

    image_size: int | None = None
    crop: float | None = None
    units: Units = field(default_factory=Units)
    classes: "ClassList | None" = None
    labels: str | None = None
    progress: Progress = Silent()  # noqa: RUF009 - stateless


@dataclass(frozen=True, kw_only=True)
class RawData:
    """test and validation are None where the source has none of its own.

    named: whether the classes have names, else they are the numbers of labels. scaled: whether pixels are in [0,1]. crop, white: what
    images were read with, None where that makes no difference. notes: what was understood of odd data, each a phrase for the user.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    train: Source
    test: Source | None
    validation: Source | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    augmentation: Augmentation = field(default_factory=Augmentation)
    named: bool = True
    scaled: bool = True
    crop: float | None = None
    white: float | None = None
    notes: tuple[str, ...] = ()


def array_source(
    images: NDArray, labels: NDArray | Tensor, where: str, white: float | None = BYTE
) -> tuple[ArraySource, tuple[int, int, int]]:
    """Source and (C,H,W) of images [N,H,W], [N,H,W,C] or [N,C,H,W], C of 1 or 3, and integer labels [N].

    white: what pixels are divided by, None for nothing; integers up to 255 stay bytes. Raises RunError, naming `where`, for other shapes
    and types, an empty set, or lengths that differ.
    """
    x = _channels_first(images, where)
    y = check_labels(labels, where)
    if len(x) != len(y):
        raise RunError(f"{where}: {len(x)} images but {len(y)} labels")
    if not len(x):
        raise RunError(f"{where}: the data set is empty")
    if x.dtype.kind != "f" and white == BYTE:
        x = x.astype(np.uint8, copy=False)
    else:
        x = x.astype(np.float32)
        x = x if white is None else np.divide(x, np.float32(white), out=x)
    pixels = torch.from_numpy(np.require(x, requirements=["C", "W"]))  # a read-only view of a file is copied
    return ArraySource(lambda: pixels, torch.from_numpy(y)), (x.shape[1], x.shape[2], x.shape[3])


def as_array(values: Any, where: str) -> NDArray:
    """NumPy's view of an array, a tensor of any device, or lists; RunError, naming `where`, for what is none."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of several lengths, sparse and quantised tensors
        raise RunError(f"{where} is no array ({' '.join(str(error).split())[:120]})") from error


def check_labels(labels: Any, where: str) -> NDArray[np.int64]:
    """int64 [N] from integers [N] or [N,1]; RunError for anything else or a negative label."""
    labels = as_array(labels, f"{where}: labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise RunError(f"{where}: labels are whole numbers, one per image; got {labels.dtype} of shape {labels.shape}")
    if len(labels) and labels.min() < 0:
        raise RunError(f"{where}: labels start at 0, got {labels.min()}")
    if len(labels) and labels.max() > np.iinfo(np.int64).max:
        raise RunError(f"{where}: labels go up to {labels.max()}; number the classes from 0")
    return labels.astype(np.int64)


def defaults_for(channels: int, size: tuple[int, int]) -> dict[str, Any]:
    """Normalisation and augmentation of images of unknown content: grey ones may be characters and are not mirrored."""
    padding = max(1, round(max(size) / 8))
    if channels == 3:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "augmentation": Augmentation(padding=padding)}
    return {"mean": GREY_MEAN, "std": GREY_STD, "augmentation": Augmentation(padding=padding, flip=False)}


def _channels_first(x: NDArray, where: str) -> NDArray:
    """[N,C,H,W] of the same numbers."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[1:]:
        raise RunError(f"{where}: images are [N,H,W], [N,H,W,C] or [N,C,H,W] with 1 or 3 channels, got shape {x.shape}")
    return x
