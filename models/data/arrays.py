"""`npz:FILE` and arrays in memory."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...common.errors import RunError, UsageError
from ...common.progress import Progress
from .raw import RawData, array_source, class_names, defaults_for
from .sources import ArraySource

Arrays = tuple[Any, Any]
"""(images, labels), NumPy arrays or tensors."""

_KEYS = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels")),
    "validation": (("val_images", "val_labels"), ("validation_images", "validation_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}
_CLASS_KEYS = ("class_names", "classes")


def read_npz(file: str | None, image_size: int | None, progress: Progress) -> RawData:
    """Keys train_images, train_labels, test_images, test_labels, optionally val_images, val_labels, class_names; or images, labels.

    Also x_train, y_train, x_test, y_test. Nothing is unpickled. Raises UsageError where there is no such file, RunError for
    a broken one and for the contents that `array_source` refuses.
    """
    if not file or not Path(file).is_file():
        raise UsageError(f"npz: the file {file!r} does not exist; write npz:FILE")
    content = _load(Path(file))
    parts = {}
    for part, candidates in _KEYS.items():
        keys = next((pair for pair in candidates if set(pair) <= set(content)), None)
        if keys is not None:
            parts[part] = (content[keys[0]], content[keys[1]])
    if "train" not in parts:
        held = ", ".join(content) or "nothing"
        raise RunError(f"{file} holds {held}; expected train_images and train_labels (and test_images, test_labels), or images and labels")
    names = next(([str(name) for name in content[key]] for key in _CLASS_KEYS if key in content), None)
    return raw_from_arrays(Path(file).stem, parts, image_size, names, where=file)


def raw_from_arrays(name: str, parts: dict[str, Arrays], image_size: int | None, classes: Sequence[str] | None, *, where: str) -> RawData:
    """`parts` has (images, labels) under train and perhaps validation and test."""
    sources: dict[str, ArraySource] = {}
    shapes = {}
    for part, (images, labels) in parts.items():
        sources[part], shapes[part] = array_source(images, labels, f"{where} ({part})")
    shape = shapes["train"]
    if len(set(shapes.values())) > 1:
        raise RunError(f"{where}: its parts hold images of different shapes: {', '.join(f'{p} {s}' for p, s in shapes.items())}")
    if image_size is not None and shape[1:] != (image_size, image_size):
        sources = {part: source.resized(image_size) for part, source in sources.items()}
        shape = (shape[0], image_size, image_size)
    labels_of: list[Tensor] = [source.labels for source in sources.values()]
    return RawData(
        name=name,
        classes=class_names(list(classes) if classes is not None else None, labels_of, where),
        input_shape=shape,
        train=sources["train"],
        validation=sources.get("validation"),
        test=sources.get("test"),
        **defaults_for(shape[0], (shape[1], shape[2])),
    )


def _load(path: Path) -> dict[str, NDArray]:
    wanted = {key for candidates in _KEYS.values() for pair in candidates for key in pair} | set(_CLASS_KEYS)
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array; save images and labels together with numpy.savez")
            return {key: archive[key] if key in wanted else np.empty(0) for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise RunError(f"{path} holds Python objects, which are not loaded because they can run code; save plain arrays") from error
        raise RunError(f"{path} is truncated or not an npz file ({' '.join(str(error).split())[:120]}); write it again") from error
