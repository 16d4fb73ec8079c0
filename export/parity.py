"""Does the file compute what the model computes? PyTorch against ONNX Runtime, onnx.reference and the engine on given samples."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.common.inputs import Inputs, Structured
from fineprune.common.progress import Progress, Silent

from .flat import Flat, arrays_of, first
from .runtimes import OnnxReference, OnnxRuntime, TorchRuntime, Whole

if TYPE_CHECKING:
    from torch import nn

TOLERANCES = {"float32": 1e-4, "int32": 0.0, "int8": 0.0, "uint8": 0.0}
"""Largest allowed max|y - y_torch| / max|y_torch| over all outputs of all samples, by the type of the outputs: the only tolerances of an
export. Types that are not named are judged as float32.

Relative to the largest logit, not to each: summation orders differ between runtimes, so an error is a small multiple of
float32's 6e-8 times the largest intermediate sums, whatever the size of the single logit. Sound exports of 22 torchvision
classifiers were within 2e-6; a wrong fold, pad or layer mask is off by 1e-2 or more (one wrong block in a layer can be less).
Sums of whole numbers have no order: every runtime gives the same.
"""

BATCH = 32
_FEW = 4
"""Samples on which the cause of a difference is looked for: all that modules compute for them is kept."""
BATCH_VALUES = 2**20
"""Values of a batch's images: of 224x224 ones 6 are compared at a time, since the activations of 32 would take a gigabyte and more."""

ONNXRUNTIME = "onnxruntime"
ENGINE = "engine"
REFERENCE = "onnx.reference"


