"""`imagefolder:ROOT`: one folder per class under ROOT/train, ROOT/test and ROOT/val, or directly under ROOT; or a file of labels."""

import re
from pathlib import Path

import torch
from torch import Tensor

from fineprune.common.errors import RunError, UsageError

from .classes import class_names, listed
from .decode import choose_plan
from .files import open_file, read_header
from .labelled import read_labels
from .layout import SUFFIXES, Layout, find_parts, images_below, images_in, subfolders
from .raw import RawData, Reading

Listing = tuple[list[str], Tensor]
Found = tuple[dict[str, Listing], list[str] | None, list[str]]
"""Paths and labels of every part, the names of classes (None where labels are numbers), and notes."""

UNLABELLED = "none"
"""labels= of images that have none, whatever their folders are called."""

_FLAT = re.compile(r"(n\d{8})_")
"""How ImageNet's files begin where they lie in one folder: with the id of their class."""


def read_folder(root: str | None, reading: Reading) -> RawData:
    """Classes are the sorted folder names of the training part; images of any mode become RGB.

    The parts are train, val (valid, validation) and test in any case; with train and val but no test (ImageNet's layout) val is the test
    part. With `reading.labels`, a file says the label of each image; without class folders, files named nXXXXXXXX_... have the id's class,
    and others have none, as all images below ROOT have with labels "none".
    Raises UsageError where ROOT is missing, RunError where a part holds no images, a class has none to train on, another part has a class
    of its own, or the names of folders can be read in two ways.
    """
    if not root or not Path(root).is_dir():
        raise UsageError(
            f"imagefolder: the folder {root!r} does not exist; write imagefolder:ROOT with class folders in ROOT/train and ROOT/test"
        )
    folder = Path(root)
    listings, classes, notes = _found(folder, reading)
    names, named = class_names(classes, [labels for _, labels in listings.values()], str(folder), reading.classes)
    paths = listings["train"][0]
    plan = choose_plan(lambda i: read_header(paths[i]), len(paths), sum(len(found) for found, _ in listings.values()), reading, str(folder))
    sources = {
        part: plan.source(
            lambda i, found=found: open_file(found[i], plan.white),  # type: ignore[misc]
            labels,
            description=f"decoding {part} images",
            progress=reading.progress,
        )
        for part, (found, labels) in listings.items()
    }
    facts = plan.facts
    return RawData(
        name=folder.resolve().name,
        classes=names,
        named=named,
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources.get("test"),
        **{**facts, "notes": (*notes, *facts["notes"])},
    )


def _found(folder: Path, reading: Reading) -> Found:
    """What the folder, or a file of labels, says."""
    if reading.labels == UNLABELLED or (reading.labels is None and _is_bare(folder)):
        return _unlabelled(folder)
    return _labelled(folder, reading) if reading.labels is not None else _listed(folder, reading)


def _is_bare(folder: Path) -> bool:
    """Whether ROOT holds images, no folders, and no ids of classes in the names."""
    files = images_in(folder)
    return bool(files) and not subfolders(folder) and not any(map(_FLAT.match, files))


def _unlabelled(folder: Path) -> Found:
    """All images below ROOT, of class -1."""
    paths = images_below(folder, {})
    if not paths:
        raise RunError(f"{folder} holds no images ({' '.join(SUFFIXES)})")
    return {"train": (paths, torch.full((len(paths),), -1))}, [], ["the images have no labels"]


def _labelled(folder: Path, reading: Reading) -> Found:
    """A file beside the images is found by its name alone."""
    file = Path(str(reading.labels))
    paths, labels, names, notes = read_labels(file if file.is_file() or not (folder / file).is_file() else folder / file, folder)
    return {"train": (paths, labels)}, names, notes


def _listed(folder: Path, reading: Reading) -> tuple[dict[str, Listing], list[str], list[str]]:
    """Paths and labels of every part, the names of classes, and notes."""
    flat = _flat(folder)
    if flat is not None:
        return flat
    layout = find_parts(folder)
    training = layout.parts["train"]
    classes = subfolders(training)
    if reading.classes is not None:  # which says what classes there are, so that no part has to hold all of them
        classes = sorted(set(classes).union(*(subfolders(part) for part in layout.parts.values())))
    others: dict[str, int] = {}
    complete = reading.classes is None
    listings = {name: _list(part, classes, others, complete=complete and part == training) for name, part in layout.parts.items()}
    return listings, classes, [*layout.notes, *_notes(layout, classes, others)]


def _flat(folder: Path) -> tuple[dict[str, Listing], list[str], list[str]] | None:
    """Where ROOT holds no folders but images named nXXXXXXXX_...: a class for every id."""
    files = images_in(folder)
    ids = [found.group(1) for name in files if (found := _FLAT.match(name))]
    if not files or len(ids) < len(files) or subfolders(folder):
        return None
    classes = sorted(set(ids))
    places = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([places[name] for name in ids])
    return {"train": ([str(folder / name) for name in files], labels)}, classes, ["classes are the ids that file names begin with"]


def _list(folder: Path, classes: list[str], others: dict[str, int], *, complete: bool) -> Listing:
    """Sorted image paths and their labels; `complete` asks for images of every class."""
    unknown = sorted(set(subfolders(folder)) - set(classes))
    if unknown:
        raise RunError(f"{folder} has classes that the training part has not: {listed(unknown)}; the class folders must agree")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = images_below(folder / name, others) if (folder / name).is_dir() else []
        if complete and not found:
            raise RunError(f"{folder / name} holds no images ({' '.join(SUFFIXES)}); remove the class folder or fill it")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise RunError(f"{folder} holds no images in class folders ({' '.join(SUFFIXES)}); expected CLASS/IMAGE files in it")
    return paths, torch.tensor(labels, dtype=torch.int64)


def _notes(layout: Layout, classes: list[str], others: dict[str, int]) -> list[str]:
    loose = sum(len(images_in(part)) for part in layout.parts.values())
    numbers = [name for name in classes if name.isdecimal()]
    disordered = len(numbers) == len(classes) and sorted(numbers, key=int) != numbers
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
    return [
        *([f"{loose} images outside class folders are left out"] if loose else []),
        *([f"files of other kinds are left out: {kinds}"] if others else []),
        *(["class folders are numbers but sorted as text (10 before 2, as torchvision does)"] if disordered else []),
        *([f"all images are of one class, {classes[0]}"] if len(classes) == 1 else []),
    ]
