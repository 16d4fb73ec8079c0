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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError, UsageError

from ..ir.dtypes import DType
from ..ir.program import Foreign, Part, Program
from ..reader.ports import Interface, Port
from ..reader.protobuf import ContradictionError, read_content
from . import plans
from .fallback import Fallback
from .sizes import Sizes
from .threads import Team

if TYPE_CHECKING:
    from ..passes.instructions import Instructions
    from ..passes.partition import Segment
    from ..reader.graph import Graph
    from .profile import Record

_LOG = logging.getLogger(__name__)
MOST_THREADS = 256
_SLOW_LOAD_S = 3.0
Fallbacks = Literal[True, False, "needed"]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Name, shape (the batch dimension by name where it is free) and type of an input or output."""

    name: str
    shape: list[int | str | None]
    type: str


class Session:
    """Runs an exported ONNX file. Runs of several Python threads follow one another; outputs depend on no thread count,
    but for the last bits of what ONNX Runtime computes. Images of any size have a plan for each size that comes (sizes.py).

    source: path or bytes of an ONNX file. threads: cores that one run may use. tune: measure the kernels of every layer on this machine
    instead of estimating their times. What was compiled, planned and measured is kept on disk. fallback: run in ONNX Runtime what the
    engine does not compute, or computes more slowly than a dense network (each such part is logged); "needed": only what it does not
    compute; False: such a file is refused.

    Raises UsageError for arguments that make no sense, RunError for a file that is damaged, contradicts itself or is too large.
    """

    def __init__(self, source: Path | str | bytes, threads: int = 1, *, tune: bool = False, fallback: Fallbacks = True) -> None:
        if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
            raise UsageError(f"threads is a whole number from 1 to {MOST_THREADS}, got {threads!r}")
        if not isinstance(fallback, bool) and fallback != "needed":
            raise UsageError(f"fallback is True, False or 'needed', got {fallback!r}")
        started = time.perf_counter()
        self._source, self._threads, self._closed = source, threads, False
        self._sizes: Sizes | None = None
        content, where = read_content(source)
        found = plans.find(content, where, tune=tune, fallback=fallback)
        if found is not None:
            self._recall(*found)
        else:
            self._plan(content, where, tune, fallback)
        seconds = time.perf_counter() - started
        if seconds > _SLOW_LOAD_S:
            _LOG.info("%s: loaded in %.1f s; compiled code is kept for the next time", self._seen.where, seconds)

    def get_inputs(self) -> list[TensorInfo]:
        """What `run` takes."""
        return [_info(port) for port in self._seen.inputs]

    def get_outputs(self) -> list[TensorInfo]:
        """What `run` can return."""
        return [_info(port) for port in self._seen.outputs]

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, NDArray]) -> list[NDArray]:
        """The outputs called `output_names` (None: all) for a batch; UsageError where names, types or shapes do not fit."""
        wanted = self._wanted(output_names)
        batch = self._batch(feeds)
        if self._pid != os.getpid():  # a fork has neither the threads nor, perhaps, an open lock
            self._start()
        with self._lock:
            self._refuse_if_closed()
            if self._sizes is not None:
                return self._sizes.session(feeds).run(output_names, feeds)
            try:
                tensors = self._run(batch, feeds)
            except ContradictionError as error:
                self._stop()
                self._open_whole(error)
                tensors = self._run(batch, feeds)
        return [self._output(tensors, name, batch) for name in wanted]

    def profile(self, x: NDArray | Mapping[str, NDArray], *, repeats: int = 30) -> list["Record"]:
        """What every operation takes for the first sample of `x` on one thread; see profile.py."""
        from .profile import profile

        feeds = x if isinstance(x, Mapping) else {self._seen.inputs[0].name: x}
        batch = self._batch(feeds)
        with self._lock:
            self._refuse_if_closed()
            if self._sizes is not None:
                return self._sizes.session(feeds).profile(feeds, repeats=repeats)
            tensors = self._run(batch, feeds)
        records: list[Record] = []
        for part in self._parts:
            if isinstance(part, Program):
                records += profile(part, [np.ascontiguousarray(tensors[name][:1]) for name in part.inputs], repeats)
        return records

    def close(self) -> None:
        """Stop the threads; closing twice does no harm."""
        with self._lock:
            self._closed = True
            self._stop()
            if self._sizes is not None:
                self._sizes.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Session holds threads and compiled code and cannot be pickled; send the path and make one in the other process")

    def _recall(self, interface: Interface, parts: Sequence[Part]) -> None:
        """What a session of the same file planned before."""
        self._see(interface)
        self._parts = parts
        self._start()

    def _plan(self, content: bytes, where: str, tune: bool, fallback: Fallbacks) -> None:
        from ..reader.graph import parsed_graph

        try:
            graph = parsed_graph(content, where)
            if any(port.is_of_any_size for port in graph.inputs):
                self._see(graph)
                self._parts = []
                self._start()
                self._sizes = Sizes(content, where, partial(Session, threads=self._threads, tune=tune, fallback=fallback))
                return
            self._open(graph, tune, fallback)
        except ContradictionError as error:
            if not fallback:
                raise
            self._open_whole(error)
        if all(port.name in self._seen.values for port in self._seen.outputs):
            plans.keep(content, self._seen, self._parts, tune=tune, fallback=fallback)

    def _open(self, graph: "Graph", tune: bool = False, fallback: Fallbacks = True) -> None:
        """Make everything that runs a graph."""
        refused = next((step for step in graph.steps if step.layers is None), None)
        if refused and not fallback:
            raise RunError(f"{refused.nodes[0].label} is not computed by the engine ({refused.reason}); allow fallback=True")
        self._see(graph)
        self._graph = graph
        self._parts = _parts(graph, tune, fallback is True)
        self._start()

    def _open_whole(self, error: ContradictionError) -> None:
        """Leave a file that the engine makes no sense of to ONNX Runtime; where that refuses it as well, `error` says why."""
        from ..reader.graph import whole_graph

        try:
            self._open(whole_graph(self._source, error))
        except ContradictionError as refusal:
            raise error from refusal

    def _see(self, interface: Interface) -> None:
        self._seen, self._usual, self._fed = interface, _usual(interface), {port.name for port in interface.inputs}

    def _start(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._teams: dict[int, Team] = {}
        self._fallbacks: dict[int, Fallback] = {}
        self._finalizers: list[Any] = []
        for number, part in enumerate(self._parts):
            if isinstance(part, Foreign):
                self._fallbacks[number] = Fallback(part, self._seen.where, self._threads)
            else:
                team = Team(part, self._threads)
                self._teams[number] = team
                self._finalizers.append(weakref.finalize(self, team.close))

    def _stop(self) -> None:
        for finalizer in self._finalizers:
            finalizer()
        self._teams, self._fallbacks = {}, {}

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("the session is closed; make a new one")

    def _wanted(self, output_names: Sequence[str] | None) -> list[str]:
        names = [port.name for port in self._seen.outputs]
        if output_names is None:
            return names
        unknown = sorted(set(output_names) - set(names))
        if unknown:
            raise UsageError(f"the network has no output {unknown[0]!r}; it has {', '.join(names)}")
        return list(output_names)

    def _batch(self, feeds: Mapping[str, NDArray]) -> int:
        """The batch size. What is usual is known at a glance: small networks take less time than thorough checks."""
        if self._usual is not None and type(feeds) is dict and len(feeds) == 1:
            name, dtype, dims = self._usual
            x = feeds.get(name)
            if type(x) is np.ndarray and x.dtype == dtype and x.shape[1:] == dims and x.size:
                return len(x)
        return self._check(feeds)

    def _check(self, feeds: Mapping[str, NDArray]) -> int:
        """The batch size, where everything fits."""
        names = {port.name for port in self._seen.inputs}
        if not isinstance(feeds, Mapping) or set(feeds) != names:
            given = ", ".join(map(repr, feeds)) if isinstance(feeds, Mapping) else type(feeds).__name__
            raise UsageError(f"run takes a dict with an array for each of {', '.join(sorted(names))}, got {given or 'nothing'}")
        batch: int | None = None
        for port in self._seen.inputs:
            array = feeds[port.name]
            if not port.takes(array):
                found = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
                raise UsageError(f"input {port.name!r} is an array of {port.type}, got {found}; convert it")
            if not port.fits(array.shape):
                raise UsageError(f"input {port.name!r} has shape {_info(port).shape}, got {list(array.shape)}")
            if port.name in self._seen.values:
                if batch not in (None, array.shape[0]):
                    raise UsageError(f"the inputs have different batch sizes: {batch} and, of {port.name!r}, {array.shape[0]}")
                batch = array.shape[0]
        if batch == 0:
            raise UsageError("the batch is empty; feed at least one sample")
        return 1 if batch is None else batch

    def _run(self, batch: int, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        tensors: dict[str, NDArray] = dict(feeds)
        for number, part in enumerate(self._parts):
            if isinstance(part, Foreign):
                outputs = self._fallbacks[number].run({name: self._named(tensors, name, batch) for name in part.inputs})
                for name, array in zip(part.outputs, outputs, strict=True):
                    self._verify(name, array, batch)
                    tensors[name] = array
            else:
                inputs = [np.ascontiguousarray(tensors[name]) for name in part.inputs]
                results = [np.empty((batch, *part.boxes[name]), part.dtypes[name]) for name in part.outputs]
                self._teams[number].run(batch, [*inputs, *results])
                tensors.update(zip(part.outputs, results, strict=True))
        return tensors

    def _named(self, tensors: Mapping[str, NDArray], name: str, batch: int) -> NDArray:
        """What a name of the file stands for, in its own shape."""
        value = self._seen.values.get(name)
        return tensors[name] if value is None else tensors[value.tensor].reshape(batch, *value.dims)

    def _output(self, tensors: Mapping[str, NDArray], name: str, batch: int) -> NDArray:
        """An output as an array of its own."""
        value = self._seen.values.get(name)
        if value is None:
            constants = self._graph.constants
            if constants is not None and name in constants:
                return constants.require(name).copy()
            return tensors[name].copy() if name in self._fed else tensors[name]
        array = tensors[value.tensor].reshape(batch, *value.dims)
        return array.copy() if value.tensor in self._fed or value.tensor != name else array

    def _verify(self, name: str, array: NDArray, batch: int) -> None:
        """What ONNX Runtime made has the size that layers behind it were planned for."""
        value = self._seen.values.get(name)
        if value is not None and (array.shape != (batch, *value.dims) or array.dtype != self._seen.dtypes[value.tensor]):
            raise ContradictionError(
                f"{self._seen.where}: {name!r} is {array.dtype} {array.shape} in a run, not {(batch, *value.dims)}; export it again"
            )


def _parts(graph: "Graph", tune: bool, faster: bool) -> list[Part]:
    """What runs a graph; faster: what ONNX Runtime runs faster is left to it."""
    from ..ir import costs
    from ..passes import elsewhere
    from ..passes.foreign import foreign
    from ..passes.partition import segments
    from ..passes.program import assembled
    from .machine import table

    with costs.using(table):
        steps = elsewhere.placed(graph.steps, graph.boxes) if faster else graph.steps
        cut = segments(replace(graph, steps=tuple(steps)))
        plans = [_planned(graph, segment, tune) if segment.native else None for segment in cut]
        layers = [layer for segment in cut if segment.native for layer in segment.layers]
        if faster and elsewhere.as_a_whole(layers, [plan for plan in plans if plan], graph.boxes):
            cut, plans = segments(replace(graph, steps=tuple(elsewhere.left(graph.steps)))), [None]
        return [
            foreign(graph, segment) if plan is None else assembled(plan, segment.inputs, segment.outputs)
            for segment, plan in zip(cut, plans, strict=True)
        ]


def _planned(graph: "Graph", segment: "Segment", tune: bool) -> "Instructions":
    from ..passes.program import planned

    measure = None
    if tune:
        from ..passes.tune import measured

        measure = measured
    return planned(segment.layers, graph.boxes, segment.inputs, segment.outputs, measure, graph.dtypes)


def _usual(seen: Interface) -> tuple[str, DType, tuple[int | str | None, ...]] | None:
    """Name, type and shape of a sample of the only input, where the engine holds that in memory and any batch size will do."""
    [port, *others] = seen.inputs or (None,)
    if port is None or others or port.name not in seen.values or not port.shape or isinstance(port.shape[0], int):
        return None
    return port.name, seen.dtypes[port.name], port.shape[1:]


def _info(port: Port) -> TensorInfo:
    return TensorInfo(name=port.name, shape=list(port.shape or ()), type=port.type)