@dataclass(frozen=True, kw_only=True)
class RuntimeParity:
    """One runtime against PyTorch. `relative_error` is `max_abs_error` over the largest magnitude of PyTorch's logits."""

    runtime: str
    samples: int
    max_abs_error: float
    relative_error: float
    argmax_agreement: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The comparison of one file; `tolerance` bounds the relative errors.

    cause: where the file differs because the model's own outputs vary, what makes them.
    """

    path: str
    tolerance: float
    runtimes: tuple[RuntimeParity, ...]
    cause: str = ""

    @property
    def passed(self) -> bool:
        """Whether every runtime is within the tolerance."""
        return all(runtime.passed for runtime in self.runtimes)

    @property
    def max_abs_error(self) -> float:
        """The largest over the runtimes; 0 where none could be compared."""
        return max((runtime.max_abs_error for runtime in self.runtimes), default=0.0)

    def compares(self, runtime: str) -> bool:
        """Whether `runtime` could run the file."""
        return any(one.runtime == runtime for one in self.runtimes)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "passed": self.passed, "max_abs_error": self.max_abs_error}

    def require(self) -> None:
        """RunError where ONNX Runtime is beyond the tolerance; a file answers for neither the engine nor onnx.reference."""
        worst = max((r for r in self.runtimes if r.runtime not in (ENGINE, REFERENCE)), key=lambda runtime: runtime.relative_error)
        if not worst.passed:
            advice = "do not use the file, export it again with plain=True; report the network if that differs, too"
            raise RunError(f"{self._difference(worst)}; {self.cause or advice}")

    def reference_warning(self) -> str:
        """What to tell the user where onnx.reference alone computes something else, else an empty text.

        It has faults of its own, and ONNX Runtime, which agrees with PyTorch on more samples, is what runs files.
        """
        for runtime in self.runtimes:
            if runtime.runtime == REFERENCE and not runtime.passed:
                return (
                    f"warning: {self._difference(runtime)}, though ONNX Runtime agrees: a fault of onnx.reference, or an operator that "
                    "runtimes read in two ways; compare outputs before you run the file in another runtime"
                )
        return ""

    def engine_warning(self) -> str:
        """What to tell the user where the engine computes something else, else an empty text."""
        for runtime in self.runtimes:
            if runtime.runtime == ENGINE and not runtime.passed:
                return f"warning: {self._difference(runtime)}; run the file in ONNX Runtime, and report the network"
        return ""

    def _difference(self, runtime: RuntimeParity) -> str:
        return (
            f"{self.path} differs from the model in {runtime.runtime} by {runtime.relative_error:.2e} of its largest logit "
            f"(allowed {self.tolerance:.0e}, {runtime.samples} samples)"
        )


def check_parity(
    model: "nn.Module",
    path: Path | str,
    samples: "ArrayLike | Inputs",
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    reference_samples: int = 2,
    engine: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare `model` (eval mode, on the CPU) with the ONNX file at `path` on samples[N,C,H,W], normalised as in training, or `Structured`
    ones: by all outputs, each against its own largest value.

    onnx.reference gets the first `reference_samples` only (0: it is left out), since it takes seconds a sample on large networks.
    engine: compare fineprune's own engine, too. Where the engine or onnx.reference cannot run the file, a line of the log says so.
    Raises UsageError for a missing file, provider or samples, RunError where ONNX Runtime cannot run the file or logits are not finite.
    """
    x = arrays_of(samples)
    if isinstance(samples, Structured):
        model = Flat(model, samples)
    elif x[0].ndim != 4 or not len(x[0]):
        raise UsageError(f"parity needs samples of shape [N,C,H,W] with N > 0, got {x[0].shape}")
    progress = progress or Silent()
    model = _comparable(model)
    expected = _logits(TorchRuntime("torch", model), x, threads, progress)
    results = [_compare(ONNXRUNTIME, _logits(OnnxRuntime(ONNXRUNTIME, path, providers=providers), x, threads, progress), expected)]
    cause = "" if results[0].passed else _cause(model, x)
    if reference_samples > 0:
        few = tuple(one[:reference_samples] for one in x)
        try:
            # A batch of its own for PyTorch, too: networks may use statistics of the batch.
            expected_few = _logits(TorchRuntime("torch", model), few, threads, progress)
            results.append(_compare(REFERENCE, _logits(OnnxReference(REFERENCE, path), few, threads, progress), expected_few))
        except FinepruneError as error:
            progress.log(f"{REFERENCE} is not compared: {error}")
    if engine:
        from .engine.run.runtime import EngineRuntime

        try:
            results.append(_compare(ENGINE, _logits(EngineRuntime(ENGINE, path), x, threads, progress), expected))
        except FinepruneError as error:
            progress.log(f"the engine is not compared: {error}")
    return ParityReport(path=str(path), tolerance=max(tolerance(y.dtype) for y in expected), runtimes=tuple(results), cause=cause)


INT8_TOLERANCE = 0.05
"""Of files in int8, against ONNX Runtime's integers: a sum halfway between two numbers of the next grid falls to either side."""


def is_int8(path: Path | str) -> bool:
    """Whether the ONNX file holds a network on eight-bit grids (QDQ or QOperator)."""
    from .engine.reader.protobuf import read_model

    kinds = {node.op_type for node in read_model(Path(path))[0].graph.node}
    return any(kind in ("QuantizeLinear", "ConvInteger", "MatMulInteger") or kind.startswith("QLinear") for kind in kinds)


def check_int8_parity(
    path: Path | str, samples: "ArrayLike | Inputs", *, reference_samples: int = 2, progress: Progress | None = None
) -> ParityReport:
    """Compare what ONNX Runtime, onnx.reference (not with reference_samples=0) and the engine make of the int8 file at `path` on
    samples[N,C,H,W], or `Structured` ones.

    ONNX Runtime's int8 kernels are what the others are held to; none of them computes what PyTorch does. Where one cannot run the file,
    a line of the log says so.
    """
    from .engine.run.runtime import EngineRuntime

    x, progress = arrays_of(samples), progress or Silent()
    expected, results = _logits(OnnxRuntime(ONNXRUNTIME, path), x, 1, progress), []
    others: list[tuple[Whole, int]] = [(OnnxReference(REFERENCE, path), reference_samples), (EngineRuntime(ENGINE, path), len(x[0]))]
    for runtime, count in others[reference_samples == 0 :]:
        try:
            one = _compare(runtime.name, _logits(runtime, tuple(each[:count] for each in x), 1, progress), [y[:count] for y in expected])
            results.append(replace(one, passed=one.relative_error <= INT8_TOLERANCE))
        except FinepruneError as error:
            progress.log(f"{runtime.name} is not compared: {error}")
    return ParityReport(path=str(path), tolerance=INT8_TOLERANCE, runtimes=tuple(results))


