"""Standard augmentation, each draw from a generator that is passed in.

On arrays (whole batches at once): zero-pad and crop back at a random offset, mirror with probability 1/2 (He et al. 2015,
section 4.2). On decoded files: a random crop of 8-100 % of the area and aspect ratio 3/4-4/3, scaled to the input size
(Szegedy et al. 2015), mirrored likewise.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10
EVALUATION_CROP = 224 / 256
"""The central part of a large image's shorter side that is kept when nothing is random and no other `crop` is asked for."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What `augment=True` does: `crop` by `padding` pixels (arrays) or a resized crop (files), and `flip`."""

    crop: bool = True
    flip: bool = True
    padding: int = 4

    def __str__(self) -> str:
        parts = [f"crop (padding {self.padding})" if self.padding else "resized crop"] * self.crop + ["flip"] * self.flip
        return " + ".join(parts) or "none"


def augment_batch(x_NCHW: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """[N,C,H,W] -> the same shape and dtype; crop and flip in one gather."""
    N, C, H, W = x_NCHW.shape
    p = augmentation.padding if augmentation.crop else 0
    offsets = torch.randint(0, 2 * p + 1, (2, N, 1), generator=generator)
    mirrored = torch.randint(0, 2, (N, 1), generator=generator).bool()
    rows = torch.arange(H) + offsets[0]
    columns = torch.arange(W) + offsets[1]
    if augmentation.flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    flat = (rows[:, :, None] * (W + 2 * p) + columns[:, None, :]).reshape(N, 1, H * W).expand(N, C, H * W)
    return F.pad(x_NCHW, (p, p, p, p)).flatten(2).gather(2, flat).reshape(N, C, H, W)


def random_crop(image: "Image", size: tuple[int, int], augmentation: Augmentation, generator: np.random.Generator) -> "Image":
    """A random part of `image` scaled to size (height, width), perhaps mirrored."""
    from PIL.Image import Resampling, Transpose

    box = _random_box(image.size, generator) if augmentation.crop else (0, 0, *image.size)
    result = image.resize((size[1], size[0]), Resampling.BILINEAR, box=box)
    mirrored = generator.random() < 0.5
    return result.transpose(Transpose.FLIP_LEFT_RIGHT) if augmentation.flip and mirrored else result


def central_crop(image: "Image", size: tuple[int, int], keep: float) -> "Image":
    """The centre of size (height, width), cut at whole pixels from `image` scaled to cover 1 / keep times that size.

    For square sizes these are torchvision's Resize(round(size / keep)) and CenterCrop(size) with its bilinear antialiased filter, but for
    the rounding of a pixel's value; only what is kept is computed.
    """
    from PIL.Image import Resampling

    W, H = _covering(image.size, (round(size[1] / keep), round(size[0] / keep)))
    x, y = round((W - size[1]) / 2), round((H - size[0]) / 2)  # rounded as torchvision does, halves to the even number
    across, down = image.width / W, image.height / H
    box = (x * across, y * down, min((x + size[1]) * across, image.width), min((y + size[0]) * down, image.height))
    return image.resize((size[1], size[0]), Resampling.BILINEAR, box=box)


def _covering(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image of `size` scaled so that one side is that of `least` and the other at least as long."""
    (width, height), (W, H) = size, least
    return (W, max(H, W * height // width)) if W * height >= H * width else (max(W, H * width // height), H)


def _random_box(size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
    width, height = size
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*_AREA)
        aspect = math.exp(generator.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(generator.integers(0, width - w + 1)), int(generator.integers(0, height - h + 1))
            return x, y, x + w, y + h
    side = min(width, height)  # an extreme aspect ratio: its central square
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side
