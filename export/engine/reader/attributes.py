"""A node's attributes and inputs, checked: what the handlers of operations (ops/) ask."""

from typing import Any

from .protobuf import ContradictionError, check_names

LARGEST = 1 << 16
"""Of a height, width, stride, pad, dilation or kernel side: larger ones are damage."""


class UnsupportedError(Exception):
    """The engine does not compute this node, and why; ONNX Runtime may."""


class Node:
    """One node of the file with its attributes as Python values."""

    def __init__(self, proto: Any, where: str) -> None:
        import onnx

        check_names((proto.domain, proto.op_type, *proto.input, *proto.output), where)
        self.proto, self.op_type = proto, proto.op_type
        self.domain = "" if proto.domain == "ai.onnx" else proto.domain
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        given = proto.name if isinstance(proto.name, str) else ""
        kind = proto.op_type if proto.op_type.isidentifier() else repr(proto.op_type)
        self.label = f"{where}: {kind} {given or (self.outputs or ['?'])[0]!r}"
        self.name = given or (self.outputs or [""])[0]
        try:
            self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
        except ValueError as error:
            raise self.broken(f"has a damaged attribute ({error})") from error

    def broken(self, what: str) -> ContradictionError:
        """The error for a file that contradicts itself."""
        return ContradictionError(f"{self.label} {what}; the file is damaged, export it again")

    def require(self, condition: bool, what: str) -> None:
        """ContradictionError "<node> <what>" unless `condition`."""
        if not condition:
            raise self.broken(what)

    def support(self, condition: bool, why_not: str) -> None:
        """UnsupportedError unless `condition`."""
        if not condition:
            raise UnsupportedError(why_not)

    def arity(self, low: int, high: int, outputs: int = 1) -> None:
        """ContradictionError unless there are so many inputs; UnsupportedError where more outputs are in use."""
        self.require(low <= len(self.inputs) <= high and len(self.outputs) >= 1, f"has {len(self.inputs)} inputs")
        self.support(sum(map(bool, self.outputs)) <= outputs, "further outputs")

    def input(self, index: int) -> str:
        """Name of an input, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        self.require(type(value) is int, f"has {name}={value!r}, not a whole number")
        return int(value)

    def axis(self, name: str, default: int, rank: int) -> int:
        """An axis of a tensor of `rank` dimensions, counted from the first."""
        axis = self.integer(name, default)
        self.require(-rank <= axis < rank, f"has {name}={axis}, but {rank} dimensions")
        return axis % rank

    def number(self, name: str, default: float) -> float:
        """A finite float attribute."""
        value = self.attributes.get(name, default)
        self.require(isinstance(value, int | float) and value - value == 0, f"has {name}={value!r}, not a number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attributes.get(name, default)
        self.require(isinstance(value, str | bytes), f"has {name}={value!r}, not text")
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def sizes(self, name: str, default: tuple[int, ...] | None, least: int) -> tuple[int, ...]:
        """A list of integers from `least` to LARGEST, as long as `default` (None: it has to be there, with two)."""
        value = self.attributes.get(name, default)
        good = isinstance(value, list | tuple) and all(type(v) is int and least <= v <= LARGEST for v in value)
        length = len(default) if default is not None else 2
        self.require(good, f"has {name}={value!r}, not integers from {least} to {LARGEST}")
        self.support(len(value) == length, f"{name} of length {len(value)}")  # type: ignore[arg-type]
        return tuple(value)  # type: ignore[arg-type]

    def pads(self) -> tuple[int, int, int, int]:
        """top, left, bottom, right."""
        automatic = self.text("auto_pad", "NOTSET") or "NOTSET"
        self.support(automatic in ("NOTSET", "VALID"), f"auto_pad {automatic}")
        top, left, bottom, right = self.sizes("pads", (0, 0, 0, 0), 0)
        return (top, left, bottom, right) if automatic == "NOTSET" else (0, 0, 0, 0)

    def pair(self, name: str) -> tuple[int, int]:
        """Two positive integers, (1, 1) where they are left out."""
        first, second = self.sizes(name, (1, 1), 1)
        return first, second
