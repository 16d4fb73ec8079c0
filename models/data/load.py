"""Data sets by spec string: one table of readers, then splitting and normalisation alike for all."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import Tensor

from fineprune.common.errors import UsageError
from fineprune.common.progress import Lines, Progress

from ..naming import meant_as_data
from ..user_code import is_user_spec
from .arrays import Arrays, raw_from_arrays, read_npz
from .builtin import read_cifar10, read_cifar100, read_digits, read_fashion_mnist
from .channels import with_channels
from .classes import class_list, with_classes
from .decode import LARGEST_SIDE
from .folder import read_folder
from .images import ImageData, Split
from .pixels import Units
from .raw import RawData, Reading
from .sources import Source
from .splits import divide
from .user import read_user

Reader = Callable[[str | None, Reading], RawData]


@dataclass(frozen=True)
class Kind:
    """One row of the table; `place` is what may follow the colon, None for nothing; `takes` names further arguments of `load_data`."""

    reader: Reader
    place: str | None
    description: str
    takes: frozenset[str] = frozenset()


TABLE: Mapping[str, Kind] = {
    "digits": Kind(read_digits, None, "1,797 scanned digits from scikit-learn, 1x32x32"),
    "cifar10": Kind(read_cifar10, "ROOT", "CIFAR-10 in torchvision's layout, downloaded where ROOT lacks it"),
    "cifar100": Kind(read_cifar100, "ROOT", "CIFAR-100, likewise"),
    "fashion-mnist": Kind(read_fashion_mnist, "ROOT", "Fashion-MNIST: IDX files in ROOT, or downloaded, 1x28x28"),
    "imagefolder": Kind(
        read_folder, "ROOT", "class folders in ROOT/train, ROOT/test and ROOT/val, or in ROOT", frozenset(("crop", "white", "labels"))
    ),
    "npz": Kind(read_npz, "FILE", "arrays train_images, train_labels, test_images, test_labels, or images, labels", frozenset(("white",))),
}
"""Name -> reader and description."""


def load_data(
    spec: str,
    *,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | None = None,
    crop: float | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white: float | None = None,
    classes: Sequence[str] | int | str | Path | None = None,
    labels: Path | str | None = None,
    progress: Progress = Lines(),  # noqa: B008 - stateless
) -> ImageData:
    """The data set that `spec` names: a row of `TABLE`, `module.path:factory` or `file.py:factory`.

    validation: fraction of the training samples, in [0,1), taken as validation split where the source has none; seed: of
    that choice, stratified by class. A source without test samples gives a fixed fifth of its own, whatever the seed.
    image_size: height and width in pixels, None for the source's own. crop: of image files larger than 96 pixels, the central part of
    the shorter side, in (0,1], that is kept where nothing is random (0.875). channels: 1 or 3, where the source has the other.
    mean, std: per channel (or one for all), of pixels in [0,1]; None for the source's own (ImageNet's for RGB images).
    white: what pixels of arrays and of images of more than 8 bits are divided by. classes: their names in the order of labels (a list,
    a file, or their number), of which the data may hold some. labels: of an image folder, a file of paths and labels, or "none": images
    without labels are of class -1, and serve what asks for none.
    Images are decoded when a split is first used; progress reports on that, and says in a line what was understood of odd data.
    Raises UsageError for an unknown spec, a missing folder or file, or a value out of range; RunError for broken content.
    """
    _check(validation=validation, seed=seed, image_size=image_size, crop=crop, channels=channels, white=white)
    mean, std = _numbers("mean", mean), _numbers("std", std)
    reading = Reading(
        image_size=image_size,
        crop=crop,
        units=_units(white, mean, std),
        classes=class_list(classes),
        labels=None if labels is None else str(labels),
        progress=progress,
    )
    raw = _read(spec, reading)
    if isinstance(raw, ImageData):
        return _unchanged(raw, reading, channels=channels, mean=mean, std=std)
    data = assemble(raw, spec, Choices(validation=validation, seed=seed, channels=channels, mean=mean, std=std), reading)
    _tell(data, progress)
    return data


def data_from_arrays(
    name: str,
    train: Arrays,
    test: Arrays | None = None,
    *,
    validation: Arrays | float = 0.1,
    classes: Sequence[str] | int | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    white: float | None = None,
    progress: Progress = Lines(),  # noqa: B008 - stateless
) -> ImageData:
    """A data set of (images, labels) pairs in memory; arguments and errors as in `load_data`.

    images: [N,H,W], [N,H,W,C] or [N,C,H,W], uint8 of 0-255 or float of 0-1 (any float where mean=[0] and std=[1] say that they
    are prepared, or mean and std are in their units); labels: integers [N].
    """
    parts = {"train": train}
    if test is not None:
        parts["test"] = test
    fraction = 0.0
    if isinstance(validation, tuple):
        parts["validation"] = validation
    else:
        fraction = validation
    _check(validation=fraction, seed=seed, white=white)
    mean, std = _numbers("mean", mean), _numbers("std", std)
    reading = Reading(units=_units(white, mean, std), classes=class_list(classes))
    raw = raw_from_arrays(name, parts, reading, None, where=name)
    data = assemble(raw, name, Choices(validation=fraction, seed=seed, mean=mean, std=std), reading)
    _tell(data, progress)
    return data


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What `assemble` does with any source, as in `load_data`."""

    validation: float
    seed: int
    channels: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def assemble(raw: RawData, spec: str, choices: Choices, reading: Reading) -> ImageData:
    """Classes, channels, splits and normalisation around what a reader found."""
    raw = with_channels(with_classes(raw, reading.classes), choices.channels)
    channels = raw.input_shape[0]
    means = _per_channel("mean", choices.mean, raw.mean, channels)
    stds = _per_channel("std", choices.std, raw.std, channels)
    if min(stds) <= 0:
        raise UsageError(f"std is above 0 in every channel, got {stds}")
    if raw.scaled and max(map(abs, means)) > 1:
        raise UsageError(f"mean and std are of pixels of 0 to 1, got mean {means}; divide both by 255")
    division = divide(raw, choices.validation, choices.seed)

    def split(source: Source, positions: Tensor) -> Split:
        return Split(source, positions, mean=means, std=stds, augmentation=raw.augmentation)

    return ImageData(
        spec=spec,
        name=raw.name,
        classes=raw.classes,
        input_shape=raw.input_shape,
        mean=means,
        std=stds,
        train=split(raw.train, division.train),
        validation=split(raw.validation or raw.train, division.validation),
        test=split(raw.test or raw.train, division.test),
        augmentation=raw.augmentation,
        seed=choices.seed,
        validation_fraction=choices.validation,
        image_size=reading.image_size,
        crop=raw.crop,
        white=raw.white,
        channels=choices.channels,
        labels=reading.labels,
        notes=(*raw.notes, *division.notes),
    )


