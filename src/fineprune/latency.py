"""What a compressed network gained in speed: latencies side by side, in float32 and in eight bits, and layer by layer."""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fineprune.common.errors import FinepruneError, UsageError
from fineprune.common.inputs import Forward, Structured
from fineprune.common.progress import Lines, Progress, Silent, working
from fineprune.compressor.bake import dense_twin, masked_layers
from fineprune.compressor.bundle import Bundle

from .arguments import check_arguments, check_progress, check_samples
from .deployment import CHECKING, PARITY_SAMPLES, opened, real_samples
from .networks import Network, load_arguments, manifest_of
from .samples import called_on, compared
from .trust import data_names, missing

if TYPE_CHECKING:
    from fineprune.export.benchmark import BenchmarkConfig, BenchmarkReport
    from fineprune.export.layer_times import LayerTime
    from fineprune.export.runtimes import Runtime

CALIBRATION_SAMPLES = 16
_ALONE = "other runtimes and int8 are left out: they are given one input"
Files = Path | str | Sequence[Path | str] | None
"""ONNX files of one network."""


def bench(
    network: Network | Bundle | Path | str,
    config: "BenchmarkConfig | None" = None,
    *,
    onnx: Files = None,
    int8: bool = True,
    peers: Sequence[str] | None = None,
    samples: Any = None,
    model: nn.Module | None = None,
    forward: Forward | None = None,
    trust: Collection[str] = (),
    progress: Progress | None = None,
) -> "BenchmarkReport":
    """Latency of the dense network in ONNX Runtime (the baseline), torch and other runtimes, and of the compressed one in the engine
    and in ONNX Runtime, in float32 and in int8.

    The compressed network is exported afresh, but for what `onnx` names files of: one in float32, one in int8, or both. int8=False exports
    none in int8. peers: names of `fineprune.export.peers.PEERS`, all by default. samples, in a form that `compress` takes, calibrate int8;
    by default they are of the data that the manifest names, or noise where that needs your word: enough for times, not for accuracy. model:
    the dense architecture, where the manifest names none. trust: names of your own code and data that the bundle in a folder may use.
    forward: as in `to_onnx`; peers and int8 run networks of one input and are left out. Lines of the log name what is not installed or
    cannot run the network, and figures that say nothing on a busy machine.
    """
    from fineprune.export.benchmark import BenchmarkConfig, benchmark
    from fineprune.export.flat import Flat
    from fineprune.export.peers import usable_peers
    from fineprune.export.runtimes import OnnxRuntime, TorchRuntime

    given = _files(onnx)
    check_arguments(network=network, architecture=model)
    sample = None if forward is None else called_on(samples, PARITY_SAMPLES, forward)
    if sample is None:
        check_samples(samples)
    check_progress(progress)
    if config is not None and not isinstance(config, BenchmarkConfig):
        raise UsageError(f"config is a fineprune.export.benchmark.BenchmarkConfig, got {config!r:.80}")
    progress = progress or Lines()
    network = replace(opened(network, model, trust), sample=sample)
    calibration = sample or (_calibration_samples(network, progress) if samples is None else compared(samples, PARITY_SAMPLES).numpy())
    with tempfile.TemporaryDirectory(prefix="fineprune-bench-") as folder:
        alone = None if isinstance(calibration, Structured) else calibration
        dense, files = _exported(network, Path(folder), given, alone if int8 else None, progress)
        with working(progress, "loading the other runtimes"):
            others, left_out = ([], [_ALONE]) if alone is None else usable_peers(dense, alone, peers)
        for line in left_out:
            progress.log(line)
        masked = network.model.cpu().eval()
        twin = dense_twin(masked)
        torch_dense = TorchRuntime("torch dense", Flat(twin, network.sample) if network.sample else twin)
        runtimes: list[Runtime] = [OnnxRuntime("onnxruntime dense", dense), torch_dense, *others]
        for name, file in files.items():
            runtimes += _checked(name, file, masked, calibration, progress)
        names = [runtime.name for runtime in runtimes]
        rival = next((name for name in names if name.startswith("onnxruntime") and name.endswith("int8")), None)
        report = benchmark(runtimes, network.shape, config, rival=rival, progress=progress)
        return replace(report, file_bytes={name: file.stat().st_size for name, file in {"dense": dense, **files}.items()})


def bench_layers(
    network: Network | Bundle | Path | str, *, onnx: Files = None, int8: bool = True, rounds: int = 9, progress: Progress | None = None
) -> dict[str, tuple["LayerTime", ...]]:
    """Every convolution of the compressed network (of the dense one where it has no masks) in the engine beside dense ONNX Runtime; by
    file, which are that in float32 and that in int8."""
    from fineprune.export.layer_times import layer_times_of

    network, progress = opened(network), progress or Silent()
    samples = _calibration_samples(network, Silent())
    with tempfile.TemporaryDirectory(prefix="fineprune-bench-") as folder:
        dense, files = _exported(network, Path(folder), _files(onnx), samples if int8 else None, progress)
        return layer_times_of(dense, files, samples[:1], rounds=rounds, progress=progress)


