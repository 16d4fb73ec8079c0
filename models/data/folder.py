"""`imagefolder:ROOT`: one folder per class under ROOT/train, ROOT/test and ROOT/val, or directly under ROOT."""

import os
from pathlib import Path

import torch
from torch import Tensor

from ...common.errors import RunError, UsageError
from ...common.progress import Progress
from .decode import Plan, choose_plan, file_size, open_file
from .raw import RawData
from .sources import Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")

Listing = tuple[list[str], Tensor]


def read_folder(root: str | None, image_size: int | None, progress: Progress) -> RawData:
    """Classes are the sorted folder names of the training part; images of any mode become RGB.

    With train/ and val/ but no test/ (ImageNet's layout) val/ is the test part. Raises UsageError where ROOT is missing,
    RunError where a part holds no images, a class has none to train on, or another part has a class of its own.
    """
    if not root or not Path(root).is_dir():
        raise UsageError(
            f"imagefolder: the folder {root!r} does not exist; write imagefolder:ROOT with class folders in ROOT/train and ROOT/test"
        )
    folder = Path(root)
    divided = (folder / "train").is_dir()
    parts = {name: folder / name for name in ("test", "val") if divided and (folder / name).is_dir()}
    if "val" in parts and "test" not in parts:
        parts["test"] = parts.pop("val")
    training = folder / "train" if divided else folder
    classes = _class_folders(training)
    listings = {"train": _list(training, classes, complete=True)}
    listings |= {name: _list(part, classes, complete=False) for name, part in parts.items()}
    paths = listings["train"][0]
    plan = choose_plan(lambda i: file_size(paths[i]), len(paths), sum(len(listing[0]) for listing in listings.values()), image_size)
    sources = {name: _source(plan, listing, f"decoding {name} images", progress) for name, listing in listings.items()}
    return RawData(
        name=folder.resolve().name,
        classes=tuple(classes),
        input_shape=(3, *plan.size),
        train=sources["train"],
        validation=sources.get("val"),
        test=sources.get("test"),
        augmentation=plan.augmentation(),
    )


def _source(plan: Plan, listing: Listing, description: str, progress: Progress) -> Source:
    paths, labels = listing
    return plan.source(lambda i: open_file(paths[i]), labels, description=description, progress=progress)


def _class_folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise RunError(f"cannot read {folder}: {error.strerror or error}") from error


def _list(folder: Path, classes: list[str], *, complete: bool) -> Listing:
    """Sorted image paths and their labels; `complete` asks for images of every class."""
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise RunError(f"{folder} has classes that the training part has not: {', '.join(unknown[:3])}; the class folders must agree")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            os.path.join(where, file)  # noqa: PTH118 (Path is twice as slow for 60,000 names)
            for where, _, files in os.walk(folder / name)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        if complete and not found:
            raise RunError(f"{folder / name} holds no images ({' '.join(SUFFIXES)}); remove the class folder or fill it")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise RunError(f"{folder} holds no images in class folders ({' '.join(SUFFIXES)}); expected CLASS/IMAGE files in it")
    return paths, torch.tensor(labels, dtype=torch.int64)
