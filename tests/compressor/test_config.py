"""Settings refuse what makes no sense before any work starts."""

import json
import math
from typing import Any

import pytest

from fineprune.common.errors import UsageError
from fineprune.compressor.config import FFPConfig, FWPConfig, prune_config
from fineprune.compressor.criteria import criteria


def known(kind: str) -> str:
    """The names of the methods that there are."""
    return ", ".join(method.name for method in criteria(kind))


@pytest.mark.parametrize("value", [1.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize(("config", "kind"), [(FFPConfig, "FFP"), (FWPConfig, "FWP")])
def test_ratios_are_pruned_fractions(config: type, kind: str, value: float) -> None:
    for options, name in (({"ratio": value}, "ratio"), ({"per_layer": {"conv*": value}}, "ratio of 'conv*'"), ({"floor": value}, "floor")):
        with pytest.raises(UsageError) as error:
            config(**options)
        assert str(error.value) == f"{kind} {name} must be a pruned fraction in [0, 1), got {value}"


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (FFPConfig, {"criterion": "l3"}, "unknown FFP criterion 'l3'; choose one of " + known("ffp")),
        (FFPConfig, {"scope": "kernel"}, "unknown FFP scope 'kernel'; choose one of channel, layer, position, global"),
        (FFPConfig, {"propagate": "no"}, "unknown FFP propagate 'no'; choose one of masked, dense"),
        (FFPConfig, {"criterion": "l2"}, "FFP scope 'global' needs the criterion 'obs' or 'random' or 'taylor', got 'l2'"),
        (FWPConfig, {"criterion": "l2"}, "unknown FWP criterion 'l2'; choose one of " + known("fwp")),
        (FWPConfig, {"scope": "position"}, "unknown FWP scope 'position'; choose one of kernel, group, channel, filter, layer, global"),
        (FWPConfig, {"unit": "octet"}, "unknown FWP unit 'octet'; choose one of weight, pair, quad, row"),
        (FWPConfig, {"order": "best"}, "unknown FWP order 'best'; choose one of cluster, file"),
        (FWPConfig, {"share": "all"}, "unknown FWP share 'all'; choose one of filter, group, channel"),
        (FWPConfig, {"pointwise": "no"}, "unknown FWP pointwise 'no'; choose one of filter, exempt"),
        (FFPConfig, {"per_layer": "conv1"}, "FFP per_layer is a table of pruned fractions by glob of layers, got 'conv1'"),
        (FWPConfig, {"include": "conv1"}, "FWP include is a list of globs of layers, got 'conv1'"),
        (FWPConfig, {"lanes": 0}, "FWP lanes must be a whole number of at least 1, got 0"),
        (
            FWPConfig,
            {"criterion": "wis"},
            "FWP scope 'global' needs the criterion 'asl' or 'fisher' or 'lamp' "
            "or 'magnitude' or 'obc' or 'obs' or 'random' or 'taylor', got 'wis'",
        ),
        (
            FWPConfig,
            {"scope": "kernel", "share": "group"},
            "FWP share='group' goes with scope 'layer' or 'global'",
        ),
    ],
)
def test_unknown_and_contradicting_choices_are_named(config: type, options: dict, message: str) -> None:
    with pytest.raises(UsageError) as error:
        config(**options)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("criterion", ["obs", "fisher"])
def test_methods_of_quads_are_methods_with_a_unit(criterion: str) -> None:
    assert prune_config(fwp={"criterion": f"{criterion}-quad"}) == prune_config(
        fwp={"criterion": criterion, "unit": "quad", "order": "file"}
    )


def test_presets() -> None:
    thesis, taylor = prune_config("thesis"), prune_config()
    assert (thesis.ffp.criterion, thesis.ffp.scope, thesis.ffp.propagate) == ("l2", "channel", "masked")
    assert (thesis.fwp.criterion, thesis.fwp.scope, thesis.fwp.sharing) == ("wis", "kernel", "filter")
    assert (taylor.ffp.criterion, taylor.ffp.scope, taylor.fwp.criterion, taylor.fwp.scope) == ("taylor", "global", "taylor", "global")
    with pytest.raises(UsageError, match="unknown preset 'best'; choose one of obs, taylor, thesis"):
        prune_config("best")


