"""The one place where torchvision is imported, and where it is made ready to be imported by the user's own code.

The torchvision wheel brings compiled operators built for a CUDA torch. Beside a CPU-only torch they do not load, and
`import torchvision` then fails because it describes two of them, `torchvision::nms` and `torchvision::qnms`, to the
compiler. Declaring their schemas is enough for models, datasets and transforms, which is all that is needed of it here.
"""

import functools
import importlib
import importlib.abc
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from fineprune.common.errors import RunError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DECLARABLE = ("nms", "qnms")


def import_torchvision() -> Any:
    """The torchvision package, with its missing operators declared where its compiled extension does not load.

    Raises RunError where it cannot be imported at all.
    """
    prepare_torchvision()
    try:
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise RunError(
            f"cannot import torchvision ({error}); install the torchvision release that matches torch {torch.__version__}"
        ) from error


def prepare_torchvision() -> None:
    """See to it that whoever imports torchvision from now on (a user's file, timm) gets it prepared; nothing is imported yet."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torchvision as the other finders do, and has it executed by `_execute`."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Execute torchvision, once more for each operator that is found missing and can be declared."""
    for _ in range(len(_DECLARABLE)):
        try:
            return execute(module)
        except RuntimeError as error:
            operator = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if operator is None or operator[1] not in _DECLARABLE:
                raise
            _library().define(operator[1] + _SCHEMA)
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
    return execute(module)


@functools.cache  # a library takes its operators away when it is collected
def _library() -> torch.library.Library:
    return torch.library.Library("torchvision", "FRAGMENT")
