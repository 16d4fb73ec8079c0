"""Every convolution of an exported file: its time in the engine, that of the dense layer in ONNX Runtime, and why where it gained little.

    ideal speed-up    macs_dense / macs
    fraction          (time dense / time masked) / ideal speed-up: 1 where every multiply-add that was dropped saved its time

Two dense times, for neither alone is fair: `dense` is what ONNX Runtime's own profiler says of the layer inside the whole dense network
(with the activation it fused, without changes of layout, which are layers of their own there); `single` is a session of that one
convolution, with the changes of layout and the call. The engine's time is that of the layer inside the whole masked network, changes of
layout that it needs included. Rounds alternate, ratios are paired within a round, and figures are medians over rounds.

Of files in int8 a third time is dense: `int8`, that of ONNX Runtime's int8 kernel for the layer of the same file. Speed-up and fraction
refer to dense float32 all the same, so that the rows of both files can be compared.
"""

import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError
from fineprune.common.form import require
from fineprune.common.progress import Progress, Silent

from .engine.ops.conv import CONVOLUTIONS
from .engine.reader.protobuf import read_model
from .functions import MASKED_CONVS
from .parity import is_int8

if TYPE_CHECKING:
    from .engine.run.profile import Record


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Microseconds a sample on one thread; `speedup` and `fraction` refer to `dense_us`, `single_fraction` to `single_us`. `expected_us`:
    what the engine expected when it chose the kernel. A layer that ONNX Runtime computes has neither that (None) nor times in the engine
    (NaN). `int8_us`: ONNX Runtime's, where it computes the layer in integers (else None)."""

    name: str
    shape: str
    kept: float
    dense_us: float
    single_us: float
    int8_us: float | None = None
    engine_us: float
    expected_us: float | None
    speedup: float
    fraction: float
    single_fraction: float
    kernel: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As plain values, None for what is not known: JSON has no NaN."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def layer_times(
    dense: Path | str,
    masked: Path | str,
    x: NDArray[np.float32],
    *,
    rounds: int = 9,
    progress: Progress | None = None,
) -> tuple[LayerTime, ...]:
    """Measure the convolutions of `masked` (an exported file) and of `dense` (the same network without masks) on x[1,C,H,W], one thread."""
    return layer_times_of(dense, {"": masked}, x, rounds=rounds, progress=progress)[""]


def layer_times_of(
    dense: Path | str,
    masked: Mapping[str, Path | str],
    x: NDArray[np.float32],
    *,
    rounds: int = 9,
    progress: Progress | None = None,
) -> dict[str, tuple[LayerTime, ...]]:
    """`layer_times` of several files by name, which take turns beside the same dense runs."""
    from .engine.run.session import Session

    progress = progress or Silent()
    facts, convs = {kind: _facts(path) for kind, path in masked.items()}, _dense_convs(dense)
    names = [name for name in convs if any(name in layers for layers in facts.values())]
    singles = {name: _single(convs[name]) for name in names}
    single: dict[str, list[float]] = {name: [] for name in names}
    engine: dict[str, dict[str, list[_Engine]]] = {kind: {name: [] for name in names} for kind in masked}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fineprune-layers-"))
        sessions = {kind: stack.enter_context(Session(path, threads=1)) for kind, path in masked.items()}
        profiled = _ProfiledOnnx(Path(dense), Path(folder), x)
        integers = {kind: _ProfiledOnnx(Path(path), Path(folder), x) for kind, path in masked.items() if is_int8(path)}
        repeats = int(np.clip(TURN_S / profiled.seconds_a_run, *REPEATS))
        for _ in progress(range(rounds), total=rounds, description="layers"):
            for one in (profiled, *integers.values()):
                one.run(repeats)
            for name in names:
                single[name].append(singles[name](repeats))
            for kind, session in sessions.items():
                records = _by_layer(session.profile(x, repeats=repeats), names)
                for name in names:
                    engine[kind][name].append(records.get(name, _NOT_THERE))
        aliases = {name: convs[name].aliases for name in names}
        inside = profiled.seconds(aliases, rounds)
        stock = {kind: one.seconds(aliases, rounds, ("QLinearConv",)) for kind, one in integers.items()}
    return {
        kind: tuple(
            _row(name, convs[name], layers[name], (inside[name], single[name], stock.get(kind, {}).get(name)), engine[kind][name])
            for name in names
            if name in layers
        )
        for kind, layers in facts.items()
    }


TURN_S, REPEATS = 0.15, (3, 20)
"""Seconds of a turn of the dense network, and the least and most runs of one."""


class _Engine(NamedTuple):
    """All operations of a layer, the kernel of its convolution, and what that was chosen from."""

    seconds: float
    kernel: str
    reason: str
    expected: float | None = None
    limit: str = ""