def _comparable(model: "nn.Module") -> "nn.Module":
    """`model`, or its float32 copy where its weights are of another type: files hold float32."""
    import torch

    from .trace import in_float32

    others = any(parameter.is_floating_point() and parameter.dtype != torch.float32 for parameter in model.parameters())
    return in_float32(model) if others else model


def _cause(model: "nn.Module", x: Sequence[NDArray]) -> str:
    """What in the model makes it differ even from itself, if anything does."""
    import torch

    from fineprune.calibrate.steadiness import unsteadiness

    few = tuple(torch.from_numpy(one[:_FEW]) for one in x)
    inputs = few[0] if len(few) == 1 else Structured(few, len(few[0]), lambda model, given: model(*given))
    varies = unsteadiness(model, inputs, TOLERANCES["float32"], first(inputs, 1))
    return "" if varies is None else varies.cause


def _logits(runtime: Whole, x: Sequence[NDArray], threads: int, progress: Progress) -> list[NDArray]:
    """Every output for all samples."""
    size = min(BATCH, max(1, BATCH_VALUES // max(1, sum(one[0].size for one in x))))
    starts = range(0, len(x[0]), size)
    runtime.load(threads)
    try:
        shown = progress(starts, total=len(starts), description=runtime.name)
        batches = [runtime.outputs(*(one[start : start + size] for one in x)) for start in shown]
    finally:
        runtime.close()
    logits = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    if not all(np.isfinite(one).all() for one in logits):
        raise RunError(f"{runtime.name} gave logits that are not finite (NaN or Inf); check the weights and the samples")
    return logits


def _compare(name: str, actual: Sequence[NDArray], expected: Sequence[NDArray]) -> RuntimeParity:
    """That of the output which differs most."""
    if len(actual) != len(expected):
        raise RunError(f"{name} gave {len(actual)} outputs, PyTorch {len(expected)}; the file belongs to another model")
    every = [_compare_one(name, *pair) for pair in zip(actual, expected, strict=True)]
    return replace(max(every, key=lambda one: one.relative_error), passed=all(one.passed for one in every))


def _compare_one(name: str, actual: NDArray, expected: NDArray) -> RuntimeParity:
    if actual.shape != expected.shape:
        raise RunError(f"{name} gave logits of shape {actual.shape}, PyTorch {expected.shape}; the file belongs to another model")
    error = float(np.abs(actual.astype(np.float64) - expected).max())
    scale = float(np.abs(expected).max())
    # All logits zero: only zeros are right, and the relative error is 0 or infinite, which JSON has no word for.
    relative = error / scale if scale > 0 else error / float(np.finfo(np.float32).tiny)
    return RuntimeParity(
        runtime=name,
        samples=len(expected),
        max_abs_error=error,
        relative_error=relative,
        argmax_agreement=float((_classes(actual) == _classes(expected)).mean()),
        passed=relative <= tolerance(expected.dtype),
    )


def tolerance(dtype: np.dtype[Any]) -> float:
    """Of outputs of a type."""
    return TOLERANCES.get(dtype.name, TOLERANCES["float32"])


def _classes(logits: NDArray) -> NDArray:
    """The largest logit of each sample (of each pixel, where the network has that many outputs); a single output is a sign."""
    return logits.argmax(1) if logits.ndim > 1 and logits.shape[1] > 1 else logits > 0
