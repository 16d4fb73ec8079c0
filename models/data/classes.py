"""`classes=`: the number, names and order of classes where the data do not say them, or hold only some of a network's classes."""

import copy
import difflib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fineprune.common.errors import RunError, UsageError

from .raw import RawData
from .sources import Source

MOST_CLASSES = 1_000_000
_FILE_BYTES = 16 << 20
_ID = re.compile(r"n\d{8}(?=$|[^0-9A-Za-z])")
"""The class ids of ImageNet, which names begin with: n01440764, n01440764_tench, n01440764 tench, Tinca tinca."""


@dataclass(frozen=True)
class ClassList:
    """Names in the order of labels, and which position every spelling has; `counted` where only a number was given."""

    names: tuple[str, ...]
    positions: Mapping[str, int]
    counted: bool = False

    def position(self, name: str) -> int | None:
        """Of the class `name`: by its name, or by the id that it begins with."""
        found = self.positions.get(name)
        return self.positions.get(_id(name) or name) if found is None else found


def class_list(given: Sequence[str] | int | str | Path | None) -> ClassList | None:
    """From a list, a number, or a file of names: one a line, or JSON: a list, {"0": name}, {"0": [id, name]} or {name: 0}.

    Raises UsageError for a file that is none of these, or a number out of range.
    """
    if given is None:
        return None
    if isinstance(given, (str, Path)) and str(given).isdecimal():
        given = int(str(given)) if len(str(given)) < 10 else MOST_CLASSES + 1
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= MOST_CLASSES:
            raise UsageError(f"classes is at least 1 and at most {MOST_CLASSES:,}, got {given}")
        names = tuple(map(str, range(given)))
        return ClassList(names, {name: i for i, name in enumerate(names)}, counted=True)
    if isinstance(given, (str, Path)):
        return _with_spellings(_read(Path(given)), str(given))
    if not isinstance(given, Iterable) or not all(isinstance(name, (str, int)) for name in given):
        raise UsageError(f"classes is a list of names, a file of them, or their number, got {given!r:.80}")
    return _with_spellings([[str(name)] for name in given], "classes")


def with_classes(raw: RawData, wanted: ClassList | None) -> RawData:
    """`raw` with the classes `wanted`: labels of named classes become positions in the list, bare numbers are positions already.

    Raises UsageError for a class of the data that the list lacks.
    """
    if wanted is None or wanted.names == raw.classes:
        return raw
    if not raw.named or raw.classes == wanted.names[: len(raw.classes)]:
        if len(wanted.names) < len(raw.classes):
            raise UsageError(f"{raw.name}: {len(wanted.names)} class names, but labels go up to {len(raw.classes) - 1}")
        return replace(raw, classes=wanted.names)
    if wanted.counted:
        raise UsageError(
            f"classes={len(wanted.names)}: a number does not say the place of the {len(raw.classes)} named classes of {raw.name}; "
            "give a file of all names"
        )
    places = [wanted.position(name) for name in raw.classes]
    unknown = [name for name, place in zip(raw.classes, places, strict=True) if place is None]
    if unknown:
        close = difflib.get_close_matches(unknown[0], wanted.names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; the names must agree"
        raise UsageError(f"classes lacks {listed(unknown)} of {raw.name}{hint}")
    if len(set(places)) < len(places):
        raise UsageError(f"classes: two of {listed(raw.classes)} have the same place in the list; the names must tell them apart")
    table = torch.tensor(places, dtype=torch.int64)
    sources = {part: _relabelled(getattr(raw, part), table) for part in ("train", "validation", "test")}
    return replace(raw, classes=wanted.names, **sources)  # type: ignore[arg-type]


def class_names(names: Sequence[str] | None, labels: list[Tensor], where: str, wanted: ClassList | None) -> tuple[tuple[str, ...], bool]:
    """The given names, else "0", "1", ... up to the largest label; and whether names were given.

    Raises RunError where the names are too few, or where nobody gave names and most of the labels up to the largest do not occur.
    """
    used = torch.unique(torch.cat(labels))
    if int(used[0]) < 0:  # images without labels
        return () if wanted is None else wanted.names, False
    count = 1 + int(used.max())
    if names is not None:
        if len(names) < count:
            raise RunError(f"{where}: {len(names)} class names, but labels go up to {count - 1}")
        return tuple(map(str, names)), True
    if wanted is None and 2 * len(used) < count:
        raise RunError(
            f"{where}: labels go up to {count - 1}, but only {len(used)} of them occur; number the classes from 0 to {len(used) - 1}, or "
            "give classes= (their number, or a file of names)"
        )
    if wanted is not None and count > len(wanted.names):
        raise UsageError(f"{where}: {len(wanted.names)} class names, but labels go up to {count - 1}")
    return tuple(map(str, range(count))), False


def listed(names: Iterable[str], shown: int = 3) -> str:
    """The first few of `names` for a message of one line."""
    every = list(names)
    return ", ".join(f"{' '.join(name.split()):.60}" for name in every[:shown]) + (f", ... ({len(every)})" if len(every) > shown else "")


def _relabelled(source: Source | None, table: Tensor) -> Source | None:
    if source is None:
        return None
    other = copy.copy(source)
    other.labels = table[source.labels]
    return other


def _with_spellings(rows: Sequence[Sequence[str]], where: str) -> ClassList:
    """A spelling that two classes share (ImageNet has two cranes) names neither."""
    if not 1 <= len(rows) <= MOST_CLASSES:
        raise UsageError(f"{where} holds {len(rows)} class names; expected 1 to {MOST_CLASSES:,}")
    spellings = [{*row, *filter(None, map(_id, row))} for row in rows]
    shared = {name for name, count in Counter(itertools.chain.from_iterable(spellings)).items() if count > 1}
    positions = {name: place for place, names in enumerate(spellings) for name in names - shared}
    return ClassList(tuple(row[0] for row in rows), positions)


def _id(name: str) -> str | None:
    found = _ID.match(name)
    return found.group() if found else None


def _read(path: Path) -> list[list[str]]:
    if not path.is_file():
        raise UsageError(f"classes: the file {path} does not exist; give a file of names (one a line, or JSON) or their number")
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise ValueError(f"more than {_FILE_BYTES >> 20} MiB")
        text = path.read_text("utf-8-sig")
        rows = _rows(json.loads(text)) if path.suffix.lower() == ".json" else [[line.strip()] for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"classes: {path} is no list of class names ({' '.join(str(error).split())[:120]})") from error
    return rows


def _rows(content: Any) -> list[list[str]]:
    """Spellings by label, of what a JSON file holds."""
    if isinstance(content, dict) and content and all(type(value) is int for value in content.values()):
        content = {str(place): name for name, place in content.items()}
    if isinstance(content, dict):
        if set(content) != set(map(str, range(len(content)))):
            raise ValueError('a table has the keys "0", "1", ..., each once')
        content = [content[str(place)] for place in range(len(content))]
    rows = [[row] if isinstance(row, str) else row for row in content] if isinstance(content, list) else [content]
    if not all(isinstance(row, list) and row and all(isinstance(name, str) for name in row) for row in rows):
        raise ValueError('expected ["name", ...] or {"0": "name", ...}')
    return rows
