"""Which samples an epoch visits: against the listings written out as loops, and every setting that is refused."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fineprune.common.errors import RunError, UsageError
from fineprune.models.training.sampling.config import PolicyConfig
from fineprune.models.training.sampling.policies import Policy, first_to_prune, make_policy, stand_in_weights
from fineprune.models.training.sampling.schedule import prunes, start_of_window


def policy(name: str = "fine-pruning", *, samples: int = 40, epochs: int = 12, seed: int = 0, **parameters: Any) -> Policy:
    return make_policy(PolicyConfig(name=name, **parameters), samples=samples, epochs=epochs, seed=seed, batch_size=4)  # type: ignore[arg-type]


def feed(p: Policy, losses: Tensor, indices: Tensor | None = None, batch: int = 8) -> None:
    indices = torch.arange(p.samples) if indices is None else indices
    for part in indices.split(batch):
        p.observe(part, losses[part])


def pruned_epochs(epochs: int, **parameters: Any) -> list[int]:
    config = PolicyConfig(**{"name": "fine-pruning", **parameters}).for_epochs(epochs)
    return [e for e in range(epochs) if prunes(config, e, epochs)]


class TestSchedule:
    def test_the_sources_settings(self) -> None:
        config = PolicyConfig(name="fine-pruning").for_epochs(200)
        assert (config.window, config.start) == (60, 20)
        assert [start_of_window(config, w) for w in range(6)] == [20, 10, 5, 2, 1, 0]
        first = pruned_epochs(60, window=60, start=20)
        assert first[:6] == [20, 21, 22, 24, 25, 26] and len(first) == 30

    def test_by_hand(self) -> None:
        assert pruned_epochs(14, window=7, start=3) == [4, 5, 6, 8, 9, 10, 12, 13]
        assert pruned_epochs(14, window=7, start=3, block_from="start") == [3, 4, 5, 8, 9, 10, 12, 13]
        assert pruned_epochs(9, window=9, start=0, block=3, prune_epochs=1) == [0, 3, 6]

    @given(
        st.integers(1, 90),
        st.integers(2, 30),
        st.integers(0, 29),
        st.floats(1, 4),
        st.integers(1, 6),
        st.integers(1, 6),
        st.booleans(),
    )
    def test_against_the_listing_as_a_loop(
        self, epochs: int, window: int, start: int, attenuation: float, block: int, prune_epochs: int, from_start: bool
    ) -> None:
        start, prune_epochs = start % window, min(prune_epochs, block)
        expected, current = [], start
        for e in range(epochs):
            if e % window == 0 and e > 0:
                current = math.floor(current / attenuation)
            counter = e % window - current if from_start else e
            if e % window >= current and counter % block < prune_epochs:
                expected.append(e)
        settings = {"window": window, "start": start, "attenuation": attenuation, "block": block, "prune_epochs": prune_epochs}
        assert pruned_epochs(epochs, **settings, block_from="start" if from_start else "run") == expected

    @pytest.mark.parametrize(("epochs", "window", "start"), [(300, 60, 20), (160, 60, 20), (80, 30, 10), (24, 9, 3), (12, 4, 1), (4, 4, 1)])
    def test_window_and_start_scale_with_short_runs(self, epochs: int, window: int, start: int) -> None:
        config = PolicyConfig(name="fine-pruning").for_epochs(epochs)
        assert (config.window, config.start) == (window, start)

    def test_given_values_stay(self) -> None:
        assert PolicyConfig(name="random", window=5, start=4).for_epochs(160) == PolicyConfig(name="random", window=5, start=4)
        assert PolicyConfig(name="random", start=70).for_epochs(160).window == 71
        assert PolicyConfig(name="random", block=6).for_epochs(8).window == 6

    @pytest.mark.parametrize("epochs", [12, 16, 20, 24, 40, 60, 80, 120, 240])
    def test_short_and_long_runs_prune_the_share_of_epochs_that_the_source_prunes(self, epochs: int) -> None:
        """93 of its 160 epochs, 58 %."""
        assert len(pruned_epochs(epochs)) / epochs == pytest.approx(93 / 160, abs=0.09)

    def test_infobatch_prunes_neither_the_first_nor_the_last_eighth(self) -> None:
        config = PolicyConfig(name="infobatch")
        assert [e for e in range(16) if prunes(config, e, 16)] == list(range(1, 14))
        assert [e for e in range(10) if prunes(PolicyConfig(name="infobatch", full_share=0.3), e, 10)] == list(range(1, 7))


class TestFinePruning:
    def test_counts_are_of_losses_at_or_above_their_own_batchs_mean(self) -> None:
        p = policy(samples=8, fraction=0.5, tolerance=0.5)
        p.observe(torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, 2.0, 3.0, 2.0]))  # mean 2, threshold 3
        p.observe(torch.tensor([4, 5, 6, 7]), torch.tensor([0.1, 0.1, 0.1, 0.5]))  # mean 0.2, threshold 0.3
        assert p.state_dict()["counts"].tolist() == [0, 0, 1, 0, 0, 0, 0, 1]

    @pytest.mark.parametrize(("order", "left_out"), [("worst", [2, 3]), ("easiest", [1, 5])])
    def test_algorithms_1_and_2_by_hand(self, order: str, left_out: list[int]) -> None:
        p = policy(samples=6, window=5, start=2, fraction=1 / 3, order=order)
        steps = [
            [([0, 1, 2], [1.0, 2.0, 6.0]), ([3, 4, 5], [5.0, 3.0, 1.0])],  # both means are 3: high are 2, then 3 and 4
            [([0, 2, 4], [3.0, 3.0, 0.0]), ([1, 3, 5], [0.0, 6.0, 0.0])],  # both means are 2: high are 0 and 2, then 3
        ]
        for e, batches in enumerate(steps):
            assert p.epoch(e) == (None, None)
            for indices, losses in batches:
                p.observe(torch.tensor(indices), torch.tensor(losses))
        assert p.state_dict()["counts"].tolist() == [1, 0, 2, 2, 1, 0]
        kept = [x for x in range(6) if x not in left_out]
        assert p.epoch(2).indices.tolist() == kept  # type: ignore[union-attr]
        p.observe(torch.tensor(kept), torch.tensor([1.0, 1.0, 1.0, 5.0]))  # the mean is 2: high is the last one kept
        expected = {"worst": [1, 0, 2, 2, 1, 1], "easiest": [1, 0, 2, 2, 2, 0]}[order]
        assert p.state_dict()["counts"].tolist() == expected
        assert p.epoch(3) == (None, None)  # the fourth of a block prunes nothing
        assert p.epoch(4).indices.tolist() == kept  # type: ignore[union-attr]
        assert p.epoch(5) == (None, None) and p.state_dict()["counts"].sum() == 0  # the next window

    def test_an_epoch_that_prunes_drops_the_largest_counts(self) -> None:
        p = policy(window=8, start=2, fraction=0.3)
        losses = torch.arange(40) / 40
        for e in (0, 1):
            assert p.epoch(e) == (None, None)
            feed(p, losses, torch.arange(40), batch=40)
        chosen = p.epoch(2)
        assert chosen.weights is None and chosen.indices is not None
        low = (losses < losses.mean()).nonzero().squeeze(1)
        assert len(chosen.indices) == 28 and torch.equal(chosen.indices, chosen.indices.sort().values)
        assert set(low.tolist()) <= set(chosen.indices.tolist())

    def test_counts_start_anew_in_each_window(self) -> None:
        p = policy(window=4, start=1)
        for e in range(4):
            p.epoch(e)
            feed(p, torch.rand(40))
        assert p.state_dict()["counts"].max() > 0
        p.epoch(4)
        assert p.state_dict()["counts"].max() == 0

    @settings(max_examples=60)
    @given(st.integers(0, 2**31), st.integers(2, 25), st.booleans(), st.booleans(), st.sampled_from(["worst", "easiest"]))
    def test_against_a_naive_loop(self, seed: int, samples: int, by_loss: bool, require: bool, order: Any) -> None:
        draw = random.Random(seed)
        counts = [draw.randrange(3) for _ in range(samples)]
        losses = [draw.randrange(4) / 4 for _ in range(samples)]
        number = draw.randrange(samples)
        pruned = first_to_prune(
            torch.tensor(counts),
            number,
            order=order,
            generator=torch.Generator().manual_seed(seed),
            losses=torch.tensor(losses) if by_loss else None,
            require_count=require,
        )
        allowed = [x for x in range(samples) if counts[x] > 0 or not require]
        key = {x: (counts[x], losses[x] if by_loss else 0.0) for x in allowed}
        chosen = [x for x in range(samples) if pruned[x]]
        assert len(chosen) == min(number, len(allowed)) and set(chosen) <= set(allowed)
        ranked = sorted(key.values(), reverse=order == "worst")
        assert sorted((key[x] for x in chosen), reverse=order == "worst") == ranked[: len(chosen)]

    @settings(max_examples=40)
    @given(
        st.integers(0, 2**31),
        st.integers(1, 14),
        st.sampled_from([(7, 3, 2.0, 4, 3), (5, 2, 1.5, 2, 1), (4, 1, 2.0, 4, 3), (3, 0, 1.0, 1, 1), (60, 20, 2.0, 4, 3)]),
        st.sampled_from([0.0, 0.3]),
        st.sampled_from(["worst", "easiest"]),
    )
    def test_a_whole_run_against_the_listings(
        self, seed: int, samples: int, schedule: tuple[int, int, float, int, int], tolerance: float, order: Any
    ) -> None:
        """Algorithms 1 and 2 as loops over samples: whoever is left out has at least (easiest: at most) the count of whoever stays."""
        epochs, batch, draw, sign = 75, 3, random.Random(seed), 1 if order == "worst" else -1
        window, start, attenuation, block, prune_epochs = schedule
        own = {"window": window, "start": start, "attenuation": attenuation, "block": block, "prune_epochs": prune_epochs}
        config = PolicyConfig(name="fine-pruning", fraction=0.4, tolerance=tolerance, order=order, **own)  # type: ignore[arg-type]
        p = make_policy(config, samples=samples, epochs=epochs, seed=seed, batch_size=1)
        counts, left = [0] * samples, round(0.4 * samples)
        for e in range(epochs):
            if e % window == 0:
                counts = [0] * samples
                start = start if e == 0 else int(start / attenuation)
            chosen = p.epoch(e).indices
            kept = list(range(samples)) if chosen is None else chosen.tolist()
            if e % window >= start and e % block < prune_epochs and left > 0:
                assert len(kept) == samples - left
                out = [x for x in range(samples) if x not in kept]
                assert all(sign * counts[x] >= sign * counts[y] for x in out for y in kept)
            else:
                assert chosen is None
            visited = draw.sample(kept, len(kept))
            for first in range(0, len(visited), batch):
                part = visited[first : first + batch]
                losses = [draw.randrange(6) / 4 for _ in part]
                for x, loss in zip(part, losses, strict=True):
                    counts[x] += loss >= sum(losses) / len(losses) * (1 + tolerance)
                p.observe(torch.tensor(part), torch.tensor(losses))
            assert p.state_dict()["counts"].tolist() == counts

    def test_ties_are_drawn_anew_each_epoch_and_by_seed(self) -> None:
        p, same, other = policy(window=8, start=0), policy(window=8, start=0), policy(window=8, start=0, seed=1)
        first, second = p.epoch(0).indices, p.epoch(1).indices
        assert torch.equal(first, same.epoch(0).indices)  # type: ignore[arg-type]
        assert not torch.equal(first, second) and not torch.equal(first, other.epoch(0).indices)  # type: ignore[arg-type]

    def test_require_count_with_nothing_counted_visits_all(self) -> None:
        assert policy(window=8, start=0, require_count=True).epoch(0) == (None, None)

    def test_rescaling_keeps_the_weight_of_each_count(self) -> None:
        counts = torch.tensor([0] * 12 + [1] * 8)
        pruned = torch.arange(20) < 9
        weights = stand_in_weights(counts, pruned, "easiest")
        assert weights.tolist() == [1.0] * 9 + [4.0] * 3 + [1.0] * 8
        assert weights[~pruned].sum() == 20
        assert torch.equal(stand_in_weights(1 - counts, pruned, "worst"), weights)
        assert stand_in_weights(counts, torch.arange(20) < 12, "easiest").tolist() == [1.0] * 20  # nobody is left to stand in
        assert stand_in_weights(counts, torch.arange(20) < 11, "easiest").max() == 4.0  # not 12
        chosen = policy(window=8, start=0, rescale=True).epoch(0)
        assert chosen.weights is not None and chosen.weights[chosen.indices].tolist() == pytest.approx([4 / 3] * 30)


class TestInfoBatch:
    def test_it_drops_a_share_of_the_easy_and_keeps_the_expected_gradient(self) -> None:
        p = policy("infobatch", drop=0.4)
        assert p.epoch(0) == (None, None)
        losses = torch.cat([torch.full((30,), 0.1), torch.full((10,), 2.0)])
        feed(p, losses)
        chosen = p.epoch(1)
        assert chosen.indices is not None and chosen.weights is not None
        kept = set(chosen.indices.tolist())
        assert len(kept) == 40 - 12 and set(range(30, 40)) <= kept
        weights = [round(float(w), 5) for w in chosen.weights[chosen.indices]]
        assert sorted(weights) == [1.0] * 10 + [round(1 / 0.6, 5)] * 18
        assert float(chosen.weights[chosen.indices].sum()) == pytest.approx(40)

    def test_dropped_samples_keep_their_loss_and_unseen_ones_stay(self) -> None:
        p = policy("infobatch")
        p.observe(torch.arange(20), torch.linspace(0, 1, 20))
        p.epoch(1)
        feed(p, torch.full((40,), 5.0), torch.tensor([0]))
        state = p.state_dict()["losses"]
        assert state[0] == 5.0 and state[1] == pytest.approx(1 / 19) and state[20:].isnan().all()
        chosen = p.epoch(2)
        assert chosen.indices is not None and set(range(20, 40)) <= set(chosen.indices.tolist())


def test_random_has_the_budget_of_fine_pruning() -> None:
    blind, counted = policy("random", epochs=24), policy(epochs=24)
    sizes = [[len(p.epoch(e).indices) if p.epoch(e).indices is not None else 40 for e in range(24)] for p in (blind, counted)]  # type: ignore[arg-type]
    assert sizes[0] == sizes[1] and 30 in sizes[0]
    assert not torch.equal(blind.epoch(5).indices, blind.epoch(6).indices)  # type: ignore[arg-type]


def test_the_order_random_is_the_policy_random() -> None:
    named, ordered = policy("random", epochs=24), policy(epochs=24, order="random")
    feed(ordered, torch.rand(40))
    for e in range(24):
        one, other = named.epoch(e), ordered.epoch(e)
        assert (one.indices is None) == (other.indices is None) and one.weights is other.weights is None
        assert one.indices is None or torch.equal(one.indices, other.indices)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["none", "fine-pruning", "infobatch", "random"])
def test_state_goes_on_exactly(name: str) -> None:
    whole, draw = policy(name), torch.Generator().manual_seed(3)
    for e in range(5):
        whole.epoch(e)
        feed(whole, torch.rand(40, generator=draw))
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    resumed = policy(name)
    resumed.load_state_dict(state)
    for e in range(5, 12):
        one, other = whole.epoch(e), resumed.epoch(e)
        assert (one.indices is None) == (other.indices is None)
        assert one.indices is None or torch.equal(one.indices, other.indices)  # type: ignore[arg-type]
        losses = torch.rand(40, generator=draw)
        feed(whole, losses)
        feed(resumed, losses)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"name": "fine"}, "policy is one of none, fine-pruning, infobatch, random, got 'fine'"),
        ({"name": "infobatch", "window": 5}, "policy infobatch has no window; it takes drop, full_share"),
        ({"name": "none", "fraction": 0.5}, "policy none has no fraction; it takes no parameter"),
        ({"name": "random", "fraction": 1.0}, r"policy random: fraction is in \(0,1\), got 1.0"),
        ({"name": "random", "fraction": True}, r"fraction is in \(0,1\), got True"),
        ({"name": "infobatch", "drop": 0.0}, r"drop is in \(0,1\), got 0.0"),
        ({"name": "infobatch", "full_share": math.nan}, r"full_share is in \[0,1\), got nan"),
        ({"name": "fine-pruning", "attenuation": 0.5}, "attenuation is at least 1, got 0.5"),
        ({"name": "fine-pruning", "tolerance": -1}, "tolerance is above -1, got -1"),
        ({"name": "fine-pruning", "window": 0}, "window is a whole number of at least 1, got 0"),
        ({"name": "fine-pruning", "start": -1}, "start is a whole number of at least 0, got -1"),
        ({"name": "fine-pruning", "window": 5, "start": 5}, "start is below window=5, got 5; else nothing is ever pruned"),
        ({"name": "fine-pruning", "prune_epochs": 5}, "prune_epochs is at most block=4, got 5"),
        ({"name": "fine-pruning", "block": 2.5}, "block is a whole number of at least 1, got 2.5"),
        ({"name": "fine-pruning", "tie_break": "index"}, "tie_break is random or loss, got 'index'"),
        ({"name": "fine-pruning", "order": "hardest"}, "order is worst or easiest or random, got 'hardest'"),
        (
            {"name": "fine-pruning", "order": "random", "tie_break": "loss", "rescale": True},
            "order random counts no losses; leave tie_break, rescale out",
        ),
        ({"name": "random", "order": "easiest"}, "policy random has no order; it takes window"),
        ({"name": "fine-pruning", "rescale": 1}, "rescale is true or false, got 1"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        PolicyConfig(**parameters)


def test_runs_that_a_policy_does_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="policy random leaves 3 of 10 training images, fewer than a batch of 4; use a smaller batch size"):
        policy("random", samples=10, fraction=0.7)
    with pytest.raises(UsageError, match="prunes none of the 12 epochs; lower window=60 and start=20, or use policy none"):
        policy(window=60, start=20)
    with pytest.raises(UsageError, match=r"infobatch prunes none of the 2 epochs; lower full_share=0\.125 or train longer"):
        policy("infobatch", epochs=2, full_share=0.125)
    with pytest.raises(UsageError, match="policy has unknown windows; random takes window, start, attenuation"):
        PolicyConfig.of({"name": "random", "windows": 3})


def test_a_name_or_a_table_will_do() -> None:
    assert PolicyConfig.of("random") == PolicyConfig.of({"name": "random"}) == PolicyConfig(name="random")
    assert PolicyConfig.of(PolicyConfig(name="infobatch", drop=0.25).to_json()) == PolicyConfig(name="infobatch", drop=0.25)


def test_observations_that_make_no_sense_are_refused() -> None:
    p = policy()
    with pytest.raises(RunError, match=r"the policy got \(3,\) losses for \(2,\) samples"):
        p.observe(torch.arange(2), torch.rand(3))
    with pytest.raises(RunError, match="the policy knows samples 0 to 39, got 0 to 40"):
        p.observe(torch.tensor([0, 40]), torch.rand(2))
    with pytest.raises(RunError, match="the loss of sample 7 is not finite"):
        p.observe(torch.tensor([3, 7]), torch.tensor([0.1, math.nan]))
    assert p.state_dict()["counts"].sum() == 0
