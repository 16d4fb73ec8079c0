"""From a bundle to a file that runs anywhere."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import atomic_path, check_writable, write_json
from fineprune.common.inputs import Forward, Inputs, told, written
from fineprune.common.progress import Lines, Progress, working
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.macs import count_macs
from fineprune.models.data import ImageData

from .arguments import check_arguments, check_progress, check_samples
from .int8 import Int8Export, cost, int8_config, quantiser_of, samples_for
from .networks import Network, named_data, network_of, open_bundle
from .samples import calibration_data, called_on, compared, held_out

if TYPE_CHECKING:
    from fineprune.export.exporter import ExportReport
    from fineprune.export.int8.quantiser import Int8Config
    from fineprune.export.parity import ParityReport

PARITY_SAMPLES = 256
CHECKING = "checking the outputs, for which kernels are compiled the first time"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file with the checks that it passed; `parity` is None where no samples were at hand.

    int8: of a file in int8, its settings, the layers left in float32 and the accuracies of float32 and int8. another_size: of a file of any
    size, the comparison at another one.
    """

    report: "ExportReport"
    parity: "ParityReport | None"
    int8: dict[str, Any] | None = None
    another_size: "ParityReport | None" = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        facts = {"export": self.report.to_json(), "parity": self.parity.to_json() if self.parity else None}
        facts |= {"another_size": self.another_size.to_json()} if self.another_size else {}
        return facts if self.int8 is None else {**facts, "int8": self.int8}


def to_onnx(
    bundle: Bundle | Path | str,
    path: Path | str,
    *,
    plain: bool = False,
    dynamic_size: bool = False,
    int8: "Int8Config | Mapping[str, Any] | bool | None" = None,
    samples: Any = None,
    parity_samples: int = PARITY_SAMPLES,
    model: nn.Module | None = None,
    forward: Forward | None = None,
    trust: Collection[str] = (),
    progress: Progress | None = None,
) -> Exported:
    """Write a bundle as ONNX, compare it with PyTorch in ONNX Runtime, onnx.reference and the engine, and store that as PATH.parity.json.

    samples: in a form that `compress` takes; the first parity_samples are compared (0: none), by default those of the test split that the
    manifest names.
    RunError when the file computes something else in ONNX Runtime; where the others cannot run it or differ, a line of the log says so.
    dynamic_size: the file takes images of any height and width, and is compared at another size, too (UsageError where blocks are dropped:
    their masks belong to one size).
    int8: True, a mapping, or a fineprune.export.int8.quantiser.Int8Config: eight-bit integers, calibrated on samples where they are given,
    a tenth of which measures what int8 costs, else on training images that the manifest names; figures of float32 and int8 go to
    PATH.int8.json. The mapping has any of ranges, images, max_drop, and, for targets that are no classes, the metric of `compress`.
    forward(model, samples): how the network is called where that is not model(tensor), on inputs of any structure of tensors [N,...], or a
    DataLoader or Dataset of them: each is an input of the file, each tensor of what it returns an output. It may call a part of the
    network. model: the dense architecture, where the manifest names none. trust: names of your own code and data that a bundle's folder may
    use.
    """
    check_arguments(bundle=bundle, path=path, architecture=model)
    if isinstance(parity_samples, bool) or not isinstance(parity_samples, int) or parity_samples < 0:
        raise UsageError(f"parity_samples is a whole number of at least 0, got {parity_samples!r}")
    metric = int8.get("metric") if isinstance(int8, Mapping) else None
    config = int8_config({key: int8[key] for key in int8 if key != "metric"} if isinstance(int8, Mapping) else int8)
    calibrating = 1 if config is None else samples_for(config)
    sample = None if forward is None else called_on(samples, max(parity_samples, calibrating), forward)
    if sample is None:
        check_samples(samples)
    check_progress(progress)
    check_onnx_target(path)
    progress = progress or Lines()
    network = replace(opened(bundle, model, trust), sample=sample)
    job = None
    if config is not None:
        if dynamic_size:
            raise UsageError("a file in int8 has images of one size; leave out int8 or dynamic_size")
        if sample is not None and metric is not None:
            raise UsageError("int8 of a network with a forward is measured by its outputs, which are those of the file; leave metric out")
        data = sample or (named_data(network) if samples is None else calibration_data(samples, metric))
        job = Int8Export(config=config, data=data)
    inputs = _to_compare(network, samples, parity_samples, job) if parity_samples else None
    if job is None:
        return export_network(network, path, plain=plain, dynamic_size=dynamic_size, samples=inputs, progress=progress)
    return export_int8(network, path, job, plain=plain, samples=inputs, progress=progress)


def _to_compare(network: Network, samples: Any, count: int, job: Int8Export | None) -> Inputs | None:
    """At most `count` samples: those given, or of the data that the manifest names; None where there are none."""
    from fineprune.export.flat import first

    if network.sample is not None:
        return first(network.sample, min(count, len(network.sample)))
    if samples is not None:
        return compared(samples, count)
    known = job.data if job and isinstance(job.data, ImageData) else None
    return None if network.data is None else real_samples(network, count, known)


