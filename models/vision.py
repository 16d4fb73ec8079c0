"""The one place where torchvision is imported.

The torchvision wheel brings compiled operators built for a CUDA torch. Beside a CPU-only torch they do not load, and
`import torchvision` then fails because it describes two of them, `torchvision::nms` and `torchvision::qnms`, to the
compiler. Declaring their schemas is enough for models, datasets and transforms, which is all that is needed of it here.
"""

import functools
import importlib
import re
import sys
from typing import Any

import torch

from ..common.errors import RunError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DECLARABLE = ("nms", "qnms")


@functools.cache
def import_torchvision() -> Any:
    """The torchvision package, with its missing operators declared where its compiled extension does not load.

    Raises RunError where it cannot be imported at all.
    """
    for _ in range(1 + len(_DECLARABLE)):
        try:
            return importlib.import_module("torchvision")
        except ImportError as error:
            raise RunError(
                f"cannot import torchvision ({error}); install the torchvision release that matches torch {torch.__version__}"
            ) from error
        except RuntimeError as error:
            operator = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if operator is None or operator[1] not in _DECLARABLE:
                raise RunError(
                    f"cannot import torchvision ({error}); install the release that matches torch {torch.__version__}"
                ) from error
            _library().define(operator[1] + _SCHEMA)
            _forget_half_import()
    raise RunError(f"cannot import torchvision beside torch {torch.__version__}; install the release that matches it")


@functools.cache  # a library takes its operators away when it is collected
def _library() -> torch.library.Library:
    return torch.library.Library("torchvision", "FRAGMENT")


def _forget_half_import() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