@pytest.mark.parametrize("ratio", [0.0, 0.45, 0.72, 0.99])
def test_one_ratio_is_split_as_the_preset_does(ratio: float) -> None:
    taylor, thesis = prune_config(ratio=ratio), prune_config("thesis", ratio=ratio)
    assert (taylor.ffp.ratio, taylor.fwp.ratio) == (0.0, ratio)
    assert (1 - thesis.ffp.ratio) * (1 - thesis.fwp.ratio) == pytest.approx(1 - ratio)
    assert thesis.fwp.ratio == pytest.approx(1.5 * thesis.ffp.ratio)


def test_the_source_s_split() -> None:
    thesis = prune_config("thesis", ratio=0.72, fwp={"scope": "channel"})
    assert (thesis.ffp.ratio, thesis.fwp.ratio) == (pytest.approx(0.37, abs=1e-3), pytest.approx(0.556, abs=1e-3))
    assert thesis.fwp.scope == "channel"


def test_one_ratio_or_two() -> None:
    with pytest.raises(UsageError, match=r"prune 0\.5 of the multiply-adds, or give the ratios of FFP and FWP, not both"):
        prune_config(ratio=0.5, fwp={"ratio": 0.3})
    with pytest.raises(UsageError, match=r"prune ratio must be a pruned fraction in \[0, 1\), got 1.5"):
        prune_config("thesis", ratio=1.5)


def test_changes_go_over_the_preset_and_none_leaves_it() -> None:
    config = prune_config("thesis", ffp={"ratio": 0.37, "scope": None}, fwp={"scope": "group", "lanes": 8})
    assert (config.ffp.ratio, config.ffp.scope, config.fwp.criterion, config.fwp.sharing, config.fwp.lanes) == (
        0.37,
        "channel",
        "wis",
        "group",
        8,
    )


def test_the_last_glob_that_matches_a_layer_wins() -> None:
    config = FFPConfig(ratio=0.5, per_layer={"layer*": 0.3, "layer1.*": 0.0})
    assert [config.override(name) for name in ("conv1", "layer2.conv", "layer1.conv")] == [None, 0.3, 0.0]


@pytest.mark.parametrize(
    ("scope", "share", "sharing"),
    [
        ("kernel", "filter", "filter"),
        ("group", "filter", "group"),
        ("channel", "filter", "channel"),
        ("filter", "filter", "filter"),
        ("layer", "group", "group"),
        ("global", "channel", "channel"),
    ],
)
def test_sharing_follows_scope(scope: str, share: str, sharing: str) -> None:
    assert FWPConfig(scope=scope, share=share).sharing == sharing  # type: ignore[arg-type]


def test_settings_go_into_json() -> None:
    facts = prune_config(ffp={"per_layer": {"conv1": 0.1}, "exclude": ("stem",)}).to_json()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["ffp"]["exclude"] == ["stem"]
    assert facts["ffp"]["per_layer"] == {"conv1": 0.1}


def test_a_percentage_is_told_as_a_fraction() -> None:
    with pytest.raises(UsageError, match=r"prune ratio must be a pruned fraction in \[0, 1\), got 72; for 72 % give 0.72"):
        prune_config("taylor", ratio=72)


@pytest.mark.parametrize(
    ("fwp", "criterion"),
    [
        ({}, "obc"),
        ({"unit": "weight", "share": "filter"}, "obc"),
        ({"unit": "quad"}, "obc"),
        ({"share": "channel"}, "obs"),
        ({"scope": "group"}, "obs"),
    ],
)
def test_the_preset_obs_ranks_weights_one_by_one_where_they_go_one_by_one(fwp: dict[str, Any], criterion: str) -> None:
    assert prune_config("obs", ratio=0.5, fwp=fwp).fwp.criterion == criterion
