"""What to prune: self-validating settings of FFP and FWP, and the two presets."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, get_args

from fineprune.calibrate.convolutions import LAYER_TYPES, ConvSite, select_sites
from fineprune.calibrate.frequency import Within
from fineprune.common.errors import UsageError
from fineprune.ops.as_conv2d import NAMES

from .criteria import criteria, criterion
from .criterion import Criterion
from .masks import MaskKind, in_order
from .units import TAP, TAPS, Unit

BlockScope = Literal["channel", "layer", "position", "global"]
WeightScope = Literal["kernel", "group", "channel", "filter", "layer", "global"]
WeightUnit = Literal["weight", "pair", "quad", "row"]
Order = Literal["cluster", "file"]
Share = Literal["filter", "group", "channel"]
Count = Literal["top", "sum"]
Preset = Literal["obs", "taylor", "thesis"]
Split = Literal["preset", "common"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Settings of one kind of mask: the method by name, and what is pruned by it.

    That is a pruned fraction in [0,1) for all layers, globs of layers to prune or to leave, and pruned fractions by glob.
    """

    mask: ClassVar[str]
    """The kind of mask."""
    scopes: ClassVar[Any]

    ratio: float = 0.0
    per_layer: Mapping[str, float] = field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    criterion: str = "taylor"
    scope: str = "global"
    floor: float = 0.05

    def __post_init__(self) -> None:
        if not isinstance(self.per_layer, Mapping):
            raise UsageError(f"{self.kind} per_layer is a table of pruned fractions by glob of layers, got {self.per_layer!r}")
        for name in ("include", "exclude"):
            globs = getattr(self, name)
            if not isinstance(globs, list | tuple) or not all(isinstance(glob, str) for glob in globs):
                raise UsageError(f"{self.kind} {name} is a list of globs of layers, got {globs!r}")
        for name, value in (("ratio", self.ratio), *((f"ratio of {layer!r}", value) for layer, value in self.per_layer.items())):
            _check_ratio(self.kind, name, value)
        _check_criterion(self.kind, self.mask, self.criterion)
        _check_choice(f"{self.kind} scope", self.scope, self.scopes)
        _check_ratio(self.kind, "floor", self.floor)
        if self.scope == "global" and not self.method.comparable:
            able = " or ".join(repr(other.name) for other in criteria(self.mask) if other.comparable)
            raise UsageError(f"{self.kind} scope 'global' needs the criterion {able}, got {self.criterion!r}: its layers do not compare")
        if self.scope not in self.method.unit.scopes:
            able = " or ".join(repr(scope) for scope in self.method.scopes)
            raise UsageError(
                f"the {self.kind} criterion {self.criterion!r} ranks {self.method.unit.name}s in scope {able}, not {self.scope!r}"
            )

    @property
    def method(self) -> Criterion:
        """The pruning method that `criterion` names."""
        found = criterion(self.mask, self.criterion)
        if found is None:
            raise UsageError(f"unknown {self.kind} criterion {self.criterion!r}")
        return found

    @property
    def ranked(self) -> Unit:
        """What is ranked: what the method says, or what it is asked to make of it."""
        return self.method.unit

    @property
    def clusters(self) -> bool:
        """Whether it is to be chosen which channels make a unit."""
        return False

    @property
    def sharing(self) -> str:
        """Which filters drop a unit together."""
        return "filter"

    @property
    def kind(self) -> str:
        return type(self).__name__.removesuffix("Config")

    @property
    def prunes(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.ratio or any(self.per_layer.values()))

    def override(self, layer: str) -> float | None:
        """The pruned fraction that `per_layer` gives this layer (the last glob that matches), or None."""
        matches = [value for pattern, value in self.per_layer.items() if fnmatchcase(layer, pattern)]
        return matches[-1] if matches else None

    def ratio_of(self, layer: str) -> float:
        """The pruned fraction of this layer."""
        override = self.override(layer)
        return self.ratio if override is None else override

    def chosen(self, sites: Sequence[ConvSite]) -> list[ConvSite]:
        """The sites to prune; UsageError for a glob of include, exclude or per_layer that matches none."""
        chosen = select_sites(sites, include=self.include, exclude=self.exclude)
        select_sites(chosen, include=tuple(self.per_layer))
        return [site for site in chosen if self.fits(site)]

    def fits(self, site: ConvSite) -> bool:
        """Whether the layer can carry such masks."""
        return True


