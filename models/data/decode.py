"""Reading image files: into memory once where they are small, else sample by sample."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fineprune.common.cores import usable_cores
from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Progress

from .augment import EVALUATION_CROP, Augmentation, central_crop, random_crop
from .files import Header, pixels_of
from .pixels import Scale, joined, scale_of
from .raw import Reading
from .sources import MEMORY_LIMIT_BYTES, ArraySource, SampleSource, Source

if TYPE_CHECKING:
    from PIL.Image import Image

OpenImage = Callable[[int], "Image"]

SMALL_SIDE = 96
LARGE_SIZE = 224
LARGEST_SIDE = 8192
"""Of `image_size`; an image of it takes 805 MB as float32 RGB."""
_PROBED = 32
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the images of a data set are read: to size (height, width), into memory or sample by sample.

    crop: the part of the shorter side that is kept where nothing is random. white: what pixels of more than 8 bits are divided by, None
    where there are none.
    """

    size: tuple[int, int]
    in_memory: bool
    crop: float = 1.0
    white: float | None = None
    notes: tuple[str, ...] = ()

    def source(self, open_image: OpenImage, labels: Tensor, *, description: str, progress: Progress) -> Source:
        """The source of the images open_image(0) .. open_image(len(labels) - 1), each as `files.to_rgb` gives it."""
        if self.in_memory:
            return ArraySource(lambda: decode_all(open_image, len(labels), self, description=description, progress=progress), labels)
        return SampleSource(lambda *sample: _decode_one(open_image, self, *sample), labels)

    @property
    def facts(self) -> dict[str, Any]:
        """Fields of RawData that follow from the plan; a crop says nothing of images that are kept whole in memory."""
        padding = max(1, round(max(self.size) / 8)) if self.in_memory else 0
        return {
            "input_shape": (3, *self.size),
            "augmentation": Augmentation(padding=padding),  # in memory pad and crop by an eighth of the side, else resized crops
            "crop": None if self.in_memory else self.crop,
            "white": self.white,
            "notes": self.notes,
        }


def choose_plan(header_of: Callable[[int], Header], count: int, total: int, reading: Reading, where: str) -> Plan:
    """In memory where sides are at most 96 pixels and the data set fits 2 GiB, else sample by sample.

    The size is reading.image_size, or the images' own where a sample of them agrees and they are small, or 224. header_of: of image
    i < count, of which some are asked; total: images of the whole data set. Raises UsageError, naming `where`, for a crop of small images
    and for a white without images of more than 8 bits; RunError for images whose pixels have no sensible reading.
    """
    headers = [header_of(int(i)) for i in np.unique(np.linspace(0, count - 1, _PROBED).astype(int))]
    asked = reading.image_size
    size = (asked, asked) if asked else _common_size(headers)
    if size is None or (asked is None and max(size) > SMALL_SIDE):
        size = (LARGE_SIZE, LARGE_SIZE)
    scale = _scale(headers, reading, where)
    small = max(size) <= SMALL_SIDE
    if small and reading.crop not in (None, 1.0):
        raise UsageError(f"{where}: images of at most {SMALL_SIDE} pixels are kept whole; leave crop={reading.crop} out")
    width = 4 if scale is not None else 1
    return Plan(
        size=size,
        in_memory=small and total * 3 * size[0] * size[1] * width <= MEMORY_LIMIT_BYTES,
        crop=reading.crop or (1.0 if small else EVALUATION_CROP),
        white=None if scale is None else scale.white or 1.0,
        notes=(*([scale.note] if scale is not None and scale.note else ()), *dict.fromkeys(note for h in headers for note in h.notes)),
    )


def decode_all(
    open_image: OpenImage, count: int, plan: Plan, *, description: str, progress: Progress, threads: int | None = None
) -> Tensor:
    """[count,3,H,W], uint8 or (of more than 8 bits) float32; images of another size are scaled to cover (H,W) and cropped at the centre."""
    size, deep = plan.size, plan.white is not None
    pixels = np.empty((count, 3, *size), np.float32 if deep else np.uint8)

    def decode(chunk: range) -> None:
        for i in chunk:
            image = open_image(i)
            if image.size != (size[1], size[0]):
                image = central_crop(image, size, keep=1.0)
            pixels[i] = pixels_of(image, deep=deep)

    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with ThreadPoolExecutor(threads or usable_cores(), thread_name_prefix="fineprune-decode") as pool:
        try:
            for _ in progress(pool.map(decode, chunks), total=len(chunks), description=description):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return torch.from_numpy(pixels)


def _decode_one(
    open_image: OpenImage, plan: Plan, position: int, augmentation: Augmentation | None, generator: np.random.Generator | None
) -> Tensor:
    image = open_image(position)
    if augmentation is None or generator is None:
        image = central_crop(image, plan.size, keep=plan.crop)
    else:
        image = random_crop(image, plan.size, augmentation, generator)
    return torch.from_numpy(pixels_of(image, deep=plan.white is not None).copy())


def _common_size(headers: list[Header]) -> tuple[int, int] | None:
    """(height, width) if the images of an even sample agree."""
    sizes = {header.size for header in headers}
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return height, width


def _scale(headers: list[Header], reading: Reading, where: str) -> Scale | None:
    """What white is for images of more than 8 bits; None where the sample has none."""
    ranges = [header.range for header in headers if header.range is not None]
    if not ranges:
        if reading.units.white is not None:
            raise UsageError(f"{where}: white= is for images of more than 8 bits, and there seem to be none; leave it out")
        return None
    kinds = {header.mode == "F" for header in headers if header.range is not None}
    if len(kinds) > 1:
        raise RunError(f"{where}: some images hold integers (I;16, I) and some floating-point numbers (F); convert them to one kind")
    units = replace(reading.units, prepared=False, beyond_one=False)  # every file is held against white
    return scale_of(joined(ranges), units, floating=kinds.pop(), bits=16)
