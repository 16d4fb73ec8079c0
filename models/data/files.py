"""Opening image files that may be of any mode, damaged, or huge: an RGB image, or a grey one of floating-point numbers, or a RunError."""

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fineprune.common.errors import RunError

from .pixels import BYTE, Range, check_range, range_of

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_BYTES = 1 << 30
_LARGE_PIXELS = 16 << 20
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000")
"""By content, whatever the file's name says. Pillow knows others, of which one runs a program (Ghostscript)."""
_ORIENTATION = 0x0112
_PHOTOMETRIC = 0x0106
_one_large_image = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What is known of an image before all are read: (width, height), mode, and the range of pixels where they have more than 8 bits.

    notes: what a reader leaves out of this image (its other frames, its orientation).
    """

    size: tuple[int, int]
    mode: str
    range: Range | None = None
    notes: tuple[str, ...] = ()


def is_deep(mode: str) -> bool:
    """Whether Pillow's `mode` is grey of more than 8 bits: I;16 and its kin, I (32 bits) or F (floating-point)."""
    return mode in ("I", "F") or mode.startswith("I;")


def open_file(path: Path | str, white: float | None = None) -> "Image":
    """The file's image: mode RGB, or F with pixels divided by `white` where the file has more than 8 bits. RunError names the file."""
    from PIL import Image

    with named_errors(f"the image {path}"), Image.open(path, formats=_FORMATS) as image, _turn(image):
        return to_rgb(image, white, f"the image {path}")


def read_header(path: Path | str) -> Header:
    """From the file's header alone, but for images of more than 8 bits; errors as in `open_file`."""
    from PIL import Image

    with named_errors(f"the image {path}"), Image.open(path, formats=_FORMATS) as image, _turn(image):
        return header_of(image, f"the image {path}")


def header_of(image: "Image", where: str) -> Header:
    """The facts of an open image; RunError, naming `where`, for one that cannot be read."""
    _check_size(image, where)
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("of several frames the first is read")
    if ("exif" in image.info or hasattr(image, "tag_v2")) and image.getexif().get(_ORIENTATION, 1) != 1:
        notes.append("images are read as they are stored, without the turn that EXIF asks for (as torchvision does)")
    pixels = range_of(np.asarray(image), image.mode, where) if is_deep(image.mode) else None
    return Header(image.size, image.mode, pixels, tuple(notes))


def to_rgb(image: "Image", white: float | None, where: str) -> "Image":
    """Any mode of 8 bits to RGB, deeper ones to F in [0,1]; transparency in a palette is resolved first, as Pillow asks.

    Raises RunError, naming `where`, for a deep image without or beyond `white`, and for one that would take too much memory.
    """
    from PIL import Image

    _check_size(image, where)
    if is_deep(image.mode):
        if white is None:
            raise RunError(f"{where} is of mode {image.mode}, of more than 8 bits, unlike the others; convert it, or give white=65535")
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            raise RunError(f"{where} counts from white to black (PhotometricInterpretation 0) in {image.mode}; save it the usual way")
        pixels = np.asarray(image)
        check_range(range_of(pixels, image.mode, where), white, floating=image.mode == "F")
        return Image.fromarray(pixels.astype(np.float32) / np.float32(white))
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")


def pixels_of(image: "Image", *, deep: bool) -> np.ndarray:
    """[3,H,W] of an image of `to_rgb`: float32 in [0,1] where the data set is deep, else uint8."""
    x = np.asarray(image)
    if x.ndim == 2:
        return np.broadcast_to(x, (3, *x.shape))
    x = x.transpose(2, 0, 1)
    return x.astype(np.float32) / np.float32(BYTE) if deep else x


def _check_size(image: "Image", where: str) -> None:
    """Pillow keeps RGB in four bytes a pixel, and a conversion holds both images."""
    width, height = image.size
    if width < 1 or height < 1:
        raise RunError(f"{where} has no pixels ({width}x{height}); replace or remove it")
    if width * height * (4 if image.mode == "RGB" else 16 if is_deep(image.mode) else 8) > _MOST_BYTES:
        raise RunError(f"{where} has {width}x{height} pixels, too many to read at once; make it smaller or remove it")


def _turn(image: "Image") -> "threading.Lock | nullcontext[None]":
    """Large images are decoded one after another, whatever the number of threads: memory is bounded by one."""
    return _one_large_image if image.size[0] * image.size[1] > _LARGE_PIXELS else nullcontext()


@contextmanager
def named_errors(where: str) -> Iterator[None]:
    """Around whatever decodes an image: its errors become a RunError that names `where`, and Pillow's warnings stay inside."""
    try:
        with _QUIET:
            yield
    except RunError:
        raise
    except Exception as error:  # broken files make Pillow's decoders raise nearly every type that there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"cannot read {where} ({reason[:200]}); replace or remove it") from error


class _Quiet:
    """Ignores Pillow's warnings (huge images, odd EXIF data) while any thread reads an image.

    `warnings.catch_warnings` is not made for threads: the last one to leave would restore what another one set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._filter = ("ignore", None, Warning, re.compile("PIL"), 0)  # as warnings.filterwarnings writes it

    def __enter__(self) -> None:
        with self._lock:
            self._readers += 1
            if self._filter not in warnings.filters:
                warnings.filterwarnings("ignore", module="PIL")

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers and self._filter in warnings.filters:
                warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_QUIET = _Quiet()