@dataclass(frozen=True, kw_only=True)
class FFPConfig(Part):
    """Fine-grained feature-map pruning. Scope "global" ranks the blocks of all layers by score per multiply-add saved.

    Of methods that rank the blocks of each sample by itself (frequencies): what deeper layers see (propagate); whether a channel's scores
    go through a softmax (softmax); whether a sample's best are those of a channel or of the layer (within); whether it is counted how often
    a block is among them (count="top"), or scores are added up ("sum"); the pruned fraction by which a sample's best are taken
    (sample_ratio; None: that of the layer).
    """

    propagate: Literal["masked", "dense"] = "masked"
    softmax: bool = False
    within: Within = "channel"
    count: Count = "top"
    sample_ratio: float | None = None
    mask = "ffp"
    scopes = BlockScope

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("FFP propagate", self.propagate, Literal["masked", "dense"])
        _check_choice("FFP within", self.within, Within)
        _check_choice("FFP count", self.count, Count)
        if not isinstance(self.softmax, bool):
            raise UsageError(f"FFP softmax is true or false, got {self.softmax!r}")
        if self.sample_ratio is not None:
            _check_ratio("FFP", "sample_ratio", self.sample_ratio)
        readings = ("softmax", "within", "count", "sample_ratio")
        other = next((name for name in readings if getattr(self, name) != getattr(FFPConfig, name)), None)
        if other and not self.method.per_sample:
            able = ", ".join(known.name for known in criteria(self.mask) if known.per_sample)
            raise UsageError(f"FFP {other} is of methods that rank each sample ({able}), and {self.criterion!r} does not; leave it out")
        self.method.unit.check(self)

    def fits(self, site: ConvSite) -> bool:
        """Not all layers can carry masks of blocks."""
        return not site.weights_only