def export_network(
    network: Network,
    path: Path | str,
    *,
    plain: bool = False,
    dynamic_size: bool = False,
    samples: Inputs | None = None,
    progress: Progress,
) -> Exported:
    """`to_onnx` for a network that is open; without samples nothing is compared."""
    from fineprune.export.exporter import export_onnx
    from fineprune.export.parity import check_parity
    from fineprune.export.sizes import of_another_size

    check_onnx_target(path)
    model = network.model.cpu().eval()
    parity = another = None
    metadata = _metadata(network)
    with atomic_path(path) as unchecked:  # a file that computes something else never takes the place of a good one
        with _called(path, unchecked):
            with working(progress, "exporting"):
                report = export_onnx(model, network.shape, unchecked, plain=plain, metadata=metadata, dynamic_size=dynamic_size)
            how: dict[str, Any] = {"engine": True, "threads": torch.get_num_threads(), "progress": progress}
            with working(progress, CHECKING):
                if dynamic_size:
                    larger = of_another_size(network.shape)
                    another = check_parity(model, unchecked, larger, reference_samples=0, **how)
                    another.require()
                if samples is not None:
                    parity = check_parity(model, unchecked, samples, **how)
                    parity.require()
        for note in report.notes:
            progress.log(note)
        if parity is None:
            progress.log("parity was not checked: there are no samples to compare on; --data gives some (in Python: samples)")
        else:
            parity = replace(parity, path=str(path))
    if another is not None:
        another = replace(another, path=str(path))
        far = ", ".join(f"{one.relative_error:.0e} in {one.runtime}" for one in another.runtimes)
        progress.log(f"any size: {written(larger)} give the outputs of PyTorch but for {far}")
    _warn(filter(None, (parity, another)), progress)
    exported = Exported(report=replace(report, path=str(path)), parity=parity, another_size=another)
    _write_beside(path, exported)
    return exported


def export_int8(
    network: Network, path: Path | str, job: Int8Export, *, plain: bool = False, samples: Inputs | None = None, progress: Progress
) -> Exported:
    """`to_onnx` in int8 for a network that is open: the float32 file is checked against PyTorch, and the integers against that."""
    from fineprune.export.exporter import export_onnx
    from fineprune.export.parity import check_int8_parity, check_parity

    check_onnx_target(path)
    model, quantiser = network.model.cpu().eval(), quantiser_of(job, progress)
    with tempfile.TemporaryDirectory(prefix="fineprune-int8-") as folder, atomic_path(path) as unchecked:
        float32 = Path(folder) / "float32.onnx"
        with _called(path, float32, unchecked), working(progress, "exporting"):
            export_onnx(model, network.shape, float32, plain=plain)
            if samples is not None:
                check_parity(model, float32, samples, reference_samples=0).require()
            report = export_onnx(model, network.shape, unchecked, plain=plain, metadata=_metadata(network), int8=quantiser)
        facts = {**quantiser.to_json(), "accuracy": cost(float32, unchecked, job.data, network.bundle, progress)}
        parity = None
        if samples is not None:
            with _called(path, unchecked), working(progress, CHECKING):
                parity = replace(check_int8_parity(unchecked, samples, progress=progress), path=str(path))
    for note in report.notes:
        progress.log(note)
    _warn(filter(None, (parity,)), progress)
    exported = Exported(report=replace(report, path=str(path)), parity=parity, int8=facts)
    _write_beside(path, exported)
    return exported


def _warn(reports: "Iterable[ParityReport]", progress: Progress) -> None:
    """Say where the reference or the engine cannot run a file, or differ."""
    for report in reports:
        for warning in filter(None, (report.reference_warning(), report.engine_warning())):
            progress.log(warning)


def _write_beside(path: Path | str, exported: Exported) -> None:
    """PATH.parity.json and PATH.int8.json: those of this file, never what an earlier one has left there."""
    facts = exported.to_json()
    for kind in ("parity", "int8"):
        if facts.get(kind):
            write_json(f"{path}.{kind}.json", facts[kind])
        else:
            Path(f"{path}.{kind}.json").unlink(missing_ok=True)


@contextmanager
def _called(path: Path | str, *written: Path) -> Iterator[None]:
    """Errors speak of `path`, which was asked for, and not of the files `written` on the way, which are gone after them."""
    try:
        yield
    except RunError as error:
        text = str(error)
        for file in written:
            text = text.replace(str(file), str(path))
        raise RunError(text) from error


def check_onnx_target(path: Path | str) -> None:
    """UsageError where `path` is something else than an ONNX file, RunError where it cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a file name such as {path / 'model.onnx'}")
    if path.exists() and path.suffix != ".onnx":
        raise UsageError(f"{path} exists and is not named as an ONNX file; give another name such as {path.with_suffix('.onnx')}")
    check_writable(path)


def real_samples(network: Network, count: int, data: ImageData | None = None) -> torch.Tensor:
    """The first `count` samples of the held-out split of `data`, by default those that the network's manifest names."""
    return held_out(data or named_data(network), count)


def _metadata(network: Network) -> dict[str, Any]:
    report = count_macs(network.model, network.shape)
    facts: dict[str, Any] = {
        "macs": {k: v for k, v in report.to_json().items() if k not in ("layers", "uncounted", "macs_zero")},
        **({"inputs": told(network.shape)} if network.sample else {"input_shape": list(network.input_shape)}),
        "model": network.spec.to_json() if network.spec else None,
    }
    if network.data is not None:
        facts["normalisation"] = {"mean": network.data["mean"], "std": network.data["std"]}
        facts["classes"] = network.data["classes"]
    if network.bundle is not None:
        facts["ratios"] = network.bundle.facts["ratios"]
        facts["accuracy"] = network.bundle.facts["accuracy"]
    return facts


def opened(network: Network | Bundle | Path | str, model: nn.Module | None = None, trust: Collection[str] = ()) -> Network:
    """A network of what stands for one."""
    if isinstance(network, Bundle):
        return network_of(network, model=model, trust=trust)
    return network if isinstance(network, Network) else open_bundle(network, model=model, trust=trust)
