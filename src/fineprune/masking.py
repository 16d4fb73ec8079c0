"""Masks that come while a network trains, a few more at each of n updates, by the cubic schedule of Zhu and Gupta (2017):

    s_t = s_f (1 - (1 - t/T)^3)      for 0 <= t <= T, T = `share` of the run's steps; s_f: what is asked for

The weights under the masks keep their values, and each update ranks all of them anew by the methods of a compression at once, on the
network of now: what was dropped comes back where it is worth more than something else. From T on the masks stay.

Nothing is known here of an untrained network: what starts with random weights is pruned on the fly, while it is trained (section 6.4.3 of
the source).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn

from fineprune.calibrate.convolutions import ConvSite, Skipped
from fineprune.calibrate.strides import answer_as_nchw, wants_nchw
from fineprune.common.copies import copied
from fineprune.common.errors import UsageError
from fineprune.common.progress import Progress, Silent, working
from fineprune.compressor.bake import masked_layers, masks_of, remask
from fineprune.compressor.config import Part, PruneConfig
from fineprune.compressor.prune import CalibrationRun, Pruned, prune
from fineprune.models.training.checks import check_masking
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.sampling.time_model import trained_batches


@dataclass(frozen=True, kw_only=True)
class CubicSchedule:
    """When masks come; UsageError names the first value that is out of range."""

    share: float = 0.45
    """The part of the run, in (0,1), after which the masks are final."""
    updates: int = 8
    """How often they change until then."""
    samples: int = 1024
    """Of the training data, on which each update calibrates (where its method needs any)."""

    def __post_init__(self) -> None:
        number = isinstance(self.share, int | float) and not isinstance(self.share, bool)
        if not number or not 0 < self.share < 1:
            raise UsageError(f"prune_schedule: share is in (0,1), got {self.share!r}")
        for name in ("updates", "samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"prune_schedule: {name} is a whole number of at least 1, got {value!r}")

    @classmethod
    def of(cls, value: "CubicSchedule | str | Mapping[str, Any] | None") -> "CubicSchedule | None":
        """From a name (cubic, or one-shot for none), a mapping with the fields' values, or itself."""
        if value is None or isinstance(value, CubicSchedule):
            return value
        if not isinstance(value, str | Mapping):
            raise UsageError(f"prune_schedule is a name or a table with a name and settings, got {value!r}")
        settings = {"name": value} if isinstance(value, str) else dict(value)
        name = settings.pop("name", "cubic")
        if name not in ("cubic", "one-shot"):
            raise UsageError(f"prune_schedule is cubic or one-shot, got {name!r}")
        names = [f.name for f in fields(cls)]
        if unknown := set(settings) - (set(names) if name == "cubic" else set()):
            takes = ", ".join(names) if name == "cubic" else "nothing"
            raise UsageError(f"prune_schedule {name} has unknown {', '.join(sorted(map(str, unknown)))}; it takes {takes}")
        return cls(**settings) if name == "cubic" else None

    def to_json(self) -> dict[str, Any]:
        """The name and every setting."""
        return {"name": "cubic", "share": self.share, "updates": self.updates, "samples": self.samples}

    def check(self, finetune: TrainConfig | None) -> TrainConfig:
        """The fine-tuning, if masks can come during it; else UsageError."""
        if finetune is None:
            raise UsageError("masks that come by a schedule come while the network trains; give epochs of at least 1, or mask at once")
        check_masking(finetune)
        return finetune

    def check_steps(self, finetune: TrainConfig, samples: int) -> None:
        """UsageError where a fine-tuning on so many samples could end before the masks are final, which its last step must see."""
        policy = finetune.policy.name
        steps = 1 if policy != "none" else trained_batches(samples, finetune.batch_size)  # a policy may leave any number out
        if self.due(1 - 1 / (finetune.epochs * steps)) < self.updates:
            epochs = f"{finetune.epochs} epochs of {steps} steps" if policy == "none" else f"{finetune.epochs} epochs with policy {policy}"
            raise UsageError(f"{epochs} may end before the masks are final; train longer, or lower prune_schedule's share")

    def due(self, progress: float) -> int:
        """How many updates there are to have been once `progress`, in [0,1], of the run is done."""
        return min(self.updates, math.floor(progress / self.share * self.updates + 1e-9))

    def reached(self, updates: int) -> float:
        """The part of what is asked for that is pruned after so many updates, in [0,1]."""
        return 1 - (1 - updates / self.updates) ** 3


def at(config: PruneConfig, reached: float) -> PruneConfig:
    """`config` with `reached` times its pruned fractions."""

    def part_at(part: Part) -> Any:
        return replace(part, ratio=reached * part.ratio, per_layer={glob: reached * ratio for glob, ratio in part.per_layer.items()})

    return PruneConfig(ffp=part_at(config.ffp), fwp=part_at(config.fwp), common=reached * config.common)


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
        schedule: CubicSchedule,
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
            pruned = prune(network, at(self.config, self.schedule.reached(due)), run, found=self.found)
        self._apply(due, replace(pruned, model=self.model))
        asked = 100 * self.schedule.reached(due)
        self.progress.log(f"masks, update {due} of {self.schedule.updates}: {asked:.0f} % of what is asked for is pruned")

    @property
    def masks(self) -> dict[str, dict[str, Tensor]]:
        """By kind and layer."""
        return self.pruned.masks

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
        self.wear(pruned.masks)
