"""The automatic learning rate: curves whose drops are known by hand, and what is refused."""

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fineprune.common.errors import UsageError
from fineprune.models.training import TrainConfig
from fineprune.models.training.auto_lr import AutoRateConfig, Point, fires, replay
from fineprune.models.training.schedule import LearningRate


def points(losses: list[float], lr: float = 0.1, **settings: Any) -> list[Point]:
    return replay(losses, AutoRateConfig(**{"interval": 2, "threshold": 0.05, **settings}), lr)


def fired(losses: list[float], **settings: Any) -> list[int]:
    return [e for e, point in enumerate(points(losses, **settings)) if point.fired]


FALLING_THEN_FLAT = [4.0, 3.0, 2.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_the_default_rule_waits_for_the_flat_part_and_forgets_after_a_drop() -> None:
    got = points(FALLING_THEN_FLAT)
    assert [p.diff is not None for p in got[:4]] == [False, False, False, True]
    assert got[3].std_i == pytest.approx(0.5) and got[3].std_2i == pytest.approx(statistics.pstdev([4, 3, 2, 1]))
    assert fired(FALLING_THEN_FLAT) == [7, 11]
    assert [p.diff is None for p in got[8:11]] == [True, True, True]  # 2i new losses are needed


def test_literal_drops_at_the_first_falling_window() -> None:
    assert fired(FALLING_THEN_FLAT, rule="literal")[0] == 3  # diff is negative wherever the loss falls


def test_bottom_drops_one_epoch_after_a_local_minimum_below_h() -> None:
    losses = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    diffs = [p.diff for p in points(losses, rule="bottom")][3:6]
    assert diffs == pytest.approx([0.0, 0.5 - statistics.pstdev([1, 1, 1, 0]), -0.5])
    assert fired(losses, rule="bottom") == [6]
    assert not fires("bottom", [0.2, 0.1], 0.5) and not fires("bottom", [0.3, 0.2, 0.1], 0.5)
    assert fires("bottom", [0.3, 0.2, 0.3], 0.25) and not fires("bottom", [0.3, 0.2, 0.3], 0.2)


def test_the_threshold_falls_with_the_new_rate_squared() -> None:
    flat = [1.0] * 12
    assert [p.threshold for p in points(flat, lr=1.0, max_drops=None)][4::4] == pytest.approx([0.05 - 0.1**2, 0.05 - 0.1**2 - 0.01**2])
    assert points(flat, lr=5.0, factor=0.5, least_threshold=0.03)[4].threshold == 0.03
    assert points(flat, rule="literal", factor=0.3)[4].threshold == pytest.approx(0.05 - 0.3**2)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(2, 4), st.floats(0.01, 1))
def test_against_the_listing_as_a_loop(losses: list[float], i: int, threshold: float) -> None:
    expected, history, h, lr = [], [], threshold, 0.4
    for e, loss in enumerate(losses):
        history.append(loss)
        if len(history) >= 2 * i and abs(statistics.pstdev(history[-i:]) - statistics.pstdev(history[-2 * i :])) < h:
            expected.append(e)
            lr *= 0.1
            h, history = max(h - lr**2, 0.001), []
    assert fired(losses, lr=0.4, interval=i, threshold=threshold, max_drops=None) == expected


def test_the_schedule_drops_the_rate_stops_and_is_resumed() -> None:
    config = TrainConfig(epochs=20, lr=0.4, schedule="auto", auto_lr={"interval": 2, "threshold": 0.05, "factor": 0.5})  # type: ignore[arg-type]
    rate, got = LearningRate(config), []
    for e, loss in enumerate([*FALLING_THEN_FLAT, 0.5, 0.5, 0.5, 0.5]):
        got.append((rate.at(e, 0, 1), rate.finished))
        rate.observe(loss)
        rate = LearningRate.from_json(config, rate.to_json())
    assert got == [(0.4, False)] * 8 + [(0.2, False)] * 4 + [(0.1, False)] * 4
    assert rate.finished and rate.at(16, 0, 1) == 0.1
    kept = LearningRate(TrainConfig(epochs=40, lr=0.4, schedule="auto", auto_lr={"interval": 2, "stop_early": False}))  # type: ignore[arg-type]
    for _ in range(30):
        kept.observe(1.0)
    assert not kept.finished and kept.at(30, 0, 1) == pytest.approx(0.004)


