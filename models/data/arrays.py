"""`npz:FILE` and arrays in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError, UsageError

from .classes import class_names, listed
from .npz import load_arrays
from .pixels import BYTE, Range, Scale, joined, range_of, scale_of
from .raw import RawData, Reading, array_source, as_array, defaults_for
from .sources import ArraySource

Arrays = tuple[Any, Any]
"""(images, labels), NumPy arrays or tensors."""

_KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels")),
    "validation": (("val_images", "val_labels"), ("validation_images", "validation_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
_CLASS_KEYS = ("class_names", "classes")


def read_npz(file: str | None, reading: Reading) -> RawData:
    """Keys train_images, train_labels, test_images, test_labels, optionally val_images, val_labels, class_names; or images, labels.

    Also x_train, y_train, x_test, y_test. Nothing is unpickled. Raises UsageError where there is no such file, RunError for
    a broken one and for the contents that `raw_from_arrays` refuses.
    """
    if not file or not Path(file).is_file():
        raise UsageError(f"npz: the file {file!r} does not exist; write npz:FILE")
    content = load_arrays(Path(file), {key for pairs in _KEYS.values() for pair in pairs for key in pair} | set(_CLASS_KEYS))
    parts = {}
    for part, candidates in _KEYS.items():
        keys = next((pair for pair in candidates if set(pair) <= set(content)), None)
        if keys is not None:
            parts[part] = (content[keys[0]], content[keys[1]])
    if "train" not in parts:
        held = listed(content, 8) or "nothing"
        raise RunError(f"{file} holds {held}; expected train_images and train_labels (and test_images, test_labels), or images and labels")
    names = next((_names(content[key], file) for key in _CLASS_KEYS if key in content), None)
    return raw_from_arrays(Path(file).stem, parts, reading, names, where=file)


def raw_from_arrays(name: str, parts: dict[str, Arrays], reading: Reading, classes: Sequence[str] | None, *, where: str) -> RawData:
    """`parts` has (images, labels) under train and perhaps validation and test.

    Raises RunError, naming `where` and the part, for shapes, types, ranges of pixels and labels that have no sensible reading.
    """
    images = {part: as_array(pair[0], f"{where} ({part}): images") for part, pair in parts.items()}
    scales = _scales(images, reading, where)
    sources: dict[str, ArraySource] = {}
    shapes = {}
    for part, (_, labels) in parts.items():
        white = scales[images[part].dtype.kind == "f"].white
        sources[part], shapes[part] = array_source(images[part], labels, f"{where} ({part})", white)
    shape = shapes["train"]
    if len(set(shapes.values())) > 1:
        raise RunError(f"{where}: its parts hold images of different shapes: {', '.join(f'{p} {s}' for p, s in shapes.items())}")
    size = reading.image_size
    if size is not None and shape[1:] != (size, size):
        sources = {part: source.resized(size) for part, source in sources.items()}
        shape = (shape[0], size, size)
    names, named = class_names(classes, [source.labels for source in sources.values()], where, reading.classes)
    return RawData(
        name=name,
        classes=names,
        input_shape=shape,
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources.get("test"),
        named=named,
        scaled=all(scale.scaled for scale in scales.values()),
        white=_fact(scales),
        notes=tuple(scale.note for scale in scales.values() if scale.note),
        **defaults_for(shape[0], (shape[1], shape[2])),
    )


def _scales(images: dict[str, NDArray], reading: Reading, where: str) -> dict[bool, Scale]:
    """What white is, for the parts of floating-point numbers (True) and for those of integers (False), each over all its parts."""
    ranges: dict[bool, list[Range]] = {}
    bits = 8
    for part, pixels in images.items():
        if pixels.dtype.kind not in "biuf":
            raise RunError(f"{where} ({part}): pixels are integers of 0 to 255 or floating-point, got {pixels.dtype}")
        ranges.setdefault(pixels.dtype.kind == "f", []).append(range_of(pixels, str(pixels.dtype), f"{where} ({part})"))
        if pixels.dtype == np.uint16 and ranges[False][-1].high > BYTE:
            bits = 16
    if len(ranges) > 1 and reading.units.white is not None:
        raise UsageError(f"{where}: some parts hold integers and some floating-point numbers; white= needs all of one kind")
    return {kind: scale_of(joined(found), reading.units, floating=kind, bits=bits) for kind, found in ranges.items()}


def _fact(scales: dict[bool, Scale]) -> float | None:
    """The white that makes the same pixels of the same arrays again; None where nothing needs to be said."""
    if len(scales) > 1:
        return None
    ((floating, scale),) = scales.items()
    return scale.white if floating or scale.white != BYTE else None


def _names(names: NDArray, file: str) -> list[str]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise RunError(f"{file}: class names are a list of text, got {names.dtype} of shape {names.shape}")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]