@dataclass(frozen=True, kw_only=True)
class FWPConfig(Part):
    """Feature-aware weight pruning, and every other way to drop weights.

    Of methods that rank taps, the scopes kernel, group and channel keep the top taps of each (filter, channel), (group of `lanes`
    filters, channel) or channel. Scopes filter, layer and global rank the taps of a filter, a layer or the network; with the last two,
    `share` says whether a tap is dropped for one filter, for a group, or for all filters at once. With another `unit` than single weights,
    two or four input channels (pair, quad) or the taps of a kernel's row go together. `order`: which channels do is chosen for each layer
    so that what is worth much is together (cluster), or they follow each other (file).
    A 1x1 kernel has one tap: it is ranked over the channels of its filter, or left alone with pointwise="exempt".
    layer_types: the layers that are pruned, by the names of their products in torch.
    """

    unit: WeightUnit = "weight"
    order: Order = "cluster"
    share: Share = "filter"
    lanes: int = 16
    pointwise: Literal["filter", "exempt"] = "filter"
    layer_types: tuple[str, ...] = LAYER_TYPES
    mask = "fwp"
    scopes = WeightScope

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("FWP unit", self.unit, WeightUnit)
        _check_choice("FWP order", self.order, Order)
        _check_choice("FWP share", self.share, Share)
        _check_choice("FWP pointwise", self.pointwise, Literal["filter", "exempt"])
        types = self.layer_types
        if not isinstance(types, list | tuple) or not types or not set(types) <= set(NAMES):
            raise UsageError(f"FWP layer_types is a list of {', '.join(NAMES)}, got {types!r}")
        if isinstance(self.lanes, bool) or not isinstance(self.lanes, int) or self.lanes < 1:
            raise UsageError(f"FWP lanes must be a whole number of at least 1, got {self.lanes!r}")
        self.ranked.check(self)

    @property
    def ranked(self) -> Unit:
        """Of methods that rank taps, the unit that is asked for."""
        return TAPS[self.unit] if self.method.unit is TAP else self.method.unit

    @property
    def clusters(self) -> bool:
        """For units of several channels, unless they follow each other."""
        return self.order == "cluster" and self.ranked.channels > 1

    @property
    def sharing(self) -> str:
        """Which filters drop a tap together."""
        by_scope = {"kernel": "filter", "group": "group", "channel": "channel", "filter": "filter"}
        return by_scope.get(self.scope, self.share)


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Both halves of the compression: each with a ratio of its own, or both with one that their common list divides."""

    ffp: FFPConfig = field(default_factory=FFPConfig)
    fwp: FWPConfig = field(default_factory=FWPConfig)
    common: float = 0.0
    """The fraction of multiply-adds that blocks and weights lose together, in [0,1); above 0 the halves have no ratios."""

    def __post_init__(self) -> None:
        _check_ratio("prune", "ratio", self.common)
        if not self.common:
            return
        if self.ffp.prunes or self.fwp.prunes:
            raise UsageError("prune_split 'common' divides one ratio: give prune, and no ratios of FFP, FWP or single layers")
        if not self.ffp.scope == self.fwp.scope == "global":
            scopes = f"scope 'global', got {self.ffp.scope!r} and {self.fwp.scope!r}"
            raise UsageError(f"prune_split 'common' ranks all layers in one list: FFP and FWP need {scopes}")
        if self.ffp.method.scale is None or self.ffp.method.scale != self.fwp.method.scale:
            able = "; ".join(f"FFP {block.name!r} with FWP {', '.join(_comparable(block))}" for block in criteria("ffp") if block.scale)
            raise UsageError(
                f"prune_split 'common' compares blocks with weights, and the FFP criterion {self.ffp.criterion!r} and the FWP criterion "
                f"{self.fwp.criterion!r} measure different things; give {able}"
            )

    @property
    def asked(self) -> dict[str, float]:
        """By kind of mask, the pruned fraction that is asked for; "common": that which the kinds divide."""
        return {part.mask: part.ratio for part in (self.ffp, self.fwp)} | ({"common": self.common} if self.common else {})

    @property
    def weights_first(self) -> bool:
        """Whether the weights' method needs no data: then it goes first, as its source has it, and blocks go on top."""
        return self.fwp.method.collects is None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that are pruned by, in their order: weights on what blocks leave, but blocks on what methods leave that need no data."""
        return tuple(part for part in self._order if self.common or part.prunes)

    @property
    def kinds(self) -> tuple[MaskKind, ...]:
        """Of all masks, in the order of the parts."""
        return tuple(in_order(part.mask for part in self._order))

    @property
    def _order(self) -> tuple[Part, Part]:
        return (self.fwp, self.ffp) if self.weights_first else (self.ffp, self.fwp)

    @property
    def passes(self) -> tuple[tuple[Part, ...], ...]:
        """The parts that are ranked on the same network: one after the other, or both at once for their common list."""
        return (self.parts,) if self.common else tuple((part,) for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for manifests and hashes."""

        def plain(part: Part) -> dict[str, Any]:
            values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(part).items()}
            floor = values.pop("floor")
            return {**values, "floor": floor}  # last, where manifests always had it

        return {"ffp": plain(self.ffp), "fwp": plain(self.fwp), **({"common": self.common} if self.common else {})}


PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    "thesis": {"ffp": {"criterion": "l2", "scope": "channel", "floor": 0.0}, "fwp": {"criterion": "wis", "scope": "kernel", "floor": 0.0}},
    "taylor": {"ffp": {"criterion": "taylor", "scope": "global"}, "fwp": {"criterion": "taylor", "scope": "global"}},
    "obs": {"ffp": {"criterion": "obs", "scope": "global"}, "fwp": {"criterion": "obc", "scope": "global"}},
}

_QUADS = {"fisher-quad": "fisher", "obs-quad": "obs"}
"""Methods that `unit` has taken the place of, with what they were; recipes name them."""
_SHARED = ("group", "channel")
"""Scopes in which several filters share their taps."""


