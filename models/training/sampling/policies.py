"""Policies: losses of the samples that were visited go in, the samples of the next epoch come out.

fine-pruning   count[x] += 1  where  loss[x] >= mean_batch * (1 + tolerance);  counts start anew in each window; an epoch that
               prunes leaves out the n = round(fraction * N) samples with the largest count, the bad ones, ties at random
               (Algorithms 1-2 of the source; the schedule is in schedule.py); order=easiest: those with the smallest count;
               order=random: any n of them, in the same epochs: an equal budget without losses
random         the same as fine-pruning with order=random
infobatch      each sample with loss below the mean of all is left out with a share `drop`; the kept ones of them weigh
               1 / (1 - drop), so that the expected gradient stays the same (Qin et al., InfoBatch, ICLR 2024)
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fineprune.common.errors import RunError, UsageError

from ..device import derive_seed
from .config import OrderName, PolicyConfig
from .schedule import most_pruned, prunes

MAX_WEIGHT = 4.0
"""rescale: no kept sample stands for more than three pruned ones, however few of its count are kept."""


class Selection(NamedTuple):
    """Samples of one epoch: indices int64 [n], ascending (None: all), weights float32 [N] by sample (None: all 1)."""

    indices: Tensor | None = None
    weights: Tensor | None = None


class Policy:
    """Visits every sample (`none`), and what all policies share.

    samples: N, indices are 0 .. N-1. epochs: length of the run. A choice is a function of (seed, epoch, observations).
    """

    def __init__(self, config: PolicyConfig, *, samples: int, epochs: int, seed: int) -> None:
        self.config, self.samples, self.epochs, self.seed = config.for_epochs(epochs), samples, epochs, seed

    def observe(self, indices: Tensor, losses: Tensor) -> None:
        """Take in one training batch: indices int64 [n] and losses [n] before the update; of several processes, all of its samples.

        RunError for indices outside the split or losses that are not finite.
        """
        if self.config.name == "none":
            return
        if indices.ndim != 1 or indices.shape != losses.shape:
            raise RunError(f"the policy got {tuple(losses.shape)} losses for {tuple(indices.shape)} samples; give one for each")
        indices, losses = indices.cpu(), losses.detach().float().cpu()
        # NumPy, as its calls on a few hundred numbers cost a fraction of torch's.
        samples, values = indices.numpy(), losses.numpy()
        if len(samples) == 0:
            return
        if samples.min() < 0 or samples.max() >= self.samples:
            raise RunError(f"the policy knows samples 0 to {self.samples - 1}, got {samples.min()} to {samples.max()}")
        if not np.isfinite(values).all():
            broken = samples[~np.isfinite(values)][0]
            raise RunError(f"the loss of sample {broken} is not finite; train with a lower learning rate or check the data")
        self._observe(samples, values)

    def epoch(self, epoch: int) -> Selection:
        """The samples of `epoch` (0-based). Call it once at the start of each epoch, in order."""
        return self._choose(epoch) if prunes(self.config, epoch, self.epochs) else Selection()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers from which `load_state_dict` goes on exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def _observe(self, samples: NDArray[np.int64], losses: NDArray[np.float32]) -> None:
        pass

    def _choose(self, epoch: int) -> Selection:
        return Selection()

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, "policy", epoch))


class FinePruning(Policy):
    """Algorithms 1-2. Pruned samples are not observed, so their counts stand still until the window ends."""

    def __init__(self, config: PolicyConfig, **run: Any) -> None:
        super().__init__(config, **run)
        self.counts = torch.zeros(self.samples, dtype=torch.int32)
        self.losses = torch.zeros(self.samples)
        """Most recent ones, for tie_break=loss."""

    def _observe(self, samples: NDArray[np.int64], losses: NDArray[np.float32]) -> None:
        self.counts.numpy()[samples[losses >= losses.mean() * (1 + self.config.tolerance)]] += 1
        self.losses.numpy()[samples] = losses

    def epoch(self, epoch: int) -> Selection:
        if epoch % (self.config.window or 1) == 0:
            self.counts.zero_()
        return super().epoch(epoch)

    def _choose(self, epoch: int) -> Selection:
        config = self.config
        pruned = first_to_prune(
            self.counts,
            most_pruned(config, self.samples),
            order=config.order,
            generator=self._generator(epoch),
            losses=self.losses if config.tie_break == "loss" else None,
            require_count=config.require_count,
        )
        if not pruned.any():
            return Selection()
        weights = stand_in_weights(self.counts, pruned, config.order) if config.rescale else None
        return Selection((~pruned).nonzero().squeeze(1), weights)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "losses": self.losses}


class RandomPruning(Policy):
    """The budget of fine-pruning, spent blindly."""

    def _choose(self, epoch: int) -> Selection:
        order = torch.randperm(self.samples, generator=self._generator(epoch))
        return Selection(order[most_pruned(self.config, self.samples) :].sort().values)


class InfoBatch(Policy):
    """A sample that was never visited has no loss yet and is kept; left-out samples keep their last loss."""

    def __init__(self, config: PolicyConfig, **run: Any) -> None:
        super().__init__(config, **run)
        self.losses = torch.full((self.samples,), float("nan"))

    def _observe(self, samples: NDArray[np.int64], losses: NDArray[np.float32]) -> None:
        self.losses.numpy()[samples] = losses

    def _choose(self, epoch: int) -> Selection:
        below = (self.losses < self.losses.nanmean()).nonzero().squeeze(1)
        count = round(self.config.drop * len(below))
        shuffled = below[torch.randperm(len(below), generator=self._generator(epoch))]
        if count == 0:
            return Selection()
        kept = torch.ones(self.samples, dtype=torch.bool)
        kept[shuffled[:count]] = False
        weights = torch.ones(self.samples)
        weights[shuffled[count:]] = 1 / (1 - self.config.drop)
        return Selection(kept.nonzero().squeeze(1), weights)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}


def first_to_prune(
    counts: Tensor, number: int, *, order: OrderName, generator: torch.Generator, losses: Tensor | None = None, require_count: bool = False
) -> Tensor:
    """bool [N]: `number` samples with the largest (order worst) or smallest (easiest) counts int32 [N].

    Ties by `losses` [N] where given, largest or smallest first alike, then at random. require_count: only samples with a count
    above 0, so perhaps fewer than `number`.
    """
    worst = order == "worst"
    ranking = torch.randperm(len(counts), generator=generator)
    if losses is not None:
        ranking = ranking[losses[ranking].argsort(descending=worst, stable=True)]
    ranking = ranking[counts[ranking].argsort(descending=worst, stable=True)]
    if require_count:
        ranking = ranking[counts[ranking] > 0]
    pruned = torch.zeros(len(counts), dtype=torch.bool)
    pruned[ranking[:number]] = True
    return pruned


def stand_in_weights(counts: Tensor, pruned: Tensor, order: OrderName) -> Tensor:
    """float32 [N]: samples kept although their count lies within those of the pruned share the weight of all such samples.

    Among equal counts pruning is a random choice, and this makes its expected gradient that of the whole; at most MAX_WEIGHT.
    """
    group = counts >= counts[pruned].min() if order == "worst" else counts <= counts[pruned].max()
    kept = group & ~pruned
    weights = torch.ones(len(counts))
    if kept.any():
        weights[kept] = min(MAX_WEIGHT, float(group.sum() / kept.sum()))
    return weights


_POLICIES: dict[str, type[Policy]] = {"none": Policy, "fine-pruning": FinePruning, "random": RandomPruning, "infobatch": InfoBatch}


def make_policy(config: PolicyConfig, *, samples: int, epochs: int, seed: int, batch_size: int) -> Policy:
    """The policy of a run; UsageError where it could leave less than one batch, or prunes no epoch of the run."""
    config = config.for_epochs(epochs)
    if config.name != "none":
        least = samples - most_pruned(config, samples)
        if least < batch_size:
            raise UsageError(
                f"policy {config.name} leaves {least} of {samples} training images, fewer than a batch of {batch_size}; "
                "use a smaller batch size, prune less, or use policy none"
            )
        if not any(prunes(config, epoch, epochs) for epoch in range(epochs)):
            raise UsageError(f"policy {config.name} prunes none of the {epochs} epochs; {_earlier(config)}, or use policy none")
    kind = RandomPruning if config.order == "random" else _POLICIES[config.name]
    return kind(config, samples=samples, epochs=epochs, seed=seed)


def _earlier(config: PolicyConfig) -> str:
    if config.name == "infobatch":
        return f"lower full_share={config.full_share} or train longer"
    return f"lower window={config.window} and start={config.start}"
