"""From a bundle to a file that runs anywhere, and to figures of what it gained."""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import atomic_path, check_writable, write_json
from fineprune.common.progress import Lines, Progress, Silent, working
from fineprune.compressor.bake import dense_twin, masked_layers
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.macs import count_macs
from fineprune.models.data import ImageData

from .arguments import check_arguments, check_progress
from .int8 import Int8Export, cost, int8_config, quantiser_of
from .networks import Network, load_arguments, manifest_of, named_data, network_of, open_bundle
from .trust import data_names, missing

if TYPE_CHECKING:
    from fineprune.export.benchmark import BenchmarkConfig, BenchmarkReport
    from fineprune.export.exporter import ExportReport
    from fineprune.export.int8.quantiser import Int8Config
    from fineprune.export.layer_times import LayerTime
    from fineprune.export.parity import ParityReport

PARITY_SAMPLES = 256
CALIBRATION_SAMPLES = 16
_CHECKING = "checking the outputs, for which kernels are compiled the first time"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file with the checks that it passed; `parity` is None where no samples were at hand.

    int8: of a file in int8, its settings, the layers left in float32 and the accuracies of float32 and int8.
    """

    report: "ExportReport"
    parity: "ParityReport | None"
    int8: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        facts = {"export": self.report.to_json(), "parity": self.parity.to_json() if self.parity else None}
        return facts if self.int8 is None else {**facts, "int8": self.int8}


def to_onnx(
    bundle: Bundle | Path | str,
    path: Path | str,
    *,
    plain: bool = False,
    int8: "Int8Config | bool | None" = None,
    samples: torch.Tensor | None = None,
    model: nn.Module | None = None,
    trust: Collection[str] = (),
    progress: Progress | None = None,
) -> Exported:
    """Write a bundle as ONNX, compare it with PyTorch in ONNX Runtime, onnx.reference and the engine, and store that as PATH.parity.json.

    samples[N,C,H,W] are compared; by default 256 of the test split that the manifest names. RunError when the file computes something else
    in ONNX Runtime; where the others cannot run it or differ, a line of the log says so.
    int8: True, or a fineprune.export.int8.quantiser.Int8Config: eight-bit integers, calibrated on training images that the manifest names;
    accuracies of float32 and int8 go to PATH.int8.json.
    trust: names of your own code and data that the bundle in a folder may use.
    """
    check_arguments(bundle=bundle, path=path, compared=samples, architecture=model)
    check_progress(progress)
    check_onnx_target(path)
    config = int8_config(int8)
    network = _opened(bundle, model, trust)
    job = None if config is None else Int8Export(config=config, data=named_data(network))
    if samples is None and network.data is not None:
        samples = real_samples(network, PARITY_SAMPLES, job.data if job else None)
    if job is None:
        return export_network(network, path, plain=plain, samples=samples, progress=progress or Lines())
    return export_int8(network, path, job, plain=plain, samples=samples, progress=progress or Lines())


def export_network(
    network: Network, path: Path | str, *, plain: bool = False, samples: torch.Tensor | None = None, progress: Progress
) -> Exported:
    """`to_onnx` for a network that is open; without samples nothing is compared."""
    from fineprune.export.exporter import export_onnx
    from fineprune.export.parity import check_parity

    check_onnx_target(path)
    model = network.model.cpu().eval()
    parity = None
    with atomic_path(path) as unchecked:  # a file that computes something else never takes the place of a good one
        with _called(path, unchecked):
            with working(progress, "exporting"):
                report = export_onnx(model, network.input_shape, unchecked, plain=plain, metadata=_metadata(network))
            if samples is not None:
                with working(progress, _CHECKING):
                    threads = torch.get_num_threads()
                    parity = check_parity(model, unchecked, samples.numpy(), engine=True, threads=threads, progress=progress)
                parity.require()
        for note in report.notes:
            progress.log(note)
        if parity is None:
            progress.log("parity was not checked: there are no samples to compare on")
        else:
            parity = replace(parity, path=str(path))
    if parity is not None:
        for warning in filter(None, (parity.reference_warning(), parity.engine_warning())):
            progress.log(warning)
        write_json(f"{path}.parity.json", parity.to_json())
    return Exported(report=replace(report, path=str(path)), parity=parity)


def export_int8(
    network: Network, path: Path | str, job: Int8Export, *, plain: bool = False, samples: torch.Tensor | None = None, progress: Progress
) -> Exported:
    """`to_onnx` in int8 for a network that is open: the float32 file is checked against PyTorch, and the integers against that."""
    from fineprune.export.exporter import export_onnx
    from fineprune.export.parity import check_int8_parity, check_parity

    check_onnx_target(path)
    model, quantiser = network.model.cpu().eval(), quantiser_of(job, progress)
    with tempfile.TemporaryDirectory(prefix="fineprune-int8-") as folder, atomic_path(path) as unchecked:
        float32 = Path(folder) / "float32.onnx"
        with _called(path, float32, unchecked), working(progress, "exporting"):
            export_onnx(model, network.input_shape, float32, plain=plain)
            if samples is not None:
                check_parity(model, float32, samples.numpy(), reference_samples=0).require()
            report = export_onnx(model, network.input_shape, unchecked, plain=plain, metadata=_metadata(network), int8=quantiser)
        facts = {**quantiser.to_json(), "accuracy": cost(float32, unchecked, job.data, network.bundle, progress)}
        parity = None
        if samples is not None:
            with _called(path, unchecked), working(progress, _CHECKING):
                parity = replace(check_int8_parity(unchecked, samples.numpy(), progress=progress), path=str(path))
    for line in (*report.notes, *((parity.reference_warning(), parity.engine_warning()) if parity else ())):
        if line:
            progress.log(line)
    if parity is not None:
        write_json(f"{path}.parity.json", parity.to_json())
    write_json(f"{path}.int8.json", facts)
    return Exported(report=replace(report, path=str(path)), parity=parity, int8=facts)


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
    if count < 1:
        raise UsageError(f"the number of samples to compare is at least 1, got {count}")
    data = data or named_data(network)
    split = next((s for s in (data.test, data.validation, data.train) if len(s)), None)
    if split is None:
        raise UsageError(f"the data set {data.spec} is empty; give --data")
    return next(iter(split.batches(min(count, len(split))))).images


def _metadata(network: Network) -> dict[str, Any]:
    report = count_macs(network.model, network.input_shape)
    facts: dict[str, Any] = {
        "macs": {k: v for k, v in report.to_json().items() if k not in ("layers", "uncounted", "macs_zero")},
        "input_shape": list(network.input_shape),
        "model": network.spec.to_json() if network.spec else None,
    }
    if network.data is not None:
        facts["normalisation"] = {"mean": network.data["mean"], "std": network.data["std"]}
        facts["classes"] = network.data["classes"]
    if network.bundle is not None:
        facts["ratios"] = network.bundle.facts["ratios"]
        facts["accuracy"] = network.bundle.facts["accuracy"]
    return facts


def bench(
    network: Network | Bundle | Path | str,
    config: "BenchmarkConfig | None" = None,
    *,
    onnx: Path | str | None = None,
    peers: Sequence[str] | None = None,
    samples: torch.Tensor | None = None,
    model: nn.Module | None = None,
    trust: Collection[str] = (),
    progress: Progress | None = None,
) -> "BenchmarkReport":
    """Latency of the dense network in ONNX Runtime (the baseline), torch and other runtimes, and of the compressed one in the engine
    and in ONNX Runtime.

    The compressed network is exported afresh, unless `onnx` names a file of it. peers: names of `fineprune.export.peers.PEERS`, all by
    default. samples[N,C,H,W] calibrate int8; by default they come from the data that the manifest names, or are noise where that needs
    your word. model: the dense architecture, where the manifest names none. trust: names of your own code and data that the bundle in a
    folder may use. Lines of the log name what is not installed or cannot run the network, and figures that say nothing because the
    machine was busy.
    """
    from fineprune.export.benchmark import BenchmarkConfig, benchmark
    from fineprune.export.engine.run.runtime import EngineRuntime
    from fineprune.export.parity import ENGINE, check_parity
    from fineprune.export.peers import usable_peers
    from fineprune.export.runtimes import OnnxRuntime, Runtime, TorchRuntime

    check_arguments(network=network, onnx=onnx, compared=samples, architecture=model)
    check_progress(progress)
    if config is not None and not isinstance(config, BenchmarkConfig):
        raise UsageError(f"config is a fineprune.export.benchmark.BenchmarkConfig, got {config!r:.80}")
    progress = progress or Lines()
    network = _opened(network, model, trust)
    with tempfile.TemporaryDirectory(prefix="fineprune-bench-") as folder:
        with working(progress, "exporting"):
            dense, compressed = export_pair(network, Path(folder), onnx)
        calibration = _calibration_samples(network, progress) if samples is None else samples.numpy()
        with working(progress, "loading the other runtimes"):
            others, left_out = usable_peers(dense, calibration, peers)
        for line in left_out:
            progress.log(line)
        masked = network.model.cpu().eval()
        runtimes: list[Runtime] = [OnnxRuntime("onnxruntime dense", dense), TorchRuntime("torch dense", dense_twin(masked)), *others]
        name, file = ("compressed", compressed) if compressed is not None else ("dense", dense)
        with working(progress, _CHECKING):
            parity = check_parity(masked, file, calibration, reference_samples=0, engine=True, progress=progress)
        parity.require()  # what computes something else has no latency worth a table
        if warning := parity.engine_warning():
            progress.log(f"engine {name} is left out; {warning}")
        elif parity.compares(ENGINE):  # otherwise a line of the log has said why not
            runtimes.append(EngineRuntime(f"engine {name}", file))
        if compressed is not None:
            runtimes.append(OnnxRuntime("onnxruntime compressed", compressed))
        return benchmark(runtimes, network.input_shape, config, progress=progress)


def bench_layers(
    network: Network | Bundle | Path | str, *, onnx: Path | str | None = None, rounds: int = 9, progress: Progress | None = None
) -> tuple["LayerTime", ...]:
    """Every convolution of the compressed network (of the dense one where it has no masks) in the engine beside dense ONNX Runtime."""
    from fineprune.export.layer_times import layer_times

    network = _opened(network)
    with tempfile.TemporaryDirectory(prefix="fineprune-bench-") as folder:
        dense, compressed = export_pair(network, Path(folder), onnx)
        return layer_times(
            dense, compressed or dense, _calibration_samples(network, Silent())[:1], rounds=rounds, progress=progress or Silent()
        )


def export_pair(network: Network, folder: Path, onnx: Path | str | None = None) -> tuple[Path, Path | None]:
    """ONNX files of the dense network and of the compressed one (`onnx` where that is given, None where nothing is masked)."""
    from fineprune.export.exporter import export_onnx

    model = network.model.cpu().eval()
    dense, compressed = folder / "dense.onnx", folder / "compressed.onnx"
    export_onnx(dense_twin(model), network.input_shape, dense, plain=True)  # other runtimes and layer_times read no packed weights
    if onnx is not None:
        return dense, Path(onnx)
    if not any(True for _ in masked_layers(model)):
        return dense, None
    export_onnx(model, network.input_shape, compressed)
    return dense, compressed


def _opened(network: Network | Bundle | Path | str, model: nn.Module | None = None, trust: Collection[str] = ()) -> Network:
    if isinstance(network, Bundle):
        return network_of(network, model=model, trust=trust)
    return network if isinstance(network, Network) else open_bundle(network, model=model, trust=trust)


def _calibration_samples(network: Network, progress: Progress) -> Any:
    """A few real samples where the data set is known and may be read (they calibrate int8), else noise; float32 [N,C,H,W]."""
    if network.data is not None:
        if not missing(data_names(load_arguments(network.data)), network.trust):
            return real_samples(network, CALIBRATION_SAMPLES).numpy()
        where = f"the data {network.data['spec']} that {manifest_of(network.bundle)} names"
        progress.log(f"{where} are not read by themselves: inputs are noise (--data gives real ones)")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CALIBRATION_SAMPLES, *network.input_shape, generator=generator).numpy()
