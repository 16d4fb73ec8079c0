"""Training as a job: a network by name becomes a checkpoint beside the facts of how it was made."""

from pathlib import Path
from typing import Any

from torch import nn

from fineprune.common.errors import UsageError
from fineprune.common.files import check_writable, sha256, write_bytes, write_json
from fineprune.common.processes import joined
from fineprune.common.progress import Progress, Silent
from fineprune.export.machine import package_versions
from fineprune.models.data import ImageData
from fineprune.models.naming import is_onnx
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.evaluate import evaluate
from fineprune.models.training.interfaces import Beside
from fineprune.models.training.results import TrainResult
from fineprune.models.training.state import STATE_FILE
from fineprune.models.training.trainer import opened
from fineprune.models.zoo import ModelSpec, build, load_checkpoint

from .networks import check_channels, completed, open_model

CHECKPOINT, FACTS = "model.safetensors", "training.json"
SUSPECTS = 48


def train_network(
    spec: ModelSpec,
    data: ImageData,
    config: TrainConfig,
    *,
    output: Path,
    checkpoint: Path | None = None,
    device: str = "auto",
    suspects: int = SUSPECTS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train `spec` on `data` into the folder `output` and return the facts written there; resumes from the state that the folder holds.

    suspects: how many samples the report on bad data shows, where the config records losses. Of several processes (`torchrun`) each calls
    this, and the first one writes.
    """
    check_target(output)
    with joined() as group:
        progress, name = group.speaker(progress or Silent()), spec.name
        model, spec = _start(spec, data, config.seed, checkpoint, progress)
        given = {"checkpoint": checkpoint, "onnx": Path(name) if is_onnx(name) else None}
        start = {kind: sha256(file) for kind, file in given.items() if file is not None}
        with opened(model, data, config, output=output, device=device, progress=progress, beside=Beside(identity=start)) as run:
            result = run.finish()
        split = getattr(data, data.held_out)
        value = evaluate(model, split, device=device, progress=progress, group=group).accuracy if len(split) else None
        facts = {
            "model": spec.to_json(),
            "data": data.to_json(),
            "config": config.to_json(),
            **result.to_json(),
            "accuracy": {"split": data.held_out, "value": value, "samples": len(split)},
            "checkpoint": str(output / CHECKPOINT),
        }
        return group.on_first(lambda: _write(facts, model, result, data, config, output, suspects))


def _start(spec: ModelSpec, data: ImageData, seed: int, checkpoint: Path | None, progress: Progress) -> tuple[nn.Module, ModelSpec]:
    """The network that training starts from."""
    if is_onnx(spec.name):
        network = open_model(spec, checkpoint=checkpoint, data=data, progress=progress)
        return network.model, network.spec or spec
    spec = completed(spec, data.input_shape, data)
    model = build(spec, seed=seed)
    check_channels(model, data.input_shape, spec)
    if checkpoint is not None:
        for note in load_checkpoint(model, checkpoint, spec):
            progress.log(note)
    return model, spec


def _write(
    facts: dict[str, Any], model: nn.Module, result: TrainResult, data: ImageData, config: TrainConfig, output: Path, suspects: int
) -> dict[str, Any]:
    """The folder of a finished training; the facts, with what was written."""
    from safetensors.torch import save

    # Copies, for safetensors refuses weights that layers share.
    write_bytes(output / CHECKPOINT, save({key: tensor.detach().cpu().clone().contiguous() for key, tensor in model.state_dict().items()}))
    reports = [str(path) for path in _reports(result, data, config, output, suspects)]
    facts = {**facts, "reports": reports, "packages": package_versions()}
    write_json(output / FACTS, facts)
    return facts


def _reports(result: TrainResult, data: ImageData, config: TrainConfig, output: Path, suspects: int) -> list[Path]:
    """What the run gives to look at; matplotlib is imported only where something is drawn."""
    from .training_report import write_auto_rate, write_suspects

    written = []
    if config.schedule == "auto":
        written.append(output / "auto_lr.png")
        write_auto_rate(written[0], result.history, config.rate_rule, config.lr)
    if result.losses is not None:
        written += write_suspects(output, result.losses, data, suspects, config.policy)
    return written


def check_target(output: Path) -> None:
    """UsageError where training into `output` would replace weights from elsewhere, RunError where it cannot write."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; give a folder")
    if (output / CHECKPOINT).exists() and not any((output / name).exists() for name in (FACTS, STATE_FILE)):
        raise UsageError(f"{output / CHECKPOINT} exists and is not of a training in {output}; choose another output folder")
    check_writable(output / CHECKPOINT)
