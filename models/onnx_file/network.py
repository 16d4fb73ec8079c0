"""The network of an ONNX graph: its layers under their names, and the calls of a forward pass in the order of the file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call. Values have numbers: 0 is the input."""

    call: Callable[..., Any] | str
    """A function, or the name of a layer."""
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    """Several for a call that returns a tuple."""
    last: tuple[int, ...] = ()
    """Values that no later step reads."""


class OnnxNetwork(nn.Module):
    """x [N,C,H,W] -> the output of the graph. Parameters and constants are those of its layers and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: tuple[Step, ...] = ()
        self._constants: dict[int, str] = {}
        """Names of buffers."""
        self._output = 0

    def forward(self, x: Tensor) -> Tensor:
        """All steps in order; a value is let go after its last use."""
        values: dict[int, Tensor] = {0: x, **{number: self.get_buffer(name) for number, name in self._constants.items()}}
        for step in self._steps:
            call = self.get_submodule(step.call) if isinstance(step.call, str) else step.call
            result = call(*(values[number] for number in step.inputs))
            for number in step.last:
                del values[number]
            values.update(zip(step.outputs, result if isinstance(result, tuple | list) else (result,), strict=True))
        return values[self._output]

    def place(self, name: str, part: nn.Module | Tensor) -> str:
        """Put a layer or a constant under the dotted `name`, or under the next that is free, which is returned."""
        *folders, last = name.split(".")
        where: nn.Module = self
        path = []
        for folder in folders:
            while hasattr(where, folder) and type(where._modules.get(folder)) is not nn.Module:  # a layer, or a method of a module
                folder += "_"
            if folder not in where._modules:
                where.add_module(folder, nn.Module())
            where = where.get_submodule(folder)
            path.append(folder)
        while hasattr(where, last):
            last += "_"
        if isinstance(part, nn.Module):
            where.add_module(last, part)
        else:
            where.register_buffer(last, part)
        return ".".join([*path, last])
