"""Reading image files: into memory once where they are small, else sample by sample."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...common.cores import usable_cores
from ...common.errors import RunError
from ...common.progress import Progress
from .augment import EVALUATION_CROP, Augmentation, central_crop, random_crop
from .sources import ArraySource, SampleSource, Source

if TYPE_CHECKING:
    from PIL.Image import Image

OpenImage = Callable[[int], "Image"]

SMALL_SIDE = 96
MEMORY_LIMIT_BYTES = 2 << 30
LARGE_SIZE = 224
_PROBED = 32
_CHUNK = 256


@dataclass(frozen=True)
class Plan:
    """How the images of a data set are read: to size (height, width), into memory or sample by sample."""

    size: tuple[int, int]
    in_memory: bool

    def source(self, open_image: OpenImage, labels: Tensor, *, description: str, progress: Progress) -> Source:
        """The source of the images open_image(0) .. open_image(len(labels) - 1)."""
        if self.in_memory:
            return ArraySource(lambda: decode_all(open_image, len(labels), self.size, description=description, progress=progress), labels)
        return SampleSource(lambda *sample: _decode_one(open_image, self.size, *sample), labels)

    def augmentation(self) -> Augmentation:
        """Pad-and-crop by an eighth of the side in memory, resized crops of files; both with flips."""
        return Augmentation(padding=max(1, round(max(self.size) / 8)) if self.in_memory else 0)


def choose_plan(size_of: Callable[[int], tuple[int, int]], count: int, total: int, image_size: int | None) -> Plan:
    """In memory where sides are at most 96 pixels and the data set fits 2 GiB, else sample by sample.

    image_size: height and width asked for. None: the images' own where a sample of them agrees and they are small, else 224.
    size_of: (width, height) of image i < count, of which some are asked; total: images of the whole data set.
    """
    size = (image_size, image_size) if image_size else _common_size(size_of, count)
    if size is None or (image_size is None and max(size) > SMALL_SIDE):
        return Plan((LARGE_SIZE, LARGE_SIZE), in_memory=False)
    return Plan(size, in_memory=max(size) <= SMALL_SIDE and total * 3 * size[0] * size[1] <= MEMORY_LIMIT_BYTES)


def open_file(path: Path | str) -> "Image":
    """The file's image in RGB; RunError names a file that cannot be read."""
    from PIL import Image

    with _named_errors(path), Image.open(path) as image:
        return to_rgb(image)


def file_size(path: Path | str) -> tuple[int, int]:
    """(width, height) from the file's header alone; errors as in `open_file`."""
    from PIL import Image

    with _named_errors(path), Image.open(path) as image:
        return image.size


def to_rgb(image: "Image") -> "Image":
    """Any mode to RGB; transparency in a palette is resolved first, as Pillow asks."""
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")


def decode_all(
    open_image: OpenImage, count: int, size: tuple[int, int], *, description: str, progress: Progress, threads: int | None = None
) -> Tensor:
    """uint8 [count,3,H,W]; images of another size are scaled to cover (H, W) and cropped at the centre."""
    pixels = np.empty((count, 3, *size), np.uint8)

    def decode(chunk: range) -> None:
        for i in chunk:
            image = open_image(i)
            if image.size != (size[1], size[0]):
                image = central_crop(image, size, keep=1.0)
            pixels[i] = np.asarray(image).transpose(2, 0, 1)

    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with ThreadPoolExecutor(threads or usable_cores(), thread_name_prefix="fineprune-decode") as pool:
        try:
            for _ in progress(pool.map(decode, chunks), total=len(chunks), description=description):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return torch.from_numpy(pixels)


@contextmanager
def _named_errors(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow's decoders raise for broken files
        raise RunError(f"cannot read the image {path} ({' '.join(str(error).split())}); replace or remove it") from error


def _decode_one(
    open_image: OpenImage, size: tuple[int, int], position: int, augmentation: Augmentation | None, generator: np.random.Generator | None
) -> Tensor:
    image = open_image(position)
    if augmentation is None or generator is None:
        image = central_crop(image, size, keep=1.0 if max(size) <= SMALL_SIDE else EVALUATION_CROP)
    else:
        image = random_crop(image, size, augmentation, generator)
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _common_size(size_of: Callable[[int], tuple[int, int]], count: int) -> tuple[int, int] | None:
    """(height, width) if the images of an even sample agree."""
    sizes = {size_of(int(i)) for i in np.unique(np.linspace(0, count - 1, _PROBED).astype(int))}
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return height, width
