"""Masks that come while a network trains, at each update of its schedule (schedules.py).

Each update ranks all weights anew by the methods of a compression at once, on the network of now: what was dropped comes back where it is
worth more than something else. Weights under the masks keep their values, are zero, or are zero and train on until the next update
(`WhileTraining.dropped`). From the last update on the masks stay.

Nothing is known here of an untrained network: what starts with random weights is pruned on the fly, while it is trained (section 6.4.3 of
the source).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from fineprune.calibrate.convolutions import ConvSite, Skipped
from fineprune.calibrate.strides import answer_as_nchw, wants_nchw
from fineprune.common.copies import copied
from fineprune.common.progress import Progress, Silent, working
from fineprune.compressor.bake import masked_layers, masks_of, remask, zero_dropped
from fineprune.compressor.config import PruneConfig
from fineprune.compressor.masks import WEIGHTS
from fineprune.compressor.prune import CalibrationRun, Pruned, prune

from .schedules import WhileTraining, at


class _Finished(Silent):
    """Shows lines, such as warnings about the final masks, and no loops: a step is within the bar of its epoch."""

    def __init__(self, progress: Progress) -> None:
        self.log = progress.log  # type: ignore[method-assign]


class MaskUpdates:
    """The masks of `model`, which trains, as they come; those that it carries at the start stay on it.

    run: where each update calibrates, on `schedule.samples` of its samples. found: what `prunable` says of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PruneConfig,
        schedule: WhileTraining,
        run: CalibrationRun,
        found: tuple[list[ConvSite], list[Skipped]],
    ) -> None:
        fewer = min(schedule.samples, run.config.samples or schedule.samples)
        self.model, self.config, self.schedule, self.found = model, config, schedule, found
        self.run = replace(run, folder=None, config=replace(run.config, samples=fewer), progress=Silent())
        self.progress = run.progress
        self.updates = 0
        """That there were."""
        self.pruned = Pruned(model=model, masks=masks_of(model), skipped=found[1])
        """What the last of them left."""
        self._carried = masks_of(model)
        self._acting = self.pruned.masks
        self._nchw: list[Any] = []
        self._worn: Any = None

    @property
    def final(self) -> bool:
        """Whether the masks stay from now on."""
        return self.updates == self.schedule.updates

    def update(self, progress: float) -> None:
        """Before a step: rank and mask anew, where that is due once `progress` of the run is done."""
        due = self.schedule.due(progress)
        if due <= self.updates:
            return
        network = copied(self.model).eval()
        remask(network, self._carried)
        run = replace(self.run, progress=_Finished(self.progress)) if due == self.schedule.updates else self.run
        with working(self.progress, "ranking masks"):
            pruned = prune(network, at(self.config, partial(self.schedule.ratio, due)), run, found=self.found)
        if self.schedule.dropped != "kept":
            remask(self.model, pruned.masks)
            zero_dropped(self.model)
        self._apply(due, replace(pruned, model=self.model))
        asked = 100 * self.schedule.reached(due)
        self.progress.log(f"masks, update {due} of {self.schedule.updates}: {asked:.0f} % of what is asked for is pruned")

    @property
    def masks(self) -> dict[str, dict[str, Tensor]]:
        """By kind and layer: those that act now."""
        return self._acting

    def wear(self, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put `masks` on the network in place of those that it has."""
        if masks is self._worn:
            return
        self._worn = masks
        remask(self.model, masks)
        for handle in self._nchw:
            handle.remove()
        blocked = [layer for _, layer in masked_layers(self.model) if layer.block_mask is not None]
        self._nchw = answer_as_nchw(blocked) if wants_nchw(self.model, blocked, self.run.input_shape) else []

    def state_dict(self) -> dict[str, Any]:
        """Updates and masks; what they were ranked by is computed anew at the next one."""
        pruned = self.pruned
        skipped = [[site.name, site.reason] for site in pruned.skipped]
        return {"updates": self.updates, "masks": pruned.masks, "groups": pruned.groups, "skipped": skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the weights are the trainer's to restore, after the masks."""
        skipped = [Skipped(name=name, reason=reason) for name, reason in state["skipped"]]
        self._apply(state["updates"], Pruned(model=self.model, masks=state["masks"], groups=state["groups"], skipped=skipped))

    def _apply(self, updates: int, pruned: Pruned) -> None:
        self.updates, self.pruned = updates, pruned
        trains_on = self.schedule.dropped == "trained" and not self.final
        self._acting = {**pruned.masks, WEIGHTS.name: self._carried[WEIGHTS.name]} if trains_on else pruned.masks
        self.wear(self.masks)
