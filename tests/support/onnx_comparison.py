"""What the engine makes of a file and its inputs, beside what ONNX Runtime makes of them.

Equal means: not a number and infinite at the same places, and elsewhere as near as RANDOM_GRAPHS, relative to the largest number of the
sample. Four differences are no faults, and each is named in the outcome:

    ONNX Runtime's optimisations   the engine agrees with ONNX Runtime without them (it folds a Pad into a MaxPool, whatever the signs)
    maximum of NaN                 ONNX Runtime's MaxPool keeps or drops a NaN, as its place in the window has it
    spread of NaN                  the engine never multiplies by a dropped weight or a masked input, so 0 * NaN and 0 * Inf are no numbers
                                   in ONNX Runtime alone; and filters of several groups that share a vector share what is not finite.
                                   What is finite in both is equal, but for what a ThresholdedRelu made of it
    ill-conditioned                what ONNX Runtime itself makes of an input, or of constants, rounded otherwise differs as much
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from fineprune.common.errors import FinepruneError
from fineprune.export.engine import Session
from support.random_grids import RandomGrids
from support.tolerances import RANDOM_GRAPHS

Feeds = Mapping[str, NDArray]
_MAXIMA = {"MaxPool", "GlobalMaxPool", "ReduceMax", "Max", "Min"}
_ROUNDINGS = (1 + 2e-6, 1 - 1e-6)
_ABSORBING = {"ThresholdedRelu"}
"""Give a number for what is none."""


@dataclass(frozen=True)
class Outcome:
    """`kind` is one of FINE or FAULTS, `why` says more of it."""

    kind: str
    why: str = ""

    @property
    def fault(self) -> bool:
        return self.kind in FAULTS


FINE = ("equal", "both refuse", "refused", "explained")
FAULTS = ("different", "raw exception", "wrongly called damaged", "threads differ")


def compare(content: bytes, feeds: Sequence[Feeds], threads: Sequence[int] = (1,)) -> Outcome:
    """Load and run a file in both; the first fault that is found, else what was found of the first feeds that are not simply equal."""
    found = Outcome("equal")
    reference = _reference(content)
    try:
        sessions = [Session(content, threads=count) for count in threads]
    except FinepruneError as error:
        return _refusal(error, reference)
    except Exception as error:
        return Outcome("raw exception", f"load: {type(error).__name__}: {error}")
    try:
        for feed in feeds:
            outcome = _one_run(content, reference, sessions, feed)
            if outcome.fault:
                return outcome
            found = outcome if found.kind == "equal" else found
    finally:
        for session in sessions:
            session.close()
    return found


def compare_grids(network: RandomGrids, threads: Sequence[int] = (1,)) -> Outcome:
    """The engine's integers beside `expected`, the whole batch and a sample alone; and where they are exact, ONNX Runtime's beside them."""
    content = network.serialized()
    for count in threads:
        try:
            with Session(content, threads=count, fallback=False) as session:
                made = session.run(None, {"x": network.x})
                last = session.run(None, {"x": network.x[-1:]})
        except Exception as error:
            return Outcome("raw exception", f"{type(error).__name__}: {error}")
        for (name, wanted), y, alone in zip(network.expected.items(), made, last, strict=True):
            if y.dtype != wanted.dtype or not np.array_equal(y, wanted) or not np.array_equal(alone, wanted[-1:]):
                return Outcome(
                    "different", f"{name} on {count} threads differs in {np.count_nonzero(y != wanted)} of {wanted.size} numbers"
                )
    if not network.exact:
        return Outcome("equal")
    for (name, wanted), y in zip(network.expected.items(), in_onnxruntime(content, network.x), strict=True):
        if not np.allclose(y, wanted, *((1e-5, 1e-5) if name == network.real else (0, 0))):
            return Outcome("different", f"{name} differs from what ONNX Runtime makes")
    return Outcome("equal", "in ONNX Runtime, too")


def in_onnxruntime(content: bytes, x: NDArray) -> list[NDArray]:
    """All outputs of a file whose input is called x."""
    made: list[NDArray] = _session(content).run(None, {"x": x})
    return made


def _session(content: bytes, optimised: bool = True) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _reference(content: bytes, optimised: bool = True) -> Any:
    """ONNX Runtime's session, None where it refuses the file."""
    try:
        return _session(content, optimised)
    except Exception:  # its exceptions share no base class of their own
        return None


def _run(session: Any, feed: Feeds) -> list[NDArray] | None:
    try:
        result: list[NDArray] = session.run(None, dict(feed))
    except Exception:
        return None
    return result


def _refusal(error: FinepruneError, reference: Any) -> Outcome:
    text = str(error)
    if "\n" in text.strip():
        return Outcome("raw exception", f"several lines: {text}")
    if reference is None:
        return Outcome("both refuse", text)
    called_damaged = ("damaged" in text or "export it again" in text) and "too large" not in text
    return Outcome("wrongly called damaged" if called_damaged else "refused", text)


def _one_run(content: bytes, reference: Any, sessions: Sequence[Session], feed: Feeds) -> Outcome:
    expected = _run(reference, feed) if reference is not None else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results = [session.run(None, dict(feed)) for session in sessions]
    except FinepruneError as error:
        return _refusal(error, None if expected is None else reference)
    except Exception as error:
        return Outcome("raw exception", f"run: {type(error).__name__}: {error}")
    for other in results[1:]:
        if reference is not None and any(differences(results[0], other, 1e-5)):
            return Outcome("threads differ", next(differences(results[0], other, 1e-5)))
    if expected is None:
        return Outcome("both refuse", "ONNX Runtime refuses what the engine runs")
    found = next(differences(results[0], expected), None)
    if found is None:
        return Outcome("equal")
    return _explained(content, reference, feed, results[0], expected) or Outcome("different", found)


