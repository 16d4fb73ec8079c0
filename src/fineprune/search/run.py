"""The search: levels of all layers that keep a target at the least loss.

    times and errors of every layer and level  ->  choice within T  ->  the network is built and timed  ->  T <- T * asked / measured, again

At most ROUNDS times, until it is within NEAR of what is asked. With a largest drop alone, the budget is bisected instead: at each the
chosen network is masked, refitted and compared with the dense one on validation samples. Nothing is trained here; no test data are read.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fineprune.calibrate.convolutions import ConvSite
from fineprune.common.errors import RunError
from fineprune.common.files import read_json, write_json
from fineprune.common.inputs import Structured, one
from fineprune.common.progress import Progress
from fineprune.compressor.bake import bake
from fineprune.compressor.config import PruneConfig
from fineprune.compressor.prune import CalibrationRun, prunable
from fineprune.compressor.reconstruct.run import ReconstructConfig
from fineprune.compressor.reconstruct.run import reconstruct as reconstruct_network
from fineprune.compressor.search.levels import DENSE, Level, masks_of_levels
from fineprune.compressor.search.sensitivity import LevelMasks
from fineprune.models.data import ImageData

from .drop import Drop
from .options import Options, chosen_masks, multiply_adds
from .sensitivity import Sensitivities
from .target import Target
from .times import LayerTimes, Machine

if TYPE_CHECKING:
    from fineprune.export.benchmark import Latency

ROUNDS, NEAR, OFF = 3, 0.03, 0.05
"""Corrections at most; how near is near enough; what is said to have missed the target."""
SOLVES = 6
"""Of a bisection."""
_IMAGES = 16
"""That calibrate the grids of int8 files, which are only timed."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The level of each layer, and how it was found, for the manifest."""

    levels: Mapping[str, Level]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search knows: the dense network, its data, settings of masks and of their refit; folder: where what it measures is kept."""

    model: nn.Module
    data: ImageData
    config: PruneConfig
    target: Target
    run: CalibrationRun
    refit: ReconstructConfig | None = None
    folder: Path | None = None
    rows: Path | None = None
    """The file that keeps what levels cost; by default one in the folder."""
    measured: int | None = None
    """Held-out samples that this is measured on; None: 512, of large images fewer."""
    progress: Progress

    def found(self) -> Found:
        """The choice; RunError where the target cannot be reached: it says what can."""
        kept = self.folder and self.folder / "search.json"
        if kept is not None and kept.is_file():
            facts = read_json(kept)
            return Found(levels={name: Level(**level) for name, level in facts["levels"].items()}, facts=facts)
        begun = time.monotonic()
        self.errors.measure()
        if self.target.macs is not None:
            chosen, facts = self._by_macs(self.target.macs)
        elif self.target.latency is not None:
            chosen, facts = self._by_latency()
        else:
            chosen, facts = self._by_drop()
        facts = {
            "target": self.target.to_json(),
            "levels": {name: level.to_json() for name, level in chosen.items()},
            **facts,
            "error": self.options.error(chosen),
            "measured_on": self.errors.measured_on,
            "seconds": time.monotonic() - begun,
        }
        if kept is not None:
            write_json(kept, facts)
        return Found(levels=chosen, facts=facts)

    @cached_property
    def sites(self) -> list[ConvSite]:
        """The layers that may be pruned."""
        half: dict[str, Any] = {
            "ffp": replace(self.config.ffp, ratio=0.5 if any(level.ffp for level in self.target.levels) else 0.0),
            "fwp": replace(self.config.fwp, ratio=0.5 if any(level.fwp for level in self.target.levels) else 0.0),
        }
        return prunable(self.model, PruneConfig(**half), self.run)[0]

    @cached_property
    def masks(self) -> LevelMasks:
        """Of all layers, by level."""
        run = replace(self.run, folder=self.folder and self.folder / "levels")
        found = masks_of_levels(self.model, self.config, run, self.sites, self.target.levels)
        if not any(of_kind for of_level in found.values() for of_kind in of_level.values()):
            raise RunError("no layer can be pruned at any level; include more layers, or give other levels")
        return found

    @cached_property
    def errors(self) -> Sensitivities:
        """What the levels cost."""
        path = self.rows or (self.folder and self.folder / "sensitivity.json")
        options: dict[str, Any] = {"refit": self.refit, "samples": self.measured, "path": path}
        return Sensitivities(self.model, self.masks, self.sites, self.run, self.data, **options)

    @cached_property
    def times(self) -> LayerTimes:
        """Of the machine that is meant."""
        if self.target.times is not None:
            found = LayerTimes.load(self.target.times)
            found.check(self.sites, self.target, self.config.fwp.unit, self.target.times)
            return found
        kept = self.folder and self.folder / "times.json"
        if kept is not None and kept.is_file():
            return LayerTimes.load(kept)
        measured = self.machine.times(self.masks, self.sites, self.config.fwp.unit)
        if kept is not None:
            measured.save(kept)
        return measured

    @cached_property
    def machine(self) -> Machine:
        """This one."""
        shape = self.data.shape
        if isinstance(shape, Structured):
            raise RunError("a latency is searched for networks that take one tensor; give target_macs, which needs no exported file")
        images = one(next(iter(self.data.train.batches(_IMAGES))).images)
        return Machine(self.model, tuple(shape), self.target, images.numpy(), self.progress)

    @cached_property
    def options(self) -> Options:
        """What is open to each layer."""
        measured = self.times.layers if self.target.macs is None else multiply_adds(self.masks, self.sites)
        return Options.of(measured, {site.name: self.errors.errors(site.name) for site in self.sites})

    def masked(self, chosen: Mapping[str, Level]) -> nn.Module:
        """The network at a choice of levels."""
        return bake(self.model, chosen_masks(self.masks, chosen), input_shape=self.run.input_shape)

    def _by_macs(self, kept: float) -> tuple[dict[str, Level], dict[str, Any]]:
        whole = sum(site.macs for site in self.sites)
        others = whole - self.options.dense
        chosen = self.options.choice(kept * whole - others)
        if chosen is None:
            least = (others + self.options.fastest) / whole
            raise RunError(f"{kept:.0%} of the multiply-adds cannot be reached: with these levels and layers at least {least:.1%} stay")
        return chosen, {}

    def _by_latency(self) -> tuple[dict[str, Level], dict[str, Any]]:
        asked = self._asked()
        aim, rounds, best = asked, list[dict[str, float]](), None
        for _ in range(ROUNDS):
            chosen, fastest = self._within(aim), False
            if chosen is None:
                chosen, fastest = self._fastest(), True
            expected = self.times.expected(chosen)
            if self.target.times is not None:  # nothing to correct by
                if fastest and expected > asked * (1 + OFF):
                    raise self._refusal(expected)
                return chosen, self._facts(asked, expected, None, rounds)
            measured = self._measured(chosen)
            rounds.append({"aimed_ms": aim * 1e3, "expected_ms": expected * 1e3, "measured_ms": measured * 1e3})
            self.progress.log(f"expected {_ms(expected)}, measured {_ms(measured)}, asked {_ms(asked)}")
            if best is None or abs(measured / asked - 1) < abs(best[1] / asked - 1):
                best = chosen, measured, expected
            if fastest and measured > asked * (1 + OFF):
                raise self._refusal(measured)
            if abs(measured / asked - 1) <= NEAR or (fastest and measured > asked):
                break
            aim *= asked / measured
        assert best is not None
        return best[0], self._facts(asked, best[2], best[1], rounds)

    def _asked(self) -> float:
        asked = self.target.seconds(self.times.reference)
        assert asked is not None
        dense = self.times.whole.get(DENSE, self.times.reference)
        if asked >= dense:
            raise RunError(
                f"the dense network takes {_ms(dense)}, and {_ms(asked)} is asked for: there is nothing to prune; export it as it is"
            )
        return asked

    def _within(self, latency: float) -> dict[str, Level] | None:
        rest, scale = self.times.fit
        others = sum(of_layer[DENSE] for name, of_layer in self.times.layers.items() if name not in self.options.names)
        return self.options.choice((latency - rest) / scale - others)

    def _fastest(self) -> dict[str, Level]:
        chosen = self.options.choice(self.options.fastest * (1 + 1e-6))
        if chosen is None:
            raise RunError("no level of any layer is faster than the dense layer on this machine; there is nothing to gain by pruning")
        return chosen

    def _refusal(self, fastest: float) -> RunError:
        reference = self.times.reference
        return RunError(
            f"{self.target.latency} cannot be reached: the fastest that these levels give is {_ms(fastest)} "
            f"({fastest / reference:.2f}x of the dense network's {_ms(reference)}); ask for that, or prune more layers"
        )

    def _measured(self, chosen: Mapping[str, Level]) -> float:
        return self._judged(self.machine.latency(self.masked(chosen))[0])

    def _judged(self, row: "Latency") -> float:
        # What is asked as a part of the dense network's time is judged by runs that took turns with it.
        relative = self.target.latency is not None and self.target.latency.strip().endswith("x")
        return self.times.reference / row.speedup if relative else row.median_ms / 1e3

    def _facts(self, asked: float | None, expected: float, measured: float | None, rounds: list[dict[str, float]]) -> dict[str, Any]:
        return {
            "asked_ms": None if asked is None else asked * 1e3,
            "expected_ms": expected * 1e3,
            "measured_ms": None if measured is None else measured * 1e3,
            "reference_ms": self.times.reference * 1e3,
            "rounds": rounds,
            "machine": dict(self.times.machine),
        }

    def _by_drop(self) -> tuple[dict[str, Level], dict[str, Any]]:
        """The fastest whose drop is small enough, by bisection over the sum of times."""
        allowed, best = self.target.max_drop, None
        assert allowed is not None
        self._fastest()  # where nothing is gained, that is said
        low, high, tried = self.options.fastest, self.options.dense, list[dict[str, Any]]()
        for number in range(SOLVES):
            budget = (low * high) ** 0.5
            chosen = self.options.choice(budget)
            if chosen is None:
                low = budget
                continue
            lost = self.drop(self.refitted(chosen))
            expected = self.times.expected(chosen)
            tried.append({"expected_ms": expected * 1e3, **lost.to_json()})
            self.progress.log(f"solve {number + 1} of {SOLVES}: {_ms(expected)} expected, {lost.text}")
            if lost.kept(allowed):
                best, high = (chosen, lost), budget
            else:
                low = budget
        if best is None:
            raise RunError(
                f"no choice of levels keeps a drop of {allowed:g}; the lightest that was tried: {lost.text}; allow more, or train"
            )
        measured = None if self.target.times is not None else self._measured(best[0])
        return best[0], {**self._facts(None, self.times.expected(best[0]), measured, []), "drop": best[1].to_json(), "tried": tried}

    def end(self, model: nn.Module) -> "End":
        """How far `model`, at the end of all steps, keeps what is asked."""
        latency = None
        if self.target.macs is None and self.target.times is None:
            row, _ = self.machine.latency(model)
            latency = self._judged(row)
        asked = self._asked() if self.target.latency is not None and latency is not None else None
        return End(
            asked=asked, latency=latency, allowed=self.target.max_drop, drop=None if self.target.max_drop is None else self.drop(model)
        )

    def refitted(self, chosen: Mapping[str, Level]) -> nn.Module:
        """The network at a choice of levels, its kept weights refitted."""
        masked = self.masked(chosen)
        if self.refit is not None:
            reconstruct_network(self.model, masked, replace(self.run, folder=None), self.refit)
        return masked

    def drop(self, model: nn.Module) -> Drop:
        """What `model` loses against the dense network on validation samples."""
        return Drop.between(model, self._exact, self.data, self.run.device, self.progress)

    @cached_property
    def _exact(self) -> Tensor:
        """The dense network's figure on every validation sample."""
        return Drop.figures(self.model, self.data, self.run.device, self.progress)


