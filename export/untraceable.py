"""Why torch cannot export a network: one line with the cause, the line of the network's code, and what to do instead.

torch says it in a hundred lines, most of them its own graph; they stay in the error that is chained (`--debug`).
"""

import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fineprune.common.errors import said_by
from fineprune.common.inputs import Inputs, answer

_NOT_THE_NETWORK = tuple(
    str(folder) for folder in (Path(torch.__file__).parent, Path(__file__).parent, Path(__file__).parents[1] / "compressor")
)
_NO_TRANSLATION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'\)>")


def cause(error: BaseException, model: nn.Module, x: Inputs) -> str:
    """What stopped the export of `model` (a batch: x) with `error`, where, and the remedy."""
    root = _root(error)
    if untranslated := _NO_TRANSLATION.search(str(root)):
        name, overload = untranslated.groups()
        where = _line_that_calls(f"{name}.{overload}", model, x)
        return f"ONNX has no translation of {name}{where}; compute the same from other operations"
    where = _line_of([frame for frame, _ in traceback.walk_tb(root.__traceback__)])
    if type(root).__name__ in ("GuardOnDataDependentSymNode", "DataDependentOutputException"):
        return f"its forward depends on values of a tensor{where}; use torch.where and tensors in place of if, int(), item() and tolist()"
    return f"{first_line(root).split('. ')[0]}{where}; its forward must be traceable by torch.export and treat the batch size as a variable"


def first_line(error: BaseException) -> str:
    """The first line of what first went wrong."""
    return said_by(_root(error)).rstrip(".")


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _line_of(frames: Iterable[Any]) -> str:
    """The last of `frames`, outer ones first, that is code of the network, in brackets; empty where there is none."""
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith((*_NOT_THE_NETWORK, "<"))]
    if not own:
        return ""
    summary = traceback.extract_stack(own[-1], limit=1)[0]
    return f" ({Path(summary.filename).name}:{summary.lineno}: `{summary.line}`)" if summary.line else ""


def _line_that_calls(operator: str, model: nn.Module, x: Inputs) -> str:
    """Where the network calls the operator torch knows as `operator` ("aten.median.dim"): it runs once more and is watched."""
    found: list[str] = []
    outside = len(list(traceback.walk_stack(None)))

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not found and str(func) == operator:
                frames = [frame for frame, _ in traceback.walk_stack(None)]
                found.append(_line_of(frames[-outside - 1 :: -1]))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        answer(model, x.clone())
    return found[0] if found else ""


def written_weight(model: nn.Module, x: Inputs) -> str:
    """The name of a parameter that the forward writes to behind torch's back (`weight.data.clamp_()`), at which the exporter crashes."""
    names = {parameter.untyped_storage().data_ptr(): name for name, parameter in model.named_parameters() if parameter.numel()}
    written = ""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal written
            for argument, value in zip(func._schema.arguments, args, strict=False):
                changed = argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor)
                if changed and not isinstance(value, nn.Parameter):  # as itself, under no_grad, it is exported
                    written = written or names.get(value.untyped_storage().data_ptr(), "")
            return func(*args, **(kwargs or {}))

    with Watch(), torch.no_grad():
        answer(model, x.clone())
    return written