def _check(**given: Any) -> None:
    """UsageError for an argument of `load_data` (None where it is not given) of another type or out of its range."""
    for name, value in given.items():
        if value is None:
            continue
        kind, what, holds = _RANGES[name]
        if not isinstance(value, kind) or isinstance(value, bool) or not holds(value):
            raise UsageError(f"{name} is {what}, got {value!r:.80}")


_RANGES: Mapping[str, tuple[type, str, Callable[[Any], bool]]] = {
    "validation": (Real, "a fraction in [0,1)", lambda value: 0 <= value < 1),
    "seed": (Integral, "a whole number of at least 0", lambda value: value >= 0),
    "image_size": (Integral, f"at least 1 pixel and at most {LARGEST_SIDE}", lambda value: 1 <= value <= LARGEST_SIDE),
    "crop": (Real, "the part of the shorter side that is kept, in (0,1]", lambda value: 0 < value <= 1),
    "channels": (Integral, "1 (grey) or 3 (colour)", lambda value: value in (1, 3)),
    "white": (Real, "a number above 0", lambda value: 0 < value < math.inf),
}
"""Type, range in words, and range of the arguments of `load_data`."""


def _numbers(name: str, values: Iterable[float] | None) -> tuple[float, ...] | None:
    try:
        return None if values is None else tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is one number per channel, got {values!r:.80}") from None


