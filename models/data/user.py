"""`module.path:factory` and `file.py:factory`: data sets from the user's own code."""

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fineprune.common.errors import RunError, UsageError

from ..user_code import call_factory, describe, load_factory
from .arrays import raw_from_arrays
from .augment import Augmentation
from .classes import class_names
from .decode import choose_plan
from .files import Header, header_of, named_errors, to_rgb
from .images import ImageData
from .pixels import range_of
from .raw import RawData, Reading, as_array, check_labels
from .sources import SampleSource, Source

if TYPE_CHECKING:
    from PIL.Image import Image

_PARTS = {1: ("train",), 2: ("train", "test"), 3: ("train", "validation", "test")}


def read_user(spec: str, reading: Reading) -> RawData | ImageData:
    """What the factory returns, called without arguments: an ImageData, or (train, test) or (train, validation, test).

    A part is a pair (images, labels) of arrays, or a torch Dataset of (image, label) whose image is a PIL image or uint8
    [H,W], [H,W,C] array, which are treated as an image folder's, or a float tensor [C,H,W], which is taken as prepared:
    neither scaled, normalised nor augmented here. Labels come from `targets` or `labels` where the Dataset has them.
    Raises UsageError for another result, RunError where the user's code fails.
    """
    result = call_factory(spec, load_factory(spec))
    if isinstance(result, ImageData):
        return result.with_spec(spec)
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        raise UsageError(f"{spec} returned {type(result).__name__}; return an ImageData, (train, test) or (train, validation, test)")
    parts = dict(zip(_PARTS[len(result)], result, strict=True))
    if all(isinstance(part, np.ndarray | Tensor) for part in result):
        raise UsageError(f"{spec} returned {len(result)} arrays; return (train, test), each of them a pair (images, labels) or a Dataset")
    if all(isinstance(part, tuple) and len(part) == 2 for part in parts.values()):
        return raw_from_arrays(spec, parts, reading, None, where=spec)
    wrong = [
        name for name, part in parts.items() if not (hasattr(part, "__getitem__") and isinstance(part, Sized)) or isinstance(part, tuple)
    ]
    if wrong:
        raise UsageError(
            f"{spec}: {', '.join(wrong)} is neither (images, labels) nor a Dataset with a length; all parts have the same form"
        )
    return _from_datasets(spec, parts, reading)


def _from_datasets(spec: str, parts: dict[str, Any], reading: Reading) -> RawData:
    for name, part in parts.items():
        if not _length(f"{spec} ({name})", part):
            raise RunError(f"{spec} ({name}): the data set is empty")
    labels = {name: torch.from_numpy(_labels(spec, name, part)) for name, part in parts.items()}
    given = getattr(parts["train"], "classes", None)
    classes, named = class_names(given if isinstance(given, (list, tuple)) else None, list(labels.values()), spec, reading.classes)
    first = _image(spec, parts["train"], 0)
    if isinstance(first, Tensor) and first.is_floating_point():
        sources, facts = _prepared_parts(spec, parts, labels, first, reading)
    else:
        sources, facts = _picture_parts(spec, parts, labels, reading)
    return RawData(
        name=spec,
        classes=classes,
        named=named,
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources.get("test"),
        **facts,
    )


def _prepared_parts(
    spec: str, parts: dict[str, Any], labels: dict[str, Tensor], first: Tensor, reading: Reading
) -> tuple[dict[str, Source], dict[str, Any]]:
    """Sources of tensors that the user has scaled and normalised, and fields of RawData."""
    asked = [name for name, value in (("image_size", reading.image_size), ("crop", reading.crop), ("white", reading.units.white)) if value]
    if asked:
        raise UsageError(f"{spec} returns prepared tensors, which are neither scaled nor cropped; leave {' and '.join(asked)} out")
    if first.ndim != 3 or 0 in first.shape:
        raise RunError(f"{spec}: a prepared image is a tensor [C,H,W], got shape {tuple(first.shape)}")
    found = range_of(as_array(first, spec), "tensors", spec)
    notes = [f"prepared {found}: are they normalised? Nothing is done to them here"] if found.whole else []
    sources = {name: _prepared(spec, part, labels[name]) for name, part in parts.items()}
    channels = first.shape[0]
    return sources, {
        "input_shape": tuple(first.shape),
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "scaled": False,
        "notes": tuple(notes),
        "augmentation": Augmentation(crop=False, flip=False),
    }


def _picture_parts(
    spec: str, parts: dict[str, Any], labels: dict[str, Tensor], reading: Reading
) -> tuple[dict[str, Source], dict[str, Any]]:
    """Sources of images that are treated like files, and fields of RawData."""

    def header(position: int) -> Header:
        image, where = _picture(spec, parts["train"], position), f"{spec}: sample {position}"
        with named_errors(where):
            return header_of(image, where)

    plan = choose_plan(header, len(parts["train"]), sum(len(part) for part in parts.values()), reading, spec)
    sources = {
        name: plan.source(
            lambda i, part=part: _pil(spec, part, i, plan.white),  # type: ignore[misc]
            labels[name],
            description=f"reading {name} images",
            progress=reading.progress,
        )
        for name, part in parts.items()
    }
    return sources, plan.facts


def _prepared(spec: str, part: Any, labels: Tensor) -> Source:
    return SampleSource(lambda position, _augmentation, _generator: _image(spec, part, position), labels)


def _labels(spec: str, name: str, part: Any) -> NDArray[np.int64]:
    given = getattr(part, "targets", None)
    given = getattr(part, "labels", None) if given is None else given
    if given is None:
        given = [_item(spec, part, i)[1] for i in range(len(part))]
    labels = check_labels(given, f"{spec} ({name})")
    if len(labels) != len(part):
        raise RunError(f"{spec} ({name}): {len(part)} images but {len(labels)} labels")
    return labels


def _item(spec: str, part: Any, position: int) -> Any:
    try:
        image, label = part[position]
    except Exception as error:
        raise RunError(f"{spec}: sample {position} failed: {describe(error)}; a sample is a pair (image, label)") from error
    return image, label


def _image(spec: str, part: Any, position: int) -> Any:
    return _item(spec, part, position)[0]


def _length(where: str, part: Any) -> int:
    try:
        return len(part)
    except Exception as error:
        raise RunError(f"{where}: its length failed: {describe(error)}") from error


def _picture(spec: str, part: Any, position: int) -> "Image":
    """The sample's image as Pillow's, of any mode."""
    from PIL import Image

    where = f"{spec}: sample {position}"
    image = _image(spec, part, position)
    if isinstance(image, Tensor):  # uint8 [C,H,W]
        image = as_array(image.permute(1, 2, 0) if image.ndim == 3 else image, where)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise RunError(f"{where} is an array of {image.dtype} {image.shape}; expected uint8 [H,W] or [H,W,C] with 1, 3 or 4 channels")
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if not isinstance(image, Image.Image):
        raise RunError(f"{where} is a {type(image).__name__}; expected a PIL image, an array or a tensor")
    return image


def _pil(spec: str, part: Any, position: int, white: float | None) -> "Image":
    image, where = _picture(spec, part, position), f"{spec}: sample {position}"
    with named_errors(where):
        return to_rgb(image, white, where)