_ELSEWHERE = "onnxruntime"
_NOT_THERE = _Engine(np.nan, _ELSEWHERE, "not in the engine: ONNX Runtime is faster, or computes it alone")


def summary(rows: Sequence[LayerTime]) -> dict[str, float]:
    """Median and least fraction of the ideal over the layers, and those weighted by dense time."""
    measured = [row for row in rows if np.isfinite(row.fraction)]
    if not measured:
        return {}
    ideal = sum(row.dense_us * row.kept for row in measured)
    return {
        "layers": len(measured),
        "median_fraction": float(np.median([row.fraction for row in measured])),
        "least_fraction": min(row.fraction for row in measured),
        "median_single_fraction": float(np.median([row.single_fraction for row in measured])),
        "least_single_fraction": min(row.single_fraction for row in measured),
        "whole_fraction": ideal / sum(row.engine_us for row in measured),
    }


@dataclass(frozen=True, kw_only=True)
class _DenseConv:
    node: Any
    weights: NDArray[np.float32]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    aliases: tuple[str, ...]
    """Names under which ONNX Runtime may report the layer: after itself, its output, or that of what it fused."""


def _facts(path: Path | str) -> dict[str, Mapping[str, Any]]:
    """What the exporter wrote about every convolution."""
    properties = {entry.key: entry.value for entry in read_model(path)[0].metadata_props}
    if "fineprune.layers" not in properties:
        raise RunError(f"{path} says nothing about its layers; export it with fineprune")
    try:
        layers = json.loads(properties["fineprune.layers"])
    except ValueError as error:
        raise RunError(f"{path}: fineprune.layers is not valid JSON ({error}); {_EDITED}") from error
    require(layers, [{"name": str, "macs": int, "macs_dense": int, "op": str}], f"{path}: fineprune.layers", _EDITED)
    return {layer["name"]: layer for layer in layers}


_EDITED = "it was edited, export it again"


def _dense_convs(path: Path | str) -> dict[str, _DenseConv]:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {
        value.name: tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        aliases, name = [node.name, node.output[0]], node.output[0]
        while len(readers.get(name, ())) == 1 and readers[name][0].op_type in ("Add", "Relu", "Clip", "HardSigmoid", "Mul"):
            name = readers[name][0].output[0]
            aliases.append(name)
        found[node.name] = _DenseConv(
            node=node,
            weights=onnx.numpy_helper.to_array(weights[node.input[1]]),
            input_shape=shapes[node.input[0]],
            output_shape=shapes[node.output[0]],
            aliases=tuple(aliases),
        )
    return found


def _single(conv: _DenseConv) -> Callable[[int], float]:
    """A session of that one convolution with weights that are all there: calls -> the median one's seconds."""
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    random = np.random.default_rng(0)
    weights = random.standard_normal(conv.weights.shape, dtype=np.float32)
    bias = random.standard_normal(len(weights), dtype=np.float32)
    node = onnx.NodeProto()
    node.CopyFrom(conv.node)
    node.ClearField("input")
    node.input.extend(["x", "w", "b"])
    node.output[0] = "y"
    sizes = {"x": (1, *conv.input_shape[1:]), "y": (1, *conv.output_shape[1:])}
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in sizes.items())
    initializers = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "layer", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": random.standard_normal(sizes["x"], dtype=np.float32)}

    def measure(repeats: int) -> float:
        calls = []
        for _ in range(repeats):
            start = time.perf_counter()
            session.run(None, feeds)
            calls.append(time.perf_counter() - start)
        return float(np.median(calls))

    return measure