def differences(results: Sequence[Any], expected: Sequence[Any], tolerance: float = RANDOM_GRAPHS[0], *, finite: bool = False) -> Any:
    """What differs, output by output; `finite`: only where both numbers are finite."""
    for number, (y, wanted) in enumerate(zip(results, expected, strict=True)):
        if not isinstance(y, np.ndarray) or y.shape != wanted.shape or y.dtype != wanted.dtype:
            yield f"output {number} is {getattr(y, 'dtype', type(y))} {np.shape(y)}, not {wanted.dtype} {wanted.shape}"
        elif wanted.dtype.kind != "f":
            if not np.array_equal(y, wanted):
                yield f"output {number} differs in {np.count_nonzero(y != wanted)} of {wanted.size} numbers"
        elif wanted.size:
            text = _float_difference(y, wanted, tolerance, finite)
            if text:
                yield f"output {number} {wanted.shape}: {text}"


def _float_difference(y: NDArray, wanted: NDArray, tolerance: float, finite: bool) -> str:
    rows, expected = (np.asarray(array, np.float64).reshape(len(array) if array.ndim else 1, -1) for array in (y, wanted))
    good = np.isfinite(expected)
    odd = ~((rows == expected) | (np.isnan(rows) & np.isnan(expected))) & ~(good & np.isfinite(rows))
    if finite:
        good, odd = good & np.isfinite(rows), np.zeros_like(good)
    if odd.any():
        at = tuple(np.argwhere(odd)[0])
        return f"{rows[at]} instead of {expected[at]} at {[int(k) for k in at]} of {np.count_nonzero(odd)}"
    largest = np.where(good, np.abs(expected), 0).max(1, initial=0, keepdims=True)
    distance = np.where(good, np.abs(np.where(good, rows, 0) - np.where(good, expected, 0)), 0) / (largest + RANDOM_GRAPHS[1])
    return f"differs by {distance.max():.2g} of the largest number" if distance.max() > tolerance else ""


def _explained(content: bytes, reference: Any, feed: Feeds, results: Sequence[Any], expected: Sequence[Any]) -> Outcome | None:
    """A difference that is none of the engine's."""
    plain = _run(_reference(content, optimised=False), feed)
    if plain is not None and next(differences(results, plain), None) is None:
        return Outcome("explained", "ONNX Runtime's optimisations")
    model = onnx.load_from_string(content)
    odd = any(not np.isfinite(array).all() for array in (*feed.values(), *expected, *results) if array.dtype.kind == "f")
    if odd and any(node.op_type in _MAXIMA for node in model.graph.node):
        return Outcome("explained", "maximum of NaN")
    if odd and _spreads_otherwise(model):
        absorbed = _downstream(model, _ABSORBING)
        kept = [number for number, output in enumerate(model.graph.output) if output.name not in absorbed]
        if next(differences([results[k] for k in kept], [expected[k] for k in kept], finite=True), None) is None:
            return Outcome("explained", "spread of NaN")
    noise = [_run(reference, {k: (v * np.float32(f) if v.dtype == np.float32 else v) for k, v in feed.items()}) for f in _ROUNDINGS]
    rounded = _reference(_with_other_roundings(model).SerializeToString())
    for other in (*noise, plain, rounded and _run(rounded, feed)):
        if other is not None and _as_near(results, expected, other):
            return Outcome("explained", "ill-conditioned")
    return None


def _downstream(model: Any, operators: set[str]) -> set[str]:
    """Names of the tensors that nodes of these operators have a part in."""
    found: set[str] = set()
    for node in model.graph.node:  # in an order in which they can run
        if node.op_type in operators or found & set(node.input):
            found |= set(node.output)
    return found


def _with_other_roundings(model: Any) -> Any:
    """The same graph with every float32 constant off by a millionth or so, each number by a part of its own."""
    other, rng = onnx.ModelProto(), np.random.default_rng(0)
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor)
            factors = 1 + 1e-6 * rng.standard_normal(array.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array((array * factors).astype(np.float32), tensor.name))
    return other


def _spreads_otherwise(model: Any) -> bool:
    """Whether there are dropped weights, masks, or convolutions in groups."""
    if any(node.domain == "fineprune" for node in model.graph.node) or model.graph.sparse_initializer:
        return True
    if any(attribute.name == "group" and attribute.i > 1 for node in model.graph.node for attribute in node.attribute):
        return True
    tensors = [
        *model.graph.initializer,
        *(a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"),
    ]
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    return any((array == 0).any() for array in arrays if array.dtype == np.float32 and array.ndim > 1)


def _as_near(results: Sequence[Any], expected: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether every output of the engine is as near to what is expected as `other` is."""
    for y, wanted, noisy in zip(results, expected, other, strict=True):
        if wanted.dtype.kind != "f" or y.shape != wanted.shape:
            continue
        good = np.isfinite(wanted)
        if not np.isfinite(y[good]).all() or not np.isfinite(noisy[good]).all() or not good.any():
            return False
        largest = np.abs(wanted[good]).max() + RANDOM_GRAPHS[1]
        mine, its = (np.abs(a[good].astype(np.float64) - wanted[good]).max() / largest for a in (y, noisy))
        if mine > max(RANDOM_GRAPHS[0], 3 * its):
            return False
    return True
