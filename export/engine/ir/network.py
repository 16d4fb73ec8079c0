"""What stages hand on: layers over named tensors of one sample, each [channels, height, width], and what the stages may ask a layer.

An operation is one file of ops/: a subclass of `Layer` that says what these ask, the operators of a file that it is made of (`onnx`),
and its compiled functions (`kernel`). See "Adding an operation" in the README.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from . import costs
from .conv import Margins, Op, View
from .dtypes import FLOAT32, DType
from .kernel import Kernel

if TYPE_CHECKING:
    from ..reader.attributes import Node
    from ..reader.graph import Reader

Box = tuple[int, int, int]
"""channels, height, width"""
Order = NDArray[np.int64]
"""Channels in another order: channel k is channel order[k] of the file."""

NHWC, NCHW = "NHWC", "NCHW"
LAYOUTS = (NHWC, NCHW)


class Channels(Enum):
    """In which order a layer makes its channels."""

    FREE = "in any order"
    FIRST = "in the order of its first input, in which its other inputs have to come"
    JOINED = "in the orders of its inputs, one after another"
    FILE = "in the order of the file, in which its inputs have to come"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A kernel that can run a layer with its output in `layout`; `any_input`: its first input may be in either."""

    kernel: str
    layout: str
    any_input: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Piece:
    """`size` elements of input number `source`, from `start` on by `step` (each channel, row, column), go to `to` on by `to_step`."""

    source: int
    size: Box
    start: Box = (0, 0, 0)
    step: Box = (1, 1, 1)
    to: Box = (0, 0, 0)
    to_step: Box = (1, 1, 1)


