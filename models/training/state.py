"""The file that a run is resumed from: always whole, and refused by a run that it does not belong to.

It is one file, so that weights, optimizer, sums and the best weights so far can never be of different moments; it holds tensors,
numbers and text only and is read with weights_only=True.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fineprune.common.errors import RunError, said_by
from fineprune.common.files import atomic_path, own_file, remove_leftovers
from fineprune.common.processes import Group

from .config import TrainConfig
from .interfaces import DataLike

STATE_FILE = "training.pt"
_FORMAT = 2


def run_identity(model: nn.Module, data: DataLike, config: TrainConfig, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """What must agree for a resume, flat: settings, data, shapes of parameters and buffers, masks (boolean buffers), the caller's facts."""
    describe = getattr(data, "to_json", None)
    facts: dict[str, Any] = {f"config.{key}": value for key, value in config.identity().items()}
    facts["data.train_images"], facts["data.validation_images"] = len(data.train), len(data.validation)
    if describe is not None:
        facts |= {f"data.{key}": value for key, value in describe().items()}
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor) and value.dtype != torch.bool}
    facts |= {f"parameter {name}": list(value.shape) for name, value in state.items()}
    facts |= {f"mask {name}": _digest(value) for name, value in model.named_buffers() if value.dtype == torch.bool}
    facts |= dict(extra or {})
    return {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}


def save_state(output: Path, identity: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Replace the state in folder `output`. RunError where it cannot be written; the previous state then stays."""
    path = output / STATE_FILE
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as stream:  # torch's own files forget why they could not be written
                torch.save({"format": _FORMAT, "identity": dict(identity), **state}, stream)
        except RuntimeError as error:  # of closing torch's archive, after the write that failed
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_state(output: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """The state in folder `output`, on the CPU; None where there is none. RunError for a broken file or another run's."""
    path = own_file(output, STATE_FILE)
    remove_leftovers(path)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version, theirs = state["format"], dict(state["identity"])
    except Exception as error:  # torch raises many kinds for damaged archives
        raise RunError(f"{path} is not a whole training state ({said_by(error)}); delete it to train from the start") from error
    if version != _FORMAT:
        raise RunError(f"{path} has format {version}, this version reads {_FORMAT}; delete it to train from the start")
    differences = [
        f"{key} {theirs.get(key, 'absent')} there, {identity.get(key, 'absent')} now"
        for key in sorted({*theirs, *identity})
        if theirs.get(key) != identity.get(key)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise RunError(
            f"{path} belongs to another run: {'; '.join(differences[:3])}{more}; "
            "resume with the same settings, give another output folder, or delete the file to train from the start"
        )
    return state


class Store(Protocol):
    """Where a run's state is kept."""

    path: Path | None
    """Its file; None: nothing is kept."""
    resumable: bool
    """Whether it outlives the run."""

    def load(self) -> dict[str, Any] | None:
        """The state, on the CPU; None where there is none. RunError for a broken one or another run's."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state. RunError where it cannot be written; the previous one then stays."""
        ...


class FolderStore:
    """The state of a run in a folder of this machine; None: nothing is kept."""

    def __init__(self, output: Path | None, identity: Mapping[str, str], group: Group = Group()) -> None:  # noqa: B008 - immutable
        """group: its first process reads and writes for all."""
        self.output, self.identity, self.group = output, identity, group
        self.path = None if output is None else output / STATE_FILE
        self.resumable = output is not None

    def load(self) -> dict[str, Any] | None:
        output = self.output
        return None if output is None else self.group.on_first(lambda: load_state(output, self.identity))

    def save(self, state: Mapping[str, Any]) -> None:
        output = self.output
        if output is not None:
            self.group.on_first(lambda: save_state(output, self.identity, state))


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """RunError where the body, which goes to the state in the file `path`, finds something else in it than was written."""
    try:
        yield
    except Exception as error:  # whatever a part of the training says to values that are not its own
        what = f"{type(error).__name__}: {said_by(error)}"
        raise RunError(f"{path} is not a whole training state ({what}); delete it to train from the start") from error


def _digest(mask: Tensor) -> str:
    return hashlib.sha256(mask.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