def _units(white: float | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> Units:
    given = [abs(float(value)) for value in (*(mean or ()), *(std or ()))]
    prepared = mean is not None and std is not None and not any(mean) and all(value == 1 for value in std)
    return Units(white=white, prepared=prepared, beyond_one=max(given, default=0.0) > 1)


def is_user_data(spec: str) -> bool:
    """Whether `spec` names code of the user's own (and not, say, `imagefolder:photos`)."""
    return spec.partition(":")[0] not in TABLE and is_user_spec(spec)


def _read(spec: str, reading: Reading) -> RawData | ImageData:
    name, colon, place = spec.partition(":")
    if name in TABLE:
        kind = TABLE[name]
        if place and kind.place is None:
            raise UsageError(f"{name} takes nothing after a colon, got {spec!r}")
        if colon and not place:
            raise UsageError(f"{spec!r} names no {kind.place or 'place'} after its colon")
        _check_taken(name, kind.takes, reading)
        return kind.reader(place or None, reading)
    if is_user_spec(spec):
        _check_taken(spec, frozenset(("crop", "white")), reading)
        return read_user(spec, reading)
    close = difflib.get_close_matches(name, TABLE, n=2)
    hint = meant_as_data(spec) or (f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(_forms())}")
    raise UsageError(f"unknown data {spec!r}: {hint} (also module.path:factory, file.py:factory)")


def _check_taken(name: str, takes: frozenset[str], reading: Reading) -> None:
    given = {"crop": reading.crop, "white": reading.units.white, "labels": reading.labels}
    wrong = [what for what, value in given.items() if value is not None and what not in takes]
    if wrong:
        raise UsageError(f"{' and '.join(wrong)} cannot be set for {name}; leave {'it' if len(wrong) == 1 else 'them'} out")


def _unchanged(
    data: ImageData, reading: Reading, *, channels: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ImageData:
    """A factory's finished ImageData has its own normalisation and size: asking for others is an error, not ignored."""
    asked = {
        "image_size": reading.image_size,
        "mean": mean and tuple(mean),
        "std": std and tuple(std),
        "crop": reading.crop,
        "white": reading.units.white,
        "channels": channels,
        "classes": reading.classes and reading.classes.names,
    }
    differing = [name for name, value in asked.items() if value is not None and value != getattr(data, name)]
    if differing:
        raise UsageError(f"{data.spec} returns a finished ImageData; set {' and '.join(differing)} in the factory, not here")
    return data


def _tell(data: ImageData, progress: Progress) -> None:
    """One line for data that are odd in some way, none for others."""
    if data.notes:
        some = ", ".join(f"{name:.60}" for name in data.classes[:3]) + ", ..." * (len(data.classes) > 3)
        classes = f"{len(data.classes)} classes ({some})" if data.classes else "no classes"
        sizes = ", ".join(f"{name} {len(getattr(data, name))}" for name in ("train", "validation", "test"))
        progress.log(f"data {data.name}: {classes}, {sizes}; {'; '.join(data.notes)}")


def _forms() -> list[str]:
    return [f"{name}:{kind.place}" if kind.place else name for name, kind in TABLE.items()]


def _per_channel(what: str, given: Sequence[float] | None, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    values: Any = default if given is None else tuple(float(v) for v in given)
    values = values * channels if len(values) == 1 else values
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise UsageError(f"{what} has one finite value per channel ({channels}) or one for all, got {given}")
    return values
