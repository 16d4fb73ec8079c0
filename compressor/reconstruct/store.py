"""Weights that were refitted so far, kept in a folder, so that an interrupted run goes on after them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fineprune.calibrate.statistics import fingerprint, masks_by_layer
from fineprune.common.errors import RunError
from fineprune.common.files import read_json, write_bytes, write_json
from fineprune.common.tensors import read_tensors

_FACTS = "reconstruction.json"


class Store:
    """One file a layer, in the order of refitting; `settings` and the networks tell whether they are of this run."""

    def __init__(self, folder: Path | None, dense: nn.Module, masked: nn.Module, settings: dict[str, Any]) -> None:
        self._folder = folder
        if folder is not None:
            networks = [fingerprint(model, masks_by_layer(model, (n for n, _ in model.named_modules()))) for model in (dense, masked)]
            self._facts = {"settings": settings, "networks": networks}

    def load(self, shapes: Sequence[dict[str, tuple[int, ...]]]) -> list[dict[str, Tensor]]:
        """The weights of the first layers, as far as they are kept; `shapes` are those of all layers. An older run's are removed."""
        if self._folder is None:
            return []
        try:
            known = read_json(self._folder / _FACTS) == self._facts
        except RunError:
            known = False
        if not known:
            shutil.rmtree(self._folder, ignore_errors=True)
            write_json(self._folder / _FACTS, self._facts)
        found: list[dict[str, Tensor]] = []
        for place, wanted in enumerate(shapes):
            if not self._path(place).is_file():
                break
            state = read_tensors(self._path(place), f"delete {self._folder} and run again")
            if {name: tuple(value.shape) for name, value in state.items()} != wanted or not all(v.isfinite().all() for v in state.values()):
                raise RunError(f"{self._path(place)} does not hold the weights of its layer; delete {self._folder} and run again")
            found.append(state)
        return found

    def save(self, place: int, state: dict[str, Tensor]) -> None:
        """Keep the weights of the layer at `place`."""
        from safetensors.torch import save

        if self._folder is not None:
            write_bytes(self._path(place), save(state))

    def _path(self, place: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{place:04d}.safetensors"
