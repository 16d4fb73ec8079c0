"""A file of labels beside a folder of images: CSV, TSV or text with a path and a label in each line."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from fineprune.common.errors import RunError, UsageError

from .layout import images_below

_FILE_BYTES = 256 << 20
_LONGEST_NUMBER = 18


def read_labels(file: Path, root: Path) -> tuple[list[str], Tensor, list[str] | None, list[str]]:
    """Paths of images below `root`, their labels int64 [N], the names of classes (None where labels are numbers), and notes.

    A line is PATH,LABEL (or with tabs, or blanks in a .txt file); further columns and a first line of titles are passed over. PATH is
    relative to `root`; a file's name alone, with or without its ending, does where only one file has it. Raises UsageError where there is
    no such file, RunError, with the line's number, for a line that names no image or has no label.
    """
    if not file.is_file():
        raise UsageError(f"labels: the file {file} does not exist; give a CSV file of paths and labels")
    known = _known(images_below(root, {}), root)
    paths: list[str] = []
    given: list[str] = []
    for number, row in _rows(file):
        path = known.get(PurePosixPath(row[0].strip().replace("\\", "/")).as_posix()) if row else None
        if path is None and not paths and number == 1:
            continue  # titles
        if path is None or len(row) < 2 or not row[1].strip():
            raise RunError(f"{file}, line {number}: expected the path of an image below {root} and a label, got {','.join(row):.100}")
        paths.append(path)
        given.append(row[1].strip())
    if not paths:
        raise RunError(f"{file} names no image below {root}; expected lines such as images/0001.jpg,cat")
    unread = len(set(known.values()) - set(paths))
    notes = [f"{unread} images have no line in {file.name} and are left out"] if unread else []
    if all(label.isdecimal() and len(label) <= _LONGEST_NUMBER for label in given):
        return paths, torch.tensor([int(label) for label in given]), None, notes
    names = sorted(set(given))
    places = {name: place for place, name in enumerate(names)}
    return paths, torch.tensor([places[label] for label in given]), names, notes


def _known(paths: Iterable[str], root: Path) -> dict[str, str]:
    """Every spelling that names one image only -> its path."""
    spellings = [(path, _spellings(PurePosixPath(os.path.relpath(path, root).replace(os.sep, "/")))) for path in paths]
    count = Counter(name for _, names in spellings for name in names)
    return {name: path for path, names in spellings for name in names if count[name] == 1}


def _spellings(path: PurePosixPath) -> set[str]:
    return {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, its columns), empty lines left out."""
    try:
        if file.stat().st_size > _FILE_BYTES:
            raise ValueError(f"more than {_FILE_BYTES >> 20} MiB")
        lines = file.read_text("utf-8-sig").splitlines()
        first = next((line for line in lines if line.strip()), "")
        mark = next((mark for mark in "\t,;" if mark in first), None)
        rows = (line.rsplit(None, 1) for line in lines) if mark is None else csv.reader(lines, delimiter=mark)
        yield from ((number, row) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(
            f"{file} is no file of labels ({' '.join(str(error).split())[:120]}); expected lines of a path and a label"
        ) from error
