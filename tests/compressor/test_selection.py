"""Masks from statistics: every scope, criterion and sharing, on layers of every kind with random statistics."""

import pytest
import torch
from torch import Tensor

from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.importance import group_filters
from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import UsageError
from fineprune.compressor.config import FFPConfig, FWPConfig
from fineprune.compressor.criteria.frequency import kept_blocks
from fineprune.compressor.ranking import keep_count
from fineprune.compressor.selection import layers_of, select
from support import vectors

Layers = dict[str, dict[str, Tensor]]


def site(name: str, channels: int, filters: int, kernel: tuple[int, int], groups: int, output: tuple[int, int]) -> ConvSite:
    return ConvSite(name=name, in_channels=channels, out_channels=filters, kernel=kernel, groups=groups, output_size=output)


SITES = [
    site("stem", 3, 7, (3, 3), 1, (5, 7)),
    site("body.grouped", 6, 8, (3, 2), 2, (5, 3)),
    site("body.depthwise", 5, 5, (3, 3), 5, (3, 2)),
    site("body.pointwise", 10, 6, (1, 1), 1, (2, 3)),
]
LANES = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights() -> dict[str, Tensor]:
    g = generator(1)
    return {s.name: torch.randn(s.out_channels, s.in_channels // s.groups, *s.kernel, generator=g) for s in SITES}


def block_statistics(criterion: str = "taylor") -> Statistics:
    g, layers = generator(2), {}
    for s in SITES:
        shape = (s.in_channels, *s.output_size)
        if criterion == "taylor":
            layers[s.name] = {"taylor": torch.rand(shape, generator=g, dtype=torch.float64) * s.block_macs}
        else:
            layers[s.name] = {
                "frequency": torch.randint(0, 4, shape, generator=g),
                "norm": torch.rand(shape, generator=g, dtype=torch.float64),
            }
    return Statistics(kind="blocks", settings={"criterion": criterion}, samples=3, layers=layers)


def weight_statistics() -> Statistics:
    g, layers = generator(3), {}
    for s in SITES:
        per_group, groups = s.in_channels // s.groups, group_filters(weights()[s.name], LANES, s.groups)

        def scores(count: int, channels: int = per_group, kernel: tuple[int, int] = s.kernel) -> Tensor:
            return torch.rand(count, channels, *kernel, generator=g, dtype=torch.float64)

        layers[s.name] = {
            "taylor": scores(s.out_channels),
            "taylor_group": scores(int(groups.max()) + 1),
            "taylor_channel": scores(s.in_channels, 1)[:, 0],
            "absolute": scores(s.in_channels, 1)[:, 0],
            "signed": scores(s.in_channels, 1)[:, 0] - 0.5,
            "groups": groups,
        }
    return Statistics(kind="weights", settings={"taylor": True, "lanes": LANES}, samples=3, layers=layers)


def select_blocks(statistics: Statistics, sites: list[ConvSite], config: FFPConfig) -> dict[str, Tensor]:
    """Block masks; what blocks are ranked by does not look at the weights."""
    config.method.check(statistics, config, sites)
    return select(layers_of(statistics, {s.name: torch.ones(1) for s in sites}, {}, sites, config), config)


def select_taps(
    statistics: Statistics,
    weights: dict[str, Tensor],
    blocks: dict[str, Tensor],
    sites: list[ConvSite],
    config: FWPConfig,
    outputs: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Weight masks; methods that need no data are given none."""
    given = None if config.method.collects is None else statistics
    return select(layers_of(given, weights, {"ffp": blocks}, sites, config, outputs), config, outputs=outputs)


def filter_groups(statistics: Statistics, s: ConvSite, config: FWPConfig) -> Tensor:
    """Which filters drop a tap together."""
    return layers_of(statistics, weights(), {}, [s], config)[0].sets


def full(masks: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The masks with the layers that were left out because nothing is dropped there."""
    return {name: masks.get(name, torch.ones(shape, dtype=torch.bool)) for name, shape in shapes.items()}


BLOCK_SHAPES = {s.name: (s.in_channels, *s.output_size) for s in SITES}
TAP_SHAPES = {s.name: (s.out_channels, s.in_channels // s.groups, *s.kernel) for s in SITES}


# Blocks


def test_the_frequencies_worked_by_hand() -> None:
    s = site("conv", 1, 1, (3, 3), 1, (4, 4))
    layers = {"conv": {"frequency": torch.tensor([vectors.FREQUENCY]), "norm": torch.zeros(1, 4, 4)}}
    statistics = Statistics(kind="blocks", settings={"criterion": "l2"}, layers=layers)
    for scope in ("channel", "layer", "position"):
        masks = select_blocks(statistics, [s], FFPConfig(ratio=0.375, criterion="l2", scope=scope))  # type: ignore[arg-type]
        assert masks["conv"][0].int().tolist() == vectors.FREQUENCY_MASK


@pytest.mark.parametrize("criterion", ["l2", "l1", "apoz", "taylor"])
@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_every_channel_layer_or_position_keeps_its_share(criterion: str, ratio: float) -> None:
    statistics = block_statistics(criterion)

    def select(scope: str) -> dict[str, Tensor]:
        config = FFPConfig(ratio=ratio, criterion=criterion, scope=scope)  # type: ignore[arg-type]
        assert kept_blocks(SITES, config) == {s.name: keep_count(s.positions, ratio) for s in SITES}
        return select_blocks(statistics, SITES, config)

    by_channel, by_layer, by_position = (select(scope) for scope in ("channel", "layer", "position"))
    for s in SITES:
        field = statistics.layers[s.name]["taylor" if criterion == "taylor" else "frequency"].double()
        kept = keep_count(s.positions, ratio)
        assert (by_channel[s.name].flatten(1).sum(1) == kept).all()
        assert by_layer[s.name].sum() == keep_count(s.in_channels * s.positions, ratio)
        assert (by_position[s.name].flatten(1).sum(1) == kept).all()
        assert (by_position[s.name] == by_position[s.name][:1]).all()
        rows = (
            (field.flatten(1), by_channel[s.name].flatten(1)),
            (field.reshape(1, -1), by_layer[s.name].reshape(1, -1)),
            (field.sum(0).view(1, -1), by_position[s.name][:1].flatten(1)),
        )
        for scores, mask in rows:
            for row, keeps in zip(scores, mask, strict=True):
                assert row[keeps].min() >= row[~keeps].max()


def test_equal_frequencies_are_ranked_by_their_norm() -> None:
    s = site("conv", 1, 1, (3, 3), 1, (1, 4))
    layers = {"conv": {"frequency": torch.tensor([[[2, 1, 1, 1]]]), "norm": torch.tensor([[[0.0, 3.0, 9.0, 4.0]]])}}
    statistics = Statistics(kind="blocks", settings={"criterion": "l2"}, layers=layers)
    masks = select_blocks(statistics, [s], FFPConfig(ratio=0.5, criterion="l2", scope="channel"))
    assert masks["conv"].flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.9])
def test_one_threshold_meets_the_budget_in_multiply_adds(ratio: float) -> None:
    statistics = block_statistics()
    masks = full(select_blocks(statistics, SITES, FFPConfig(ratio=ratio)), BLOCK_SHAPES)
    kept = sum(int(masks[s.name].sum()) * s.block_macs for s in SITES)
    budget = (1 - ratio) * sum(s.macs for s in SITES)
    assert budget - max(s.block_macs for s in SITES) < kept <= budget + 1e-6
    shares = {s.name: float(masks[s.name].float().mean()) for s in SITES}
    assert min(shares.values()) >= 0.05 - 0.5 / min(len(m.flatten()) for m in masks.values())
    if ratio == 0.37:
        assert len(set(shares.values())) > 1, "ratios per layer follow by themselves"


def test_the_floor_keeps_a_worthless_layer_alive() -> None:
    statistics = block_statistics()
    statistics.layers["stem"]["taylor"].mul_(1e-9)
    for floor in (0.0, 0.2):
        masks = select_blocks(statistics, SITES, FFPConfig(ratio=0.8, floor=floor))
        assert masks["stem"].sum() == round(floor * 105)


def test_a_layer_with_a_ratio_of_its_own_leaves_the_common_list() -> None:
    config = FFPConfig(ratio=0.5, per_layer={"body.*": 0.2, "body.pointwise": 0.0})
    masks = select_blocks(block_statistics(), SITES, config)
    assert masks["body.grouped"].sum() == keep_count(90, 0.2)
    assert "body.pointwise" not in masks
    assert masks["stem"].sum() == 52, "half of 105, within one block"


@pytest.mark.parametrize("scope", ["channel", "layer", "position"])
def test_overrides_and_globs_in_the_other_scopes(scope: str) -> None:
    config = FFPConfig(ratio=0.5, per_layer={"stem": 0.2}, exclude=("*wise",), criterion="l1", scope=scope)  # type: ignore[arg-type]
    masks = select_blocks(block_statistics("l1"), SITES, config)
    assert list(masks) == ["stem", "body.grouped"]
    assert masks["stem"].sum() == 3 * 28 == keep_count(105, 0.2)
    assert kept_blocks(SITES, config) == {"stem": 28, "body.grouped": keep_count(15, 0.5)}


@pytest.mark.parametrize("options", [{"include": ("nothing*",)}, {"exclude": ("nothing*",)}, {"per_layer": {"nothing*": 0.1}}])
@pytest.mark.parametrize("config", [FFPConfig, FWPConfig])
def test_a_glob_that_matches_nothing_is_named(config: type, options: dict) -> None:
    message = r"the pattern 'nothing\*' matches no convolution; they are: stem, body.grouped, body.depthwise, body.pointwise"
    with pytest.raises(UsageError, match=message):
        config(**options).chosen(SITES)


def test_scores_of_another_criterion_are_refused() -> None:
    for collected, asked in (("l1", "l2"), ("taylor", "l2")):
        message = f"the statistics hold block scores of '{collected}', not of '{asked}'; calibrate with that criterion"
        with pytest.raises(UsageError, match=message):
            select_blocks(block_statistics(collected), SITES, FFPConfig(ratio=0.5, criterion=asked, scope="channel"))  # type: ignore[arg-type]


# Weights


@pytest.mark.parametrize("criterion", ["wis", "wis-signed", "magnitude", "taylor"])
@pytest.mark.parametrize("ratio", [0.3, 0.556])
@pytest.mark.parametrize("scope", ["kernel", "group", "channel", "filter", "layer"])
def test_every_slice_keeps_its_share(criterion: str, ratio: float, scope: str) -> None:
    config = FWPConfig(ratio=ratio, criterion=criterion, scope=scope, lanes=LANES)  # type: ignore[arg-type]
    masks = full(select_taps(weight_statistics(), weights(), {}, SITES, config), TAP_SHAPES)
    for s in SITES:
        mask, per_group = masks[s.name], s.in_channels // s.groups
        assert mask.shape == TAP_SHAPES[s.name]
        if scope == "layer":
            assert mask.sum() == keep_count(mask.numel(), ratio)
        elif scope == "filter" or s.taps == 1:
            assert (mask.flatten(1).sum(1) == keep_count(per_group * s.taps, ratio)).all()
        else:
            assert (mask.flatten(2).sum(2) == keep_count(s.taps, ratio)).all()
        assignment = filter_groups(weight_statistics(), s, config)
        for number in assignment.unique():
            members = mask[assignment == number]
            assert (members == members[:1]).all(), "filters that share taps have the same ones"


def test_importance_is_weight_times_input_worked_by_hand() -> None:
    s = site("conv", 1, 1, (3, 3), 1, (4, 4))
    sums = torch.tensor([vectors.S]).double()
    statistics = Statistics(kind="weights", settings={}, layers={"conv": {"absolute": sums, "signed": sums}})

    def kept(criterion: str, keep: int) -> list[tuple[int, ...]]:
        config = FWPConfig(ratio=1 - keep / 9, criterion=criterion, scope="kernel")  # type: ignore[arg-type]
        return vectors.positions(select_taps(statistics, {"conv": vectors.K}, {}, [s], config)["conv"][0, 0])

    # |WIS| = 0 11 10, 9 0 11, 6 0 0; the signed form ranks 11 6 and then the zeros in their order
    assert kept("wis", 3) == [(0, 1), (0, 2), (1, 2)]
    assert kept("wis-signed", 3) == [(0, 0), (0, 1), (2, 0)]


def test_criteria_rank_by_what_they_say() -> None:
    statistics, w = weight_statistics(), weights()["stem"].double()
    fields = statistics.layers["stem"]
    expected = {
        "taylor": fields["taylor"],
        "wis": w.abs() * fields["absolute"],
        "wis-signed": w * fields["signed"],
        "magnitude": w.abs(),
    }
    for criterion, scores in expected.items():
        config = FWPConfig(ratio=0.5, criterion=criterion, scope="layer")  # type: ignore[arg-type]
        mask = select_taps(statistics, weights(), {}, SITES[:1], config)["stem"]
        assert scores[mask].min() >= scores[~mask].max(), criterion


@pytest.mark.parametrize("share", ["group", "channel"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_shared_taps_are_dropped_together(share: str, scope: str) -> None:
    config = FWPConfig(ratio=0.5, scope=scope, share=share, lanes=LANES)  # type: ignore[arg-type]
    masks = full(select_taps(weight_statistics(), weights(), {}, SITES, config), TAP_SHAPES)
    for s in SITES:
        assignment = filter_groups(weight_statistics(), s, config)
        assert len(assignment.unique()) == (s.groups if share == "channel" else int(weight_statistics().layers[s.name]["groups"].max()) + 1)
        for number in assignment.unique():
            members = masks[s.name][assignment == number]
            assert (members == members[:1]).all()


def ffp_masks() -> dict[str, Tensor]:
    g = generator(9)
    masks = {s.name: torch.rand(BLOCK_SHAPES[s.name], generator=g) < 0.6 for s in SITES if s.name != "body.pointwise"}
    masks["stem"][1] = False
    return masks


def tap_macs(masks: dict[str, Tensor]) -> int:
    """Multiply-adds of the kept taps, tap by tap."""
    total = 0
    for s in SITES:
        per_group, filters = s.in_channels // s.groups, s.out_channels // s.groups
        for f, k, _, _ in masks[s.name].nonzero().tolist():
            channel = f // filters * per_group + k
            total += int(ffp_masks()[s.name][channel].sum()) if s.name in ffp_masks() else s.positions
    return total


@pytest.mark.parametrize("ratio", [0.1, 0.556, 0.9])
@pytest.mark.parametrize("share", ["filter", "group", "channel"])
def test_one_threshold_over_taps_meets_the_budget_under_the_block_masks(share: str, ratio: float) -> None:
    config = FWPConfig(ratio=ratio, share=share, lanes=LANES, floor=0.0)  # type: ignore[arg-type]
    masks = full(select_taps(weight_statistics(), weights(), ffp_masks(), SITES, config), TAP_SHAPES)
    largest = {"filter": 1, "group": LANES, "channel": max(s.out_channels for s in SITES)}[share] * 35
    budget = (1 - ratio) * tap_macs({name: torch.ones(shape) for name, shape in TAP_SHAPES.items()})
    assert budget - largest < tap_macs(masks) <= budget + 1e-6
    assert not masks["stem"][:, 1].any(), "taps of a channel without blocks cost nothing and go"


def test_pointwise_layers_can_be_exempt() -> None:
    for scope in ("kernel", "filter", "global"):
        config = FWPConfig(ratio=0.5, scope=scope, pointwise="exempt")  # type: ignore[arg-type]
        masks = select_taps(weight_statistics(), weights(), {}, SITES, config)
        assert "body.pointwise" not in masks
        assert "stem" in masks


def test_overrides_and_globs_of_taps() -> None:
    config = FWPConfig(ratio=0.5, per_layer={"body.depthwise": 0.2, "stem": 0.0}, exclude=("*pointwise",))
    masks = select_taps(weight_statistics(), weights(), {}, SITES, config)
    assert set(masks) == {"body.grouped", "body.depthwise"}
    assert masks["body.depthwise"].sum() == keep_count(45, 0.2)


def test_groups_must_have_been_collected() -> None:
    message = "the statistics of stem hold no groups of 16 filters; calibrate the weights with lanes=16"
    with pytest.raises(UsageError, match=message):
        select_taps(weight_statistics(), weights(), {}, SITES, FWPConfig(ratio=0.5, scope="group", criterion="wis"))
    sums_only = Statistics(kind="weights", settings={}, layers={s.name: {} for s in SITES})
    with pytest.raises(UsageError, match="the statistics hold no 'taylor' for layer stem; calibrate with the criterion that you prune by"):
        select_taps(sums_only, weights(), {}, SITES, FWPConfig(ratio=0.5))


@pytest.mark.parametrize("criterion", ["taylor", "magnitude"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", ["filter", "group", "channel"])
def test_no_filter_of_an_output_layer_is_cut_off(criterion: str, scope: str, share: str) -> None:
    """Classes that the samples lack have scores near zero in a classifier that is a convolution."""
    statistics, w, ratio = weight_statistics(), weights(), 0.8
    for field in ("taylor", "taylor_group"):
        statistics.layers["body.pointwise"][field][1:] *= 1e-9
    w["body.pointwise"][1:] *= 1e-9
    config = FWPConfig(ratio=ratio, criterion=criterion, scope=scope, share=share, lanes=LANES)  # type: ignore[arg-type]
    plain, kept = (
        full(select_taps(statistics, w, {}, SITES, config, outputs), TAP_SHAPES)["body.pointwise"].flatten(1).sum(1)
        for outputs in ((), ("body.pointwise",))
    )
    assert kept.min() >= 1, "a tenth of ten"
    if share == "filter":
        assert plain.min() == 0
    if scope == "layer":
        assert plain.sum() == kept.sum(), "the budget stays"


def test_a_layer_of_few_elements_is_not_cut_off() -> None:
    """Five percent of nine is none."""
    small, other = site("small", 1, 1, (3, 3), 1, (4, 4)), site("other", 4, 4, (3, 3), 1, (4, 4))
    layers = {s.name: {"taylor": torch.ones(s.out_channels, s.in_channels, 3, 3).double() * (s is other)} for s in (small, other)}
    statistics = Statistics(kind="weights", settings={}, layers=layers)
    for floor, kept in ((0.05, 1), (0.0, 0)):
        masks = select_taps(
            statistics, {s.name: torch.ones(1) for s in (small, other)}, {}, [small, other], FWPConfig(ratio=0.5, floor=floor)
        )
        assert masks["small"].sum() == kept
