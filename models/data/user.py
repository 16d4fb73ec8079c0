"""`module.path:factory` and `file.py:factory`: data sets from the user's own code."""

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.errors import RunError, UsageError
from ...common.progress import Progress
from ..user_code import call_factory, describe, load_factory
from .arrays import raw_from_arrays
from .augment import Augmentation
from .decode import choose_plan, to_rgb
from .images import ImageData
from .raw import RawData, check_labels, class_names
from .sources import SampleSource, Source

if TYPE_CHECKING:
    from PIL.Image import Image

_PARTS = {1: ("train",), 2: ("train", "test"), 3: ("train", "validation", "test")}


def read_user(spec: str, image_size: int | None, progress: Progress) -> RawData | ImageData:
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
    if all(isinstance(part, tuple) and len(part) == 2 for part in parts.values()):
        return raw_from_arrays(spec, parts, image_size, None, where=spec)
    wrong = [
        name for name, part in parts.items() if not (hasattr(part, "__getitem__") and isinstance(part, Sized)) or isinstance(part, tuple)
    ]
    if wrong:
        raise UsageError(
            f"{spec}: {', '.join(wrong)} is neither (images, labels) nor a Dataset with a length; all parts have the same form"
        )
    return _from_datasets(spec, parts, image_size, progress)


def _from_datasets(spec: str, parts: dict[str, Any], image_size: int | None, progress: Progress) -> RawData:
    for name, part in parts.items():
        if not len(part):
            raise RunError(f"{spec} ({name}): the data set is empty")
    labels = {name: torch.from_numpy(_labels(spec, name, part)) for name, part in parts.items()}
    classes = class_names(getattr(parts["train"], "classes", None), list(labels.values()), spec)
    first = _image(spec, parts["train"], 0)
    common: dict[str, Any] = {"name": spec, "classes": classes}
    sources: dict[str, Source]
    if isinstance(first, Tensor) and first.is_floating_point():
        if image_size is not None:
            raise UsageError(f"{spec} returns prepared tensors, which are not resized; leave image_size out")
        if first.ndim != 3:
            raise RunError(f"{spec}: a prepared image is a tensor [C,H,W], got shape {tuple(first.shape)}")
        sources = {name: _prepared(spec, part, labels[name]) for name, part in parts.items()}
        channels = first.shape[0]
        shape = (channels, first.shape[1], first.shape[2])
        common |= {"mean": (0.0,) * channels, "std": (1.0,) * channels, "augmentation": Augmentation(crop=False, flip=False)}
    else:
        total = sum(len(part) for part in parts.values())
        plan = choose_plan(lambda i: _pil(spec, parts["train"], i).size, len(parts["train"]), total, image_size)
        sources = {
            name: plan.source(
                lambda i, part=part: _pil(spec, part, i),  # type: ignore[misc]
                labels[name],
                description=f"reading {name} images",
                progress=progress,
            )
            for name, part in parts.items()
        }
        shape = (3, *plan.size)
        common |= {"augmentation": plan.augmentation()}
    return RawData(input_shape=shape, train=sources["train"], validation=sources.get("validation"), test=sources.get("test"), **common)


def _prepared(spec: str, part: Any, labels: Tensor) -> Source:
    return SampleSource(lambda position, _augmentation, _generator: _image(spec, part, position), labels)


def _labels(spec: str, name: str, part: Any) -> NDArray[np.int64]:
    given = getattr(part, "targets", None)
    given = getattr(part, "labels", None) if given is None else given
    if given is None:
        given = [_item(spec, part, i)[1] for i in range(len(part))]
    labels = check_labels(np.asarray(given), f"{spec} ({name})")
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


def _pil(spec: str, part: Any, position: int) -> "Image":
    from PIL import Image

    image = _image(spec, part, position)
    if isinstance(image, Tensor):  # uint8 [C,H,W]
        image = image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise RunError(f"{spec}: sample {position} is an array of {image.dtype} {image.shape}; expected uint8 [H,W] or [H,W,C]")
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if not isinstance(image, Image.Image):
        raise RunError(f"{spec}: sample {position} is a {type(image).__name__}; expected a PIL image, an array or a tensor")
    return to_rgb(image)