class _ProfiledOnnx:
    """A whole network in ONNX Runtime on one thread, with its profiler on, on one input."""

    def __init__(self, path: Path, folder: Path, x: NDArray[np.float32]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._feeds = {self._session.get_inputs()[0].name: x}
        self.run(_WARM_UP - 1)
        start = time.perf_counter()
        self.run(1)
        self.seconds_a_run = time.perf_counter() - start

    def run(self, repeats: int) -> None:
        for _ in range(repeats):
            self._session.run(None, self._feeds)

    def seconds(
        self, aliases: Mapping[str, Sequence[str]], rounds: int, kinds: Sequence[str] = ("Conv", "FusedConv")
    ) -> dict[str, list[float]]:
        """Seconds of each convolution in each round; NaN for those that none of these `kinds` of nodes computes."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        durations: dict[str, list[int]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["args"].get("op_name") in kinds:
                name = re.sub(r"(_nchwc|_token_\d+)?_kernel_time$", "", event["name"])
                durations.setdefault(name, []).append(event["dur"])
        found = {}
        for layer, names in aliases.items():
            times = next((durations[name] for name in names if name in durations), None)
            if times is None:
                found[layer] = [np.nan] * rounds
                continue
            found[layer] = [_typical(turn) * 1e-6 for turn in np.reshape(times[_WARM_UP:], (rounds, -1))]
        return found


_WARM_UP = 2
"""Runs before those that count."""


def _typical(times: NDArray) -> float:
    """The mean of what lies near the median: the profiler's begins and ends are whole microseconds, so that a median would make 13 of 13.4,
    while a run that lost its core must not count."""
    median = np.sort(times)[(len(times) - 1) // 2]  # one of the times
    near = np.abs(times - median) <= max(1.0, 0.05 * median)
    return float(times[near].mean())


def _by_layer(records: "Sequence[Record]", names: Sequence[str]) -> dict[str, _Engine]:
    found: dict[str, _Engine] = {}
    for record in records:
        if record.name in names:
            earlier = found.get(record.name, _Engine(0.0, record.kernel, record.reason, record.expected, record.limit))
            found[record.name] = earlier._replace(seconds=earlier.seconds + record.seconds)
    return found


def _row(
    name: str,
    conv: _DenseConv,
    facts: Mapping[str, Any],
    dense: tuple[list[float], list[float], list[float] | None],
    engine: list[_Engine],
) -> LayerTime:
    """dense: seconds inside the whole network, alone, and in int8 where the file has that."""
    kept = facts["macs"] / facts["macs_dense"]
    inside, single, int8 = dense
    dense_s, single_s, engine_s = (np.maximum(times, SHORTEST_S) for times in (inside, single, [turn.seconds for turn in engine]))
    speedup = float(np.median(dense_s / engine_s))
    C, F = conv.input_shape[1], conv.output_shape[1]
    kernel_size = "x".join(map(str, conv.weights.shape[2:]))
    row = LayerTime(
        name=name,
        shape=f"{C}->{F} {kernel_size} {conv.output_shape[2]}x{conv.output_shape[3]}",
        kept=kept,
        dense_us=float(np.median(dense_s)) * 1e6,
        single_us=float(np.median(single_s)) * 1e6,
        int8_us=None if int8 is None or np.isnan(int8).any() else float(np.median(int8)) * 1e6,
        engine_us=float(np.median(engine_s)) * 1e6,
        expected_us=None if engine[-1].expected is None else engine[-1].expected * 1e6,
        speedup=speedup,
        fraction=speedup * kept,
        single_fraction=float(np.median(single_s / engine_s)) * kept,
        kernel=engine[-1].kernel,
        reason=engine[-1].reason,
    )
    return replace(row, reason=why(row, facts) if int8 is None else why_int8(row, facts, engine[-1].limit))


ENOUGH = 0.85
"""Of the ideal: layers that reach it need no explanation."""


def why(row: LayerTime, facts: Mapping[str, Any]) -> str:
    """In a few words, what keeps a layer under 0.85 of its ideal, and what its kernel was chosen from; empty where it reaches that."""
    if row.fraction >= ENOUGH:
        return ""
    if row.kernel == _ELSEWHERE:
        return row.reason
    causes = [f"chosen from {row.reason}"] if row.reason else []
    if facts["macs"] == facts["macs_dense"]:
        causes.append("drops nothing")
    elif row.engine_us < FIXED_US:
        causes.append(f"under {FIXED_US} us: fixed cost of a layer")
    elif row.kernel in CONVOLUTIONS and CONVOLUTIONS[row.kernel].limit:
        causes.append(CONVOLUTIONS[row.kernel].limit)
    elif facts["op"] in MASKED_CONVS:
        causes.append("block masks: positions gathered one by one")
    return "; ".join(causes)


def why_int8(row: LayerTime, facts: Mapping[str, Any], limit: str) -> str:
    """`why` for a layer of a file in int8: what keeps it in float32, or under 0.85 of what ONNX Runtime's int8 and its masks promise.

    limit: what the engine says of that.
    """
    if row.kernel == _ELSEWHERE:
        return row.reason
    if row.int8_us is None:
        cause = "block masks" if facts["op"] in MASKED_CONVS else "so it is in the file"
        return f"in float32: {cause}"
    if row.kernel in CONVOLUTIONS:
        return "in float32: what surrounds it has no form in integers here"
    if row.int8_us / row.engine_us * row.kept >= ENOUGH:
        return ""
    causes = []
    if facts["macs"] == facts["macs_dense"]:
        causes.append("drops nothing")
    if row.engine_us < FIXED_US:
        causes.append(f"under {FIXED_US} us: fixed cost of a layer")
    return "; ".join(filter(None, [*causes, limit]))


SHORTEST_S = 1e-7
"""What a layer takes at least: a call's overhead is subtracted, which may leave nothing."""
FIXED_US = 6
"""Microseconds below which a layer's time is mostly its start."""