@dataclass(frozen=True, kw_only=True)
class End:
    """Of the finished network: the latency asked and measured, in seconds, and the drop allowed and measured; None: not asked."""

    asked: float | None
    latency: float | None
    allowed: float | None
    drop: Drop | None

    @property
    def kept(self) -> bool:
        """Whether all that is asked is kept: the latency within OFF, and the drop as it is measured."""
        slow = self.asked is not None and self.latency is not None and self.latency > self.asked * (1 + OFF)
        return not slow and (self.drop is None or self.allowed is None or self.drop.lost <= self.allowed)

    @property
    def lines(self) -> list[str]:
        """What there is to say."""
        found = []
        if self.latency is not None:
            asked = "" if self.asked is None else f", asked {_ms(self.asked)}"
            found.append(f"the compressed network takes {_ms(self.latency)}{asked}")
        if self.drop is not None:
            found.append(f"{self.drop.text}, allowed {self.allowed:g}")
        if not self.kept:
            found.append("warning: the target is not kept; ask for less, or train longer")
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        latency = None if self.latency is None else self.latency * 1e3
        return {"kept": self.kept, "latency_ms": latency, "drop": None if self.drop is None else self.drop.to_json()}


def _ms(value: float) -> str:
    return f"{value * 1e3:.3g} ms"
