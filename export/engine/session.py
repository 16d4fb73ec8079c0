"""A network ready to run, in the shape of ONNX Runtime's InferenceSession.

session = Session("network.onnx", threads=2)
[logits] = session.run(None, {"input": x})          x: float32 [batch, channels, height, width]
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import RunError, UsageError
from .fallback import Fallback
from .graph import Port, read_graph
from .partition import Segment, segments

if TYPE_CHECKING:
    from .profile import Record
    from .program import Program
    from .threads import Team

_LOG = logging.getLogger(__name__)
MOST_THREADS = 256
_SLOW_LOAD_S = 3.0


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Name, shape (the batch dimension by name where it is free) and type of an input or output."""

    name: str
    shape: list[int | str | None]
    type: str


class Session:
    """Runs an exported ONNX file. Runs of several Python threads follow one another; outputs depend on no thread count.

    source: path or bytes of an ONNX file. threads: cores that one run may use. tune: measure the kernels of every layer on this machine
    instead of estimating their times; what was measured is kept on disk. fallback: run in ONNX Runtime what the engine does not
    compute (each such part is logged); else such a file is refused.

    Raises UsageError for arguments that make no sense, RunError for a file that is damaged, contradicts itself or is too large.
    """

    def __init__(self, source: Path | str | bytes, threads: int = 1, *, tune: bool = False, fallback: bool = True) -> None:
        if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"threads is a whole number from 1 to {MOST_THREADS}, got {threads!r}")
        started = time.perf_counter()
        self._graph = read_graph(source)
        self._usual, self._fed = _usual(self._graph.inputs), {port.name for port in self._graph.inputs}
        self._threads = threads
        self._parts: list[tuple[Segment, Program | None]] = []
        foreign = next((step for step in self._graph.steps if step.layers is None), None)
        if foreign and not fallback:
            raise RunError(f"{foreign.nodes[0].label} is not computed by the engine ({foreign.reason}); allow fallback=True")
        for segment in segments(self._graph):
            self._parts.append((segment, self._build(segment, tune) if segment.native else None))
        self._closed = False
        self._teams: dict[int, Team] = {}
        self._fallbacks: dict[int, Fallback] = {}
        self._finalizers: list[Any] = []
        self._start()
        seconds = time.perf_counter() - started
        if seconds > _SLOW_LOAD_S:
            _LOG.info("%s: loaded in %.1f s; compiled code is kept for the next time", self._graph.where, seconds)

    def get_inputs(self) -> list[TensorInfo]:
        """What `run` takes."""
        return [_info(port) for port in self._graph.inputs]

    def get_outputs(self) -> list[TensorInfo]:
        """What `run` can return."""
        return [_info(port) for port in self._graph.outputs]

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, NDArray]) -> list[NDArray]:
        """The outputs called `output_names` (None: all) for a batch; UsageError where names, types or shapes do not fit."""
        wanted = self._wanted(output_names)
        batch = self._batch(feeds)
        if self._pid != os.getpid():  # a fork has neither the threads nor, perhaps, an open lock
            self._start()
        with self._lock:
            self._refuse_if_closed()
            tensors = self._run(batch, feeds)
        return [self._output(tensors, name, batch) for name in wanted]

    def profile(self, x: NDArray | Mapping[str, NDArray], *, repeats: int = 30) -> list["Record"]:
        """What every operation takes for the first sample of `x` on one thread; see profile.py."""
        from .profile import profile

        feeds = x if isinstance(x, Mapping) else {self._graph.inputs[0].name: x}
        batch = self._batch(feeds)
        with self._lock:
            self._refuse_if_closed()
            tensors = self._run(batch, feeds)
        records: list[Record] = []
        for segment, program in self._parts:
            if program is not None:
                inputs = [np.ascontiguousarray(tensors[name][:1]) for name in segment.inputs]
                records += profile(program, inputs, repeats)
        return records

    def close(self) -> None:
        """Stop the threads; closing twice does no harm."""
        with self._lock:
            self._closed = True
            for finalizer in self._finalizers:
                finalizer()
            self._teams, self._fallbacks = {}, {}

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Session holds threads and compiled code and cannot be pickled; send the path and make one in the other process")

    def _build(self, segment: Segment, tune: bool) -> "Program":
        from .program import build

        measure = None
        if tune:
            from .tune import measured

            measure = measured
        return build(segment.layers, self._graph.boxes, segment.inputs, segment.outputs, measure)

    def _start(self) -> None:
        from . import threads

        self._pid, self._lock = os.getpid(), threading.Lock()
        self._finalizers = []
        for number, (segment, program) in enumerate(self._parts):
            if program is None:
                self._fallbacks[number] = Fallback(self._graph, segment, self._threads)
            else:
                team = threads.Team(program, self._threads)
                self._teams[number] = team
                self._finalizers.append(weakref.finalize(self, team.close))

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("the session is closed; make a new one")

    def _wanted(self, output_names: Sequence[str] | None) -> list[str]:
        names = [port.name for port in self._graph.outputs]
        if output_names is None:
            return names
        unknown = sorted(set(output_names) - set(names))
        if unknown:
            raise UsageError(f"the network has no output {unknown[0]!r}; it has {', '.join(names)}")
        return list(output_names)

    def _batch(self, feeds: Mapping[str, NDArray]) -> int:
        """The batch size. What is usual is known at a glance: small networks take less time than thorough checks."""
        if self._usual is not None and type(feeds) is dict and len(feeds) == 1:
            name, dims = self._usual
            x = feeds.get(name)
            if type(x) is np.ndarray and x.dtype == np.float32 and x.shape[1:] == dims and x.size:
                return len(x)
        return self._check(feeds)

    def _check(self, feeds: Mapping[str, NDArray]) -> int:
        """The batch size, where everything fits."""
        names = {port.name for port in self._graph.inputs}
        if not isinstance(feeds, Mapping) or set(feeds) != names:
            given = ", ".join(map(repr, feeds)) if isinstance(feeds, Mapping) else type(feeds).__name__
            raise UsageError(f"run takes a dict with an array for each of {', '.join(sorted(names))}, got {given or 'nothing'}")
        batch: int | None = None
        for port in self._graph.inputs:
            array = feeds[port.name]
            if not isinstance(array, np.ndarray) or not array.dtype.isnative or port.type != _TYPE_NAMES.get(array.dtype.str[1:]):
                found = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
                raise UsageError(f"input {port.name!r} is an array of {port.type}, got {found}; convert it")
            fits = array.ndim == len(port.dims) + 1 and all(
                want in (None, size) for want, size in zip(port.dims, array.shape[1:], strict=True)
            )
            if not fits or (isinstance(port.batch, int) and port.batch != array.shape[0]):
                raise UsageError(f"input {port.name!r} has shape {_info(port).shape}, got {list(array.shape)}")
            if port.batch == self._graph.inputs[0].batch:
                if batch not in (None, array.shape[0]):
                    raise UsageError(f"the inputs have different batch sizes: {batch} and, of {port.name!r}, {array.shape[0]}")
                batch = array.shape[0]
        if not batch:
            raise UsageError("the batch is empty; feed at least one sample")
        return batch

    def _run(self, batch: int, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        tensors: dict[str, NDArray] = dict(feeds)
        for number, (segment, program) in enumerate(self._parts):
            if program is None:
                outputs = self._fallbacks[number].run({name: self._named(tensors, name, batch) for name in segment.inputs})
                for name, array in zip(segment.outputs, outputs, strict=True):
                    self._verify(name, array, batch)
                    tensors[name] = array
            else:
                inputs = [np.ascontiguousarray(tensors[name]) for name in segment.inputs]
                results = [np.empty((batch, *program.boxes[name]), np.float32) for name in segment.outputs]
                self._teams[number].run(batch, [*inputs, *results])
                tensors.update(zip(segment.outputs, results, strict=True))
        return tensors

    def _named(self, tensors: Mapping[str, NDArray], name: str, batch: int) -> NDArray:
        """What a name of the file stands for, in its own shape."""
        value = self._graph.values.get(name)
        return tensors[name] if value is None else tensors[value.tensor].reshape(batch, *value.dims)

    def _output(self, tensors: Mapping[str, NDArray], name: str, batch: int) -> NDArray:
        value = self._graph.values.get(name)
        if value is None:
            return self._graph.constants.require(name).copy() if name in self._graph.constants else tensors[name]
        array = tensors[value.tensor].reshape(batch, *value.dims)
        return array.copy() if value.tensor in self._fed else array

    def _verify(self, name: str, array: NDArray, batch: int) -> None:
        """What ONNX Runtime made has the size that layers behind it were planned for."""
        value = self._graph.values.get(name)
        if value is not None and (array.shape != (batch, *value.dims) or array.dtype != np.float32):
            raise RunError(
                f"{self._graph.where}: {name!r} is {array.dtype} {array.shape} in a run, not {(batch, *value.dims)}; export it again"
            )


_TYPE_NAMES = {
    "f4": "tensor(float)",
    "i4": "tensor(int32)",
    "i8": "tensor(int64)",
    "b1": "tensor(bool)",
    "f2": "tensor(float16)",
    "f8": "tensor(double)",
}


def _usual(inputs: Sequence[Port]) -> tuple[str, tuple[int | None, ...]] | None:
    """Name and shape of a sample of the only input, where that is float32, and of any batch size."""
    if len(inputs) > 1 or inputs[0].type != "tensor(float)" or isinstance(inputs[0].batch, int):
        return None
    return inputs[0].name, inputs[0].dims


def _info(port: Port) -> TensorInfo:
    return TensorInfo(name=port.name, shape=[port.batch, *port.dims], type=port.type)
