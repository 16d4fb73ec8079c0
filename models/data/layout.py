"""Which folders of ROOT are the parts of a data set, and which the classes, by the names that people give them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fineprune.common.errors import RunError

from .classes import listed

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_OTHER_IMAGES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jfif", ".jpe", ".pbm", ".tga", ".dcm", ".npy", ".npz", ".jxl")
"""Endings that are not read, and are named where class folders hold such files."""
_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validating", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


@dataclass(frozen=True)
class Layout:
    """Folders of the parts train, validation and test (train alone where ROOT holds the classes), and what the user should know."""

    parts: dict[str, Path]
    notes: tuple[str, ...] = ()


def find_parts(root: Path) -> Layout:
    """The parts of `root`; RunError where the names of its folders allow two readings or none.

    With train and validation but no test (ImageNet's layout), the validation folder is the test part.
    """
    folders = subfolders(root)
    found: dict[str, list[str]] = {}
    for name in folders:
        found.setdefault(_NAMES.get(name.lower(), ""), []).append(name)
    others = found.pop("", [])
    for part, names in found.items():
        if len(names) > 1:
            raise RunError(f"{root} has {' and '.join(names)}, which both name the {part} part; keep one, or move the other elsewhere")
    if "train" not in found or (others and _is_class(root / found["train"][0])):
        if found and not others:
            raise RunError(f"{root} has {listed(folders)} but no train folder; give the folder of all parts, or add train")
        _refuse_nested(root, folders)
        return Layout({"train": root})
    parts = {part: root / names[0] for part, names in found.items()}
    notes = [*_left_out(root, parts["train"], others)]
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        notes.append(f"{parts['test'].name}/ is the test part, for there is no test/")
    elif "validation" in parts and parts["validation"].name != "val":
        notes.append(f"validation from {parts['validation'].name}/")
    return Layout(parts, tuple(notes))


def subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`, hidden ones left out; RunError where it cannot be read."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> list[str]:
    """Sorted names of the image files that lie directly in `folder`."""
    return sorted(entry.name for entry in _entries(folder) if is_image(entry.name) and entry.is_file())


def images_below(folder: Path, others: dict[str, int]) -> list[str]:
    """Sorted paths of all image files below `folder`; `others` counts files of image formats that are not read, by ending."""
    found = []
    for where, _, files in os.walk(folder, onerror=_raise):
        for file in files:
            if is_image(file):
                found.append(os.path.join(where, file))  # noqa: PTH118 (Path is twice as slow for 60,000 names)
            elif file.lower().endswith(_OTHER_IMAGES) and not file.startswith("."):
                ending = Path(file).suffix.lower()
                others[ending] = others.get(ending, 0) + 1
    return sorted(found)


def is_image(file: str) -> bool:
    """By its ending."""
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


def _is_class(folder: Path) -> bool:
    """Whether images lie in it and no folders: the vehicle `train` beside bus and car."""
    return not subfolders(folder) and bool(images_in(folder))


def _refuse_nested(root: Path, folders: list[str]) -> None:
    """Folders that only hold the same folders are no classes, unless it is one folder of each (Tiny ImageNet's CLASS/images)."""
    inner = {name: subfolders(root / name) for name in folders}
    if len(folders) == 1 and {_NAMES.get(name.lower()) for name in inner[folders[0]]} & {"train", "test"}:
        below = root / folders[0]
        raise RunError(f"{root} holds only the folder {folders[0]}, and that holds {listed(inner[folders[0]])}; give {below} as ROOT")
    outer = [name for name in folders if inner[name] and not images_in(root / name)]
    if len(outer) < 2 or len(outer) < len(folders):
        return
    common = sorted(set.intersection(*(set(inner[name]) for name in outer)))
    if len(common) > 1 or any(name.lower() in _NAMES for name in common):
        raise RunError(
            f"{root}: {listed(outer)} hold no images but the same folders {listed(common)}, so classes and parts cannot be told apart; "
            "name the parts train, val and test, or move the images into one folder for each class"
        )


def _left_out(root: Path, training: Path, others: list[str]) -> Iterator[str]:
    """A phrase for folders beside the parts that hold images; RunError for one that holds the training part's class folders."""
    classes = set(subfolders(training))
    for name in others:
        shared = sorted(classes & set(subfolders(root / name)))
        if shared:
            raise RunError(
                f"{root} has {training.name} and {name}, which holds {listed(shared)} too, but no part is called so; "
                "rename it to val or test, or move it elsewhere"
            )
        if any(is_image(file) for _, _, files in os.walk(root / name) for file in files):
            yield f"{name}/ is left out (it has none of the classes of {training.name}/)"


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise RunError(f"cannot read {folder}: {error.strerror or error}") from error


def _raise(error: OSError) -> None:
    raise RunError(f"cannot read {error.filename}: {error.strerror or error}") from error