def prune_config(
    preset: str = "taylor",
    *,
    ratio: float | None = None,
    split: str = "preset",
    ffp: Mapping[str, Any] | None = None,
    fwp: Mapping[str, Any] | None = None,
) -> PruneConfig:
    """A preset with single settings changed; settings given as None keep the preset's value.

    ratio: the fraction of multiply-adds to prune; ffp and fwp then say no ratios. split: what divides it between blocks and weights, the
    "preset" by fixed ratios, or one "common" list of both by score per multiply-add.
    """
    _check_choice("preset", preset, Preset)
    _check_choice("prune_split", split, Split)
    base = PRESETS[preset]  # type: ignore[index]
    if split == "common" and ratio is None:
        raise UsageError("prune_split 'common' divides one ratio: give prune, and no ratios of FFP, FWP or single layers")
    if ratio is not None:
        if any((changes or {}).get("ratio") for changes in (ffp, fwp)):
            raise UsageError(f"prune {ratio} of the multiply-adds, or give the ratios of FFP and FWP, not both")
        blocks, weights = (0.0, 0.0) if split == "common" else preset_ratios(preset, ratio)  # type: ignore[arg-type]
        ffp, fwp = {**(ffp or {}), "ratio": blocks}, {**(fwp or {}), "ratio": weights}

    def merged(key: str, changes: Mapping[str, Any] | None) -> dict[str, Any]:
        given = {k: v for k, v in (changes or {}).items() if v is not None}
        if given.get("criterion") in _QUADS:
            given = {**given, "criterion": _QUADS[given["criterion"]], "unit": "quad", "order": "file"}
        if base[key]["criterion"] == "obc" and (given.get("share", "filter") != "filter" or given.get("scope") in _SHARED):
            given = {"criterion": "obs", **given}  # obc ranks what a filter drops, one after the other: nothing that several drop at once
        method = criterion(key, given.get("criterion"))
        return {**base[key], **(method.defaults if method else {}), **given}

    for kind, cls, changes in (("FFP", FFPConfig, ffp), ("FWP", FWPConfig, fwp)):
        accepted = [f.name for f in fields(cls)]
        unknown = sorted(set(changes or {}) - set(accepted))
        if unknown:
            raise UsageError(f"unknown {kind} setting {unknown[0]!r}; known are {', '.join(accepted)}")
    common = ratio if split == "common" and ratio is not None else 0.0
    return PruneConfig(ffp=FFPConfig(**merged("ffp", ffp)), fwp=FWPConfig(**merged("fwp", fwp)), common=common)


def preset_ratios(preset: Preset, ratio: float) -> tuple[float, float]:
    """The pruned fractions (ffp, fwp) with (1 - ffp) * (1 - fwp) = 1 - ratio that a preset stands for.

    obs, taylor: weights alone, the most accurate of the masks compared (docs/results.md), and faster than with blocks (docs/engine.md).
    thesis: fwp = 1.5 * ffp, as in the source's tables (37 % and 55.6 %: 72 %).
    """
    _check_ratio("prune", "ratio", ratio)
    if preset != "thesis":
        return 0.0, ratio
    ffp = (2.5 - (6.25 - 6 * ratio) ** 0.5) / 3
    return ffp, 1.5 * ffp


def _comparable(block: Criterion) -> list[str]:
    """The methods that rank weights on the scale of one that ranks blocks."""
    return [repr(method.name) for method in criteria("fwp") if method.scale == block.scale]


def _check_ratio(kind: str, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        percent = isinstance(value, int | float) and not isinstance(value, bool) and 1 < value < 100
        hint = f"; for {value:g} % give {value / 100:g}" if percent else ""
        raise UsageError(f"{kind} {name} must be a pruned fraction in [0, 1), got {value!r}{hint}")


def _check_criterion(kind: str, mask: str, name: str) -> None:
    if criterion(mask, name) is None:
        raise UsageError(f"unknown {kind} criterion {name!r}; choose one of {', '.join(known.name for known in criteria(mask))}")


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UsageError(f"unknown {name} {value!r}; choose one of {', '.join(get_args(choices))}")