@pytest.mark.parametrize(("epochs", "interval"), [(200, 10), (160, 10), (110, 7), (80, 5), (60, 4), (20, 3), (1, 3)])
def test_the_interval_covers_a_sixteenth_of_a_short_run_and_at_least_three_epochs(epochs: int, interval: int) -> None:
    resolved = AutoRateConfig().for_epochs(epochs)
    assert (resolved.interval, resolved.parts) == (interval, 1)


def test_what_is_given_of_interval_and_parts_stays() -> None:
    def resolved(**given: int) -> tuple[int | None, int | None]:
        config = AutoRateConfig(**given).for_epochs(80)  # type: ignore[arg-type]
        return config.interval, config.parts

    assert resolved(interval=7) == (7, 1)
    assert resolved(parts=3) == (15, 3) and resolved(parts=1) == (5, 1)
    assert resolved(interval=4, parts=2) == (4, 2)


def test_losses_of_parts_are_of_a_part_of_the_images() -> None:
    rule = AutoRateConfig(parts=8).for_epochs(20)
    assert [rule.images(held_out) for held_out in (5000, 2048, 2047, 300, 100)] == [625, 256, 256, 256, 100]
    assert AutoRateConfig(interval=3).for_epochs(20).images(5000) == 5000


def test_parts_of_an_epoch_end_at_whole_steps() -> None:
    def ends(parts: int, batches: int) -> list[int]:
        rate = LearningRate(TrainConfig(schedule="auto", auto_lr={"parts": parts}))  # type: ignore[arg-type]
        return [batch for batch in range(1, batches + 1) if rate.part_ends(0, batch, batches)]

    assert ends(4, 8) == [2, 4, 6, 8] and ends(3, 7) == [3, 5, 7]
    assert ends(5, 3) == [1, 2, 3] and ends(1, 8) == []
    assert not LearningRate(TrainConfig()).part_ends(0, 8, 8)


def test_no_part_ends_in_the_warm_up() -> None:
    rate = LearningRate(TrainConfig(schedule="auto", auto_lr={"parts": 4}, warmup_epochs=1.5))  # type: ignore[arg-type]
    assert [(epoch, batch) for epoch in range(3) for batch in range(1, 9) if rate.part_ends(epoch, batch, 8)] == [
        *((1, 6), (1, 8)),
        *((2, 2), (2, 4), (2, 6), (2, 8)),
    ]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rule": "best"}, "rule is one of default, literal, bottom, got 'best'"),
        ({"split": "train"}, "split is one of validation, test"),
        ({"interval": 1}, "interval is a whole number of at least 2, or none, got 1"),
        ({"parts": 0}, "parts is a whole number of at least 1, or none, got 0"),
        ({"max_drops": 0}, "max_drops is a whole number of at least 1"),
        ({"factor": 1.0}, r"factor is in \(0,1\), got 1.0"),
        ({"threshold": 0.0}, "threshold is above 0, got 0.0"),
        ({"least_threshold": 0.5}, r"least_threshold is in \[0, threshold=0.01\], got 0.5"),
        ({"stop_early": "yes"}, "stop_early is true or false, got 'yes'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        AutoRateConfig(**settings)


def test_combinations_that_are_refused() -> None:
    with pytest.raises(UsageError, match="auto_lr belongs to the auto schedule, not to cosine; leave one of the two out"):
        TrainConfig(auto_lr={"interval": 3})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a parameter server measures the loss after whole epochs; leave auto_lr's parts out"):
        TrainConfig(schedule="auto", auto_lr={"parts": 2}, asynchronous={"algorithm": "asgd"})  # type: ignore[arg-type]
    assert TrainConfig(schedule="auto", asynchronous={"algorithm": "asgd"}).rate_rule.parts == 1  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="auto_lr is a table of rule, interval"):
        TrainConfig(schedule="auto", auto_lr={"i": 3})  # type: ignore[arg-type]