class Wish(Protocol):
    """The order of its channels that a layer with Channels.FREE would like best (None: the file's), and what orders cost it."""

    order: Order | None

    def seconds(self, order: Order | None) -> float:
        """Expected time, less that in the file's order."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Reads `inputs`, writes `output`; `name` is the file's. What else is here is asked by the stages; subclasses say otherwise."""

    name: str
    inputs: tuple[str, ...]
    output: str

    kernel_name: ClassVar[str] = ""
    """The kernel that runs it, where there is nothing to choose."""
    layouts: ClassVar[tuple[str, ...]] = LAYOUTS
    """Of its output."""
    any_input: ClassVar[bool] = False
    """Whether its inputs may be in any layout; else they are in that of its output."""
    easy: ClassVar[bool] = False
    """Whether it only moves numbers or maps them one by one: between nodes of ONNX Runtime it is not worth a part of its own."""
    in_place: ClassVar[bool] = False
    """Whether its output may be written over its first input."""
    movable: ClassVar[bool] = False
    """Whether its output may be made as a part of another tensor."""

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The kernels to choose from; empty: `kernel_name`, in all `layouts`."""
        return ()

    @property
    def margins(self) -> Margins:
        """Zeros that it needs around its first input."""
        return 0, 0, 0, 0

    @property
    def alone(self) -> bool:
        """Whether what lies around its output is not zero: then no other tensor may lie there."""
        return False

    @property
    def tied(self) -> bool:
        """Whether it needs the rows of its inputs and of its output at the same distance."""
        return False

    @property
    def pieces_of_inputs(self) -> Sequence[Piece] | None:
        """What its output is put together of, where it computes nothing."""
        return None

    @property
    def reads(self) -> Sequence[str]:
        """The inputs, as often as they are read."""
        pieces = self.pieces_of_inputs
        return self.inputs if pieces is None else [self.inputs[piece.source] for piece in pieces]

    @property
    def macs(self) -> int:
        """Multiply-adds a sample of what is kept; 0: nobody counts them."""
        return 0

    @property
    def macs_dense(self) -> int:
        """Multiply-adds a sample if nothing were dropped."""
        return 0

    @property
    def limit(self) -> str:
        """What keeps it from the speed that its dropped multiply-adds promise, in a few words, where its numbers tell."""
        return ""

    @property
    def fingerprint(self) -> bytes:
        """What the times of its candidates depend on."""
        return b""

    def dtype(self, inputs: Sequence[DType]) -> DType | None:
        """The type of the output, of inputs of these types; None where the engine cannot compute with them."""
        return FLOAT32 if all(dtype == FLOAT32 for dtype in inputs) else None

    @property
    def seconds_elsewhere(self) -> float | None:
        """Expected time in ONNX Runtime, which computes what masks drop as well: infinity where it cannot. None: about as long as here."""
        return None

    @property
    def alike(self) -> bool:
        """Whether ONNX Runtime makes the same integers of it, bit by bit."""
        return True

    @property
    def products(self) -> tuple[int, int]:
        """(multiply-adds of the words that it computes for a sample, those without masks), of a convolution of integers."""
        return 0, 0

    def seconds_on_grids(self, box: Box) -> float:
        """Expected time in ONNX Runtime within a network on grids, which goes there as a whole, as far as it is known; box: size of its
        output. Infinity where it cannot run there, or would make other integers on some CPUs."""
        return 0.0

    def seconds(self, box: Box, layout: str) -> float:
        """Expected time of its kernel beyond that in the other layout; box: size of its output. Channels together make whole vectors."""
        return 0.0 if layout == NHWC else costs.seconds({"nchw.number": prod(box)})

    def channels(self, boxes: Mapping[str, Box]) -> Channels:
        """The order of its channels; boxes: sizes of all tensors."""
        return Channels.FILE

    def wish(self, seconds: Callable[[Any], float]) -> Wish:
        """Of a layer with Channels.FREE; seconds: expected time of such a layer."""
        raise NotImplementedError(f"{type(self).__name__} makes its channels in any order, and has no wish")

    def ordered(self, x: Order | None, y: Order | None) -> Self:
        """The layer that reads the channels of its first input in order x and makes those of its output in order y."""
        return self

    def plan(self, kernel: str, *views: View) -> list[Op]:
        """Operations; views: of the inputs, and of the output."""
        raise NotImplementedError(f"{type(self).__name__} has no plan")


def same(inputs: Sequence[DType]) -> DType | None:
    """The type of what is made of numbers of the inputs as they are: theirs, where all have one."""
    return inputs[0] if len(set(inputs)) == 1 else None


def typed(layers: Sequence[Layer], inputs: Mapping[str, DType]) -> dict[str, DType]:
    """The types of all tensors, of those of the inputs; TypeError where a layer cannot compute with what it reads."""
    types = dict(inputs)
    for layer in layers:
        made = layer.dtype([types[name] for name in layer.inputs])
        if made is None:
            read = ", ".join(f"{name!r} of {types[name]}" for name in layer.inputs)
            raise TypeError(f"{type(layer).__name__} {layer.name!r} cannot compute with {read}")
        types[layer.output] = made
    return types


Handler = Callable[["Node", "Reader"], Sequence[Layer]]
"""Makes layers of a node, and checks all that it uses: RunError where the file contradicts itself, UnsupportedError where ONNX
Runtime has to run the node."""

HANDLERS: dict[tuple[str, str], Handler] = {}
"""(domain, operator) -> handler."""
SEQUENCES: dict[tuple[str, ...], Callable[..., Sequence[Layer]]] = {}
"""Operators that follow each other, each read by the next alone -> handler of their nodes together."""
KERNELS: dict[str, Kernel] = {}


def onnx(*operators: str, domain: str = "") -> Callable[[Handler], Handler]:
    """Registers the handler of these operators."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            _add(HANDLERS, (domain, operator), handler)
        return handler

    return register


def onnx_sequence(*operators: str) -> Callable[[Callable[..., Sequence[Layer]]], Callable[..., Sequence[Layer]]]:
    """Registers the handler of nodes that are one operation together."""

    def register(handler: Callable[..., Sequence[Layer]]) -> Callable[..., Sequence[Layer]]:
        _add(SEQUENCES, operators, handler)
        return handler

    return register


def kernel(name: str) -> Callable[[Callable[..., None]], Kernel]:
    """Makes a kernel of a function of the signature in ir/conv.py: it runs the operations that are planned for `name`."""

    def register(run: Callable[..., None]) -> Kernel:
        made = Kernel(name, run)
        _add(KERNELS, name, made)
        return made

    return register


def _add(registry: dict[Any, Any], key: Any, value: Any) -> None:
    if key in registry:
        raise ValueError(f"{key!r} is declared twice, by {registry[key]} and {value}")
    registry[key] = value
