"""Data sets by spec string: one table of readers, then splitting and normalisation alike for all."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UsageError
from ...common.progress import Progress, Silent
from ..user_code import is_user_spec
from .arrays import Arrays, raw_from_arrays, read_npz
from .builtin import read_cifar10, read_cifar100, read_digits, read_fashion_mnist
from .folder import read_folder
from .images import ImageData, Split
from .raw import RawData
from .sources import Source
from .splits import TEST_FRACTION, TEST_SEED, stratified
from .user import read_user

Reader = Callable[[str | None, int | None, Progress], RawData]


@dataclass(frozen=True)
class Kind:
    """One row of the table; `place` is what may follow the colon, None for nothing."""

    reader: Reader
    place: str | None
    description: str


TABLE: Mapping[str, Kind] = {
    "digits": Kind(read_digits, None, "1,797 scanned digits from scikit-learn, 1x32x32"),
    "cifar10": Kind(read_cifar10, "ROOT", "CIFAR-10 in torchvision's layout, downloaded where ROOT lacks it"),
    "cifar100": Kind(read_cifar100, "ROOT", "CIFAR-100, likewise"),
    "fashion-mnist": Kind(read_fashion_mnist, "ROOT", "Fashion-MNIST: IDX files in ROOT, or downloaded, 1x28x28"),
    "imagefolder": Kind(read_folder, "ROOT", "class folders in ROOT/train, ROOT/test and ROOT/val, or in ROOT"),
    "npz": Kind(read_npz, "FILE", "arrays train_images, train_labels, test_images, test_labels, or images, labels"),
}
"""Name -> reader and description."""


def load_data(
    spec: str,
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    progress: Progress = Silent(),  # noqa: B008 - stateless
) -> ImageData:
    """The data set that `spec` names: a row of `TABLE`, `module.path:factory` or `file.py:factory`.

    validation: fraction of the training samples, in [0,1), taken as validation split where the source has none; seed: of
    that choice, stratified by class. A source without test samples gives a fixed fifth of its own, whatever the seed.
    image_size: height and width in pixels, None for the source's own. mean, std: per channel (or one for all), of pixels
    in [0,1]; None for the source's own (ImageNet's for RGB images).
    Images are decoded when a split is first used; progress reports on that.
    Raises UsageError for an unknown spec, a missing folder or file, or a value out of range; RunError for broken content.
    """
    if not 0 <= validation < 1:
        raise UsageError(f"validation is a fraction in [0,1), got {validation}")
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size is at least 1 pixel, got {image_size}")
    raw = _read(spec, image_size, progress)
    if isinstance(raw, ImageData):
        return _unchanged(raw, image_size=image_size, mean=mean, std=std)
    return assemble(raw, spec, validation=validation, seed=seed, image_size=image_size, mean=mean, std=std)


def data_from_arrays(
    name: str,
    train: Arrays,
    test: Arrays | None = None,
    *,
    validation: Arrays | float = 0.1,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageData:
    """A data set of (images, labels) pairs in memory; arguments and errors as in `load_data`.

    images: [N,H,W], [N,H,W,C] or [N,C,H,W], uint8 of 0-255 or float; labels: integers [N].
    """
    parts = {"train": train}
    if test is not None:
        parts["test"] = test
    fraction = 0.0
    if isinstance(validation, tuple):
        parts["validation"] = validation
    else:
        fraction = validation
    if not 0 <= fraction < 1:
        raise UsageError(f"validation is a fraction in [0,1), got {fraction}")
    raw = raw_from_arrays(name, parts, None, classes, where=name)
    return assemble(raw, name, validation=fraction, seed=seed, image_size=None, mean=mean, std=std)


def assemble(
    raw: RawData,
    spec: str,
    *,
    validation: float,
    seed: int,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> ImageData:
    """Splits and normalisation around what a reader found."""
    channels = raw.input_shape[0]
    means = _per_channel("mean", mean, raw.mean, channels)
    stds = _per_channel("std", std, raw.std, channels)
    if min(stds) <= 0:
        raise UsageError(f"std is above 0 in every channel, got {stds}")

    def split(source: Source, positions: Tensor | None = None) -> Split:
        chosen = torch.arange(len(source.labels)) if positions is None else positions
        return Split(source, chosen, mean=means, std=stds, augmentation=raw.augmentation)

    learning = torch.arange(len(raw.train.labels))
    if raw.test is None:
        learning, held_out = stratified(raw.train.labels, TEST_FRACTION, TEST_SEED)
        test = split(raw.train, held_out)
    else:
        test = split(raw.test)
    if raw.validation is None:
        kept, chosen = stratified(raw.train.labels[learning], validation, seed)
        learning, checking = learning[kept], split(raw.train, learning[chosen])
    else:
        checking = split(raw.validation)
    return ImageData(
        spec=spec,
        name=raw.name,
        classes=raw.classes,
        input_shape=raw.input_shape,
        mean=means,
        std=stds,
        train=split(raw.train, learning),
        validation=checking,
        test=test,
        augmentation=raw.augmentation,
        seed=seed,
        validation_fraction=validation,
        image_size=image_size,
    )


def _read(spec: str, image_size: int | None, progress: Progress) -> RawData | ImageData:
    name, colon, place = spec.partition(":")
    if name in TABLE:
        kind = TABLE[name]
        if place and kind.place is None:
            raise UsageError(f"{name} takes nothing after a colon, got {spec!r}")
        if colon and not place:
            raise UsageError(f"{spec!r} names no {kind.place or 'place'} after its colon")
        return kind.reader(place or None, image_size, progress)
    if is_user_spec(spec):
        return read_user(spec, image_size, progress)
    close = difflib.get_close_matches(name, TABLE, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(_forms())}"
    raise UsageError(f"unknown data {spec!r}: {hint} (also module.path:factory, file.py:factory)")


def _unchanged(data: ImageData, *, image_size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageData:
    """A factory's finished ImageData has its own normalisation and size: asking for others is an error, not ignored."""
    asked = {"image_size": image_size, "mean": mean and tuple(mean), "std": std and tuple(std)}
    differing = [name for name, value in asked.items() if value is not None and value != getattr(data, name)]
    if differing:
        raise UsageError(f"{data.spec} returns a finished ImageData; set {' and '.join(differing)} in the factory, not here")
    return data


def _forms() -> list[str]:
    return [f"{name}:{kind.place}" if kind.place else name for name, kind in TABLE.items()]


def _per_channel(what: str, given: Sequence[float] | None, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    values: Any = default if given is None else tuple(float(v) for v in given)
    values = values * channels if len(values) == 1 else values
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise UsageError(f"{what} has one finite value per channel ({channels}) or one for all, got {given}")
    return values