def layer_rows(times: Mapping[str, Sequence["LayerTime"]]) -> dict[str, list[dict[str, Any]]]:
    """What `bench_layers` gives as plain values: `layers` in float32, `layers_int8` in int8."""
    return {"layers_int8" if name.endswith("int8") else "layers": [row.to_json() for row in rows] for name, rows in times.items()}


def peers_of(names: str | Sequence[str]) -> list[str] | None:
    """Peers as `bench` takes them, of "all", "none", names with commas between or a list; UsageError for a name that there is not."""
    from fineprune.export.peers import PEERS

    known = [peer.name for peer in PEERS]
    if names in ("all", "none"):
        return None if names == "all" else []
    chosen = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            raise UsageError(f"there is no peer {name!r}; peers are all, none or some of {','.join(known)}")
    return chosen


def _files(onnx: Files) -> dict[bool, Path]:
    """The files by whether they are in int8."""
    from fineprune.export.parity import is_int8

    found: dict[bool, Path] = {}
    several: Sequence[Path | str] = [onnx] if isinstance(onnx, str) or not isinstance(onnx, Sequence | None) else onnx or ()
    for file in several:
        check_arguments(onnx=file)
        kind = is_int8(file)
        if kind in found:
            raise UsageError(f"{found[kind]} and {file} are both in {'int8' if kind else 'float32'}; measure one of them at a time")
        found[kind] = Path(file)
    return found


def _exported(
    network: Network, folder: Path, given: dict[bool, Path], calibration: np.ndarray | None, progress: Progress
) -> tuple[Path, dict[str, Path]]:
    """ONNX files of the dense network, and by name, of the compressed one (of the dense one where nothing is masked): `given`, or written
    here; with `calibration` in int8, too."""
    from fineprune.export.exporter import export_onnx
    from fineprune.export.int8.quantiser import Quantiser

    model = network.model.cpu().eval()
    dense, compressed, int8 = (folder / f"{name}.onnx" for name in ("dense", "compressed", "int8"))
    with working(progress, "exporting"):
        export_onnx(dense_twin(model), network.shape, dense, plain=True)  # other runtimes and layer_times read no packed weights
        masked = any(True for _ in masked_layers(model))
        name = "compressed" if masked or False in given else "dense"
        files = {name: given.get(False, compressed if masked else dense)}
        if files[name] == compressed:
            export_onnx(model, network.shape, compressed)
        if True in given:
            files[f"{name} int8"] = given[True]
        elif calibration is not None:
            try:
                export_onnx(model, network.shape, int8, int8=Quantiser(samples=calibration))
                files[f"{name} int8"] = int8
            except FinepruneError as error:
                progress.log(f"int8 is left out: {error}")
    return dense, files


def _checked(name: str, file: Path, masked: nn.Module, samples: Any, progress: Progress) -> Iterator["Runtime"]:
    """The engine on a file, where that computes what it should, and ONNX Runtime, but for the dense network's, which is the baseline."""
    from fineprune.export.engine.run.runtime import EngineRuntime
    from fineprune.export.parity import ENGINE, check_int8_parity, check_parity
    from fineprune.export.runtimes import OnnxRuntime

    with working(progress, CHECKING):
        if name.endswith("int8"):
            parity = check_int8_parity(file, samples, reference_samples=0, progress=progress)
        else:
            parity = check_parity(masked, file, samples, reference_samples=0, engine=True, progress=progress)
            parity.require()  # what computes something else has no latency worth a table
    if warning := parity.engine_warning():
        progress.log(f"engine {name} is left out; {warning}")
    elif parity.compares(ENGINE):  # otherwise a line of the log has said why not
        yield EngineRuntime(f"engine {name}", file)
    if name != "dense":
        yield OnnxRuntime(f"onnxruntime {name}", file)


def _calibration_samples(network: Network, progress: Progress) -> Any:
    """A few real samples where the data set is known and may be read (they calibrate int8), else noise; float32 [N,C,H,W]."""
    if network.data is not None:
        if not missing(data_names(load_arguments(network.data)), network.trust):
            return real_samples(network, CALIBRATION_SAMPLES).numpy()
        where = f"the data {network.data['spec']} that {manifest_of(network.bundle)} names"
        progress.log(f"{where} are not read by themselves: inputs are noise (--data gives real ones; in Python: samples)")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CALIBRATION_SAMPLES, *network.input_shape, generator=generator).numpy()
