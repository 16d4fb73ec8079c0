"""Adaptive Sparsity Loss: one threshold a layer, trained with the network (compressor/criteria/asl.py has the equations).

Before each step: r_l -= speed * lr * v_l,  v_l = 0.9 v_l + d(loss + strength (density - target)^2)/d r_l,  masks: |w| > r_l std(w).
The layers hand the gradient of masked weights on to all weights (straight through), so that dropped ones train on and may come back. After
`share` of the run the masks are final: every layer's |w| / (r_l std(w)) in one list, cut where the multiply-adds asked for are left. Blocks
are ranked then, on what they leave.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import erfc, exp, pi, sqrt
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from fineprune.calibrate.calls import filters_of
from fineprune.common.copies import copied
from fineprune.common.errors import UsageError
from fineprune.common.progress import working
from fineprune.compressor.bake import masked_layers, remask
from fineprune.compressor.criteria.asl import spread
from fineprune.compressor.masks import BLOCKS, WEIGHTS
from fineprune.compressor.prune import prune
from fineprune.compressor.ranking import global_threshold

from .masking import MaskUpdates
from .schedules import Adaptive

MOMENTUM = 0.9
LEAST, LARGEST = 1e-6, 5.0
"""Of r, where something is divided by it, and ever."""
START = 0.6
"""Of the ratio, before the first step."""


def density(thresholds: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """The part of the multiply-adds that normally distributed weights keep."""
    return sum(share * erfc(thresholds[name] / sqrt(2)) for name, share in shares.items())


def first_threshold(ratio: float) -> float:
    """Under which `START` of the ratio of normally distributed weights lies."""
    return NormalDist().inv_cdf((1 + START * ratio) / 2)


def gradient(weight: Tensor, grad: Tensor, kept: Tensor, r: float) -> float:
    """d loss / d r of a layer, where `grad` is that of its masked weight; all of one shape."""
    return -float((grad * weight)[~kept].double().sum()) / max(r, LEAST)


class AdaptiveThresholds(MaskUpdates):
    """Masks that follow trained thresholds; lr: the learning rate of the weights, of which thresholds have `schedule.speed`."""

    schedule: Adaptive

    def __init__(self, *args: Any, lr: float) -> None:
        super().__init__(*args)
        least = max(2, self.schedule.smallest)  # one weight has no deviation
        sites = [site for site in self.config.fwp.chosen(self.found[0]) if torch.Size(site.weight_shape).numel() >= least]
        if not sites:
            raise UsageError(f"no layer that is pruned has as many as {least} weights; lower prune_schedule's smallest")
        total = sum(site.macs for site in sites)
        self.sites, self.shares, self.step = sites, {site.name: site.macs / total for site in sites}, lr * self.schedule.speed
        self.thresholds = dict.fromkeys(self.shares, first_threshold(self.config.fwp.ratio))
        self.velocities = dict.fromkeys(self.shares, 0.0)
        self._before = self.pruned.masks[WEIGHTS.name]
        self._pending: dict[str, float] = {}
        """Gradients that a resumed run left."""
        ones = {site.name: torch.ones(site.weight_shape, dtype=torch.bool) for site in sites}
        remask(self.model, {BLOCKS.name: self.pruned.masks[BLOCKS.name], WEIGHTS.name: self._before | ones})
        self._layers = {name: layer for name, layer in masked_layers(self.model) if name in self.shares}
        self._follow()

    def update(self, progress: float) -> None:
        """Before a step: learn from the gradients of the step before, and mask; or, once it is time, mask for good."""
        if self.final:
            return
        if self.schedule.due(progress):
            self._finish()
            return
        self._learn(self._gradients())
        self._follow()

    def _gradients(self) -> dict[str, float]:
        """d loss / d r of the step before, by layer; none before the first one."""
        found, self._pending = dict(self._pending), {}
        for name, layer in self._layers.items():
            grad = layer.own_weight.grad
            if name not in found and grad is not None and (kept := layer.fwp_mask) is not None:
                weight, of_masked = (filters_of(layer, tensor.detach()) for tensor in (layer.own_weight, grad))
                found[name] = gradient(weight, of_masked, kept, self.thresholds[name])
        return found

    def _learn(self, gradients: Mapping[str, float]) -> None:
        if not gradients:
            return
        off = density(self.thresholds, self.shares) - (1 - self.config.fwp.ratio)
        for name, share in self.shares.items():
            r = self.thresholds[name]
            sparsity = 2 * self.schedule.strength * off * -share * sqrt(2 / pi) * exp(-r * r / 2)
            self.velocities[name] = MOMENTUM * self.velocities[name] + gradients.get(name, 0.0) + sparsity
            self.thresholds[name] = min(LARGEST, max(0.0, r - self.step * self.velocities[name]))

    @torch.no_grad()
    def _follow(self) -> None:
        """The masks of now, in place."""
        for name, layer in self._layers.items():
            weight, mask = filters_of(layer, layer.own_weight), layer.fwp_mask
            assert mask is not None
            mask.copy_(weight.abs() > self.thresholds[name] * weight.std())
            if name in self._before:
                mask.logical_and_(self._before[name].to(mask.device))
            layer.straight_through = True

    def _finish(self) -> None:
        """Masks that keep what is asked for, and blocks on top."""
        scores, costs = {}, {}
        for site in self.sites:
            name, layer = site.name, self._layers[site.name]
            weight = filters_of(layer, layer.own_weight)
            costs[name] = torch.full(weight.shape, site.macs // weight.numel())
            scores[name] = spread(weight) / max(self.thresholds[name], LEAST) * costs[name]
            if name in self._before:  # what went before counts
                scores[name] = scores[name].masked_fill(~self._before[name].cpu(), -torch.inf)
        kept = global_threshold(scores, costs, self.config.fwp.ratio)
        weights = self._before | {name: mask & self._before[name] if name in self._before else mask for name, mask in kept.items()}
        for layer in self._layers.values():
            layer.straight_through = False
        network = copied(self.model).eval()
        remask(network, {BLOCKS.name: self.pruned.masks[BLOCKS.name], WEIGHTS.name: weights})
        blocks = replace(self.config, fwp=replace(self.config.fwp, ratio=0.0))
        with working(self.progress, "ranking masks"):
            pruned = prune(network, blocks, self.run, found=self.found)
        self._apply(1, replace(pruned, model=self.model))
        reached = ", ".join(f"{name} {r:.2f}" for name, r in self.thresholds.items())
        self.progress.log(f"masks are final; thresholds in standard deviations: {reached}")

    def state_dict(self) -> dict[str, Any]:
        """Thresholds too, and the gradients that they have not learned from yet."""
        learned = {"thresholds": dict(self.thresholds), "velocities": dict(self.velocities)}
        now = {} if self.final else {name: layer.masks[WEIGHTS.name].clone() for name, layer in self._layers.items()}
        gradients = {} if self.final else self._gradients()
        self._pending = gradients  # they are not lost to the run that goes on
        return {**super().state_dict(), **learned, "now": now, "gradients": gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.thresholds, self.velocities = dict(state["thresholds"]), dict(state["velocities"])
        if state["updates"]:
            for layer in self._layers.values():
                layer.straight_through = False
            super().load_state_dict(state)
        else:
            self._pending = dict(state["gradients"])
            for name, layer in self._layers.items():
                layer.masks[WEIGHTS.name].copy_(state["now"][name])
