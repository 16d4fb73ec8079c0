"""Masks that come while the network trains: when, how many, that they may come back, and that a run is resumed exactly."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fineprune as package
from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import RunError, UsageError
from fineprune.compressor.bake import bake, masks_of, remask
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.config import PruneConfig, prune_config
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prunable, prune
from fineprune.masking import MaskUpdates
from fineprune.models.data import load_data
from fineprune.models.training import TrainConfig, TrainResult, synchronous
from fineprune.models.training.distributed.simulator import Simulator
from fineprune.models.training.distributed.worker import Worker
from fineprune.models.training.interfaces import Beside
from fineprune.models.training.trainer import opened
from fineprune.recipe import job_of, read_recipe
from fineprune.schedules import CubicSchedule, EachEpoch, WhileTraining, at, schedule_of
from support.command import fineprune, succeed
from support.fakes import FakeData, Recorder, fake_data

SCHEDULE = CubicSchedule(share=0.5, updates=3, samples=24)
CONFIG = TrainConfig(epochs=4, batch_size=16, lr=0.1, seed=5, checkpoint_every_s=0)
WEIGHTS = prune_config("taylor", ratio=0.5)
BOTH = prune_config("taylor", ffp={"ratio": 0.3}, fwp={"ratio": 0.4})


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 3),
        )  # fmt: skip


def updates(model: nn.Module, config: PruneConfig = WEIGHTS, schedule: WhileTraining = SCHEDULE, **options: Any) -> MaskUpdates:
    where = CalibrationRun(source=fake_data(seed=1).train, input_shape=(3, 6, 6), config=CalibrationConfig(batch_size=8), **options)
    return MaskUpdates(model, config, schedule, where, prunable(model, config, where))


def same(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> bool:
    flat = [{(kind, name): mask for kind, of in masks.items() for name, mask in of.items()} for masks in (one, other)]
    return flat[0].keys() == flat[1].keys() and all(torch.equal(mask, flat[1][key]) for key, mask in flat[0].items())


def test_the_cubic_schedule_is_its_formula() -> None:
    schedule = CubicSchedule(share=0.4, updates=5)
    for step in range(100):
        progress, expected = step / 100, 0
        while expected < 5 and 0.4 * (expected + 1) / 5 <= progress + 1e-9:
            expected += 1
        assert schedule.due(progress) == expected
    reached = [0.7 + (0.0 - 0.7) * (1 - k / 5) ** 3 for k in range(6)]  # s_f + (s_0 - s_f)(1 - t/T)^3
    asked = prune_config("taylor", fwp={"ratio": 0.7, "per_layer": {"0": 0.35}})
    for k, ratio in enumerate(reached):
        now = at(asked, partial(schedule.ratio, k))
        assert now.fwp.ratio == pytest.approx(ratio) and now.fwp.per_layer["0"] == pytest.approx(ratio / 2)
        assert replace(now.fwp, ratio=0.7, per_layer={"0": 0.35}) == asked.fwp
    assert at(asked, partial(schedule.ratio, 5)) == asked


@pytest.mark.parametrize("config", [WEIGHTS, BOTH], ids=["weights", "both"])
def test_each_update_is_a_compression_at_once_of_the_network_of_now(config: PruneConfig) -> None:
    model = network()
    masking = updates(model, config)
    for k, progress in enumerate((0.2, 0.34, 0.5), start=1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
        dense = network()
        dense.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith("_mask")})
        expected = prune(dense, at(config, lambda whole, k=k: whole * (1 - (1 - k / 3) ** 3)), masking.run).masks
        before = deepcopy(dense.state_dict())
        masking.update(progress)
        assert same(masks_of(model), expected) and masking.final == (k == 3)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
        masking.update(progress)  # nothing is due
        assert same(masks_of(model), expected)


def test_what_was_dropped_comes_back_and_earlier_masks_stay() -> None:
    model = bake(network(), {"fwp": {"0": torch.arange(6 * 27).view(6, 3, 3, 3) % 9 > 0}})
    earlier = masks_of(model)["fwp"]["0"]
    masking = updates(model, prune_config("taylor", fwp={"ratio": 0.5, "criterion": "magnitude", "scope": "layer", "exclude": ("0",)}))
    masking.update(0.2)
    dropped = ~masks_of(model)["fwp"]["3"]
    assert dropped.any() and torch.equal(masks_of(model)["fwp"]["0"], earlier)
    with torch.no_grad():
        model.get_submodule("3").weight[dropped] = 9.0
    masking.update(0.5)
    now = masks_of(model)["fwp"]
    assert now["3"][dropped].all() and now["3"].float().mean() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(now["0"], earlier)


@pytest.mark.parametrize("dropped", ["zeroed", "kept", "trained"])
def test_filters_by_their_median_are_chosen_anew_at_every_epoch(dropped: str) -> None:
    """The loop of the paper: after each epoch, the int(F * rate) filters nearest to all others go, of the weights as they are then."""
    model, epochs = network(), 3
    schedule = EachEpoch(dropped=dropped).over(epochs)  # type: ignore[arg-type]
    masking = updates(model, prune_config(fwp={"criterion": "fpgm", "ratio": 0.4, "include": ("0",)}), schedule)
    weights = model.get_submodule("0").weight.detach().clone()  # the loop's own
    was = []
    for epoch in range(epochs):
        masking.update(epoch / epochs)
        sums = [sum(float((one - other).norm()) for other in weights) for one in weights]
        gone = sorted(range(6), key=lambda f: sums[f])[:2]
        was.append(set(gone))
        if dropped != "kept":
            weights[gone] = 0
        assert torch.equal(model.get_submodule("0").weight, weights)
        kept = masking.pruned.masks["fwp"]["0"].flatten(1).any(1)
        assert (~kept).nonzero().flatten().tolist() == sorted(gone)
        final = epoch == epochs - 1
        worn = masks_of(model)["fwp"]
        assert masking.final == final and ("0" in worn) == (dropped != "trained" or final)
        step = torch.randn(weights.shape, generator=torch.Generator().manual_seed(epoch))
        step = -0.9 * weights if dropped == "kept" else step  # those that stay shrink, and come nearer than those that went
        step = step if dropped == "trained" else step * kept.view(-1, 1, 1, 1)  # masks leave no gradient
        with torch.no_grad():
            model.get_submodule("0").weight.add_(step)
        weights += step
        masking.update((epoch + 0.5) / epochs)  # nothing is due
        assert torch.equal(model.get_submodule("0").weight, weights)
    assert (was[0] == was[1] == was[2]) == (dropped == "zeroed"), "zero is near the median of all"
    assert not model.get_submodule("3").weight[~masking.pruned.masks["fwp"]["3"]].any() or dropped == "kept", "what reads them goes, too"


def test_updates_at_every_epoch() -> None:
    schedule = EachEpoch().over(4)
    assert [schedule.due(step / 8) for step in range(9)] == [1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert [EachEpoch(updates=2).over(4).due(step / 4) for step in range(4)] == [1, 1, 2, 2]
    assert schedule.ratio(1, 0.4) == 0.4 and schedule.to_json() == {
        "name": "each-epoch",
        "updates": 4,
        "samples": 1024,
        "dropped": "zeroed",
    }
    assert schedule_of("each-epoch") == EachEpoch()
    job = job_of({"compress": {"method": "fpgm", "rate": 0.4}, "finetune": {"epochs": 3}})
    assert job.schedule == EachEpoch(), "as its source has it"
    assert job_of({"compress": {"method": "fpgm", "rate": 0.4}, "finetune": {"epochs": 0}}).schedule is None
    assert job_of({"compress": {"method": "fpgm", "rate": 0.4, "prune_schedule": "one-shot"}, "finetune": {"epochs": 3}}).schedule is None
    with pytest.raises(UsageError, match="dropped is one of zeroed, kept, trained, got 'gone'"):
        EachEpoch(dropped="gone")  # type: ignore[arg-type]
    server = {"epochs": 2, "asynchronous": {"algorithm": "asgd", "workers": 2}}
    with pytest.raises(UsageError, match="a parameter server holds the weights, and dropped='zeroed' changes them; give 'kept'"):
        job_of({"compress": {"method": "fpgm", "rate": 0.4}, "finetune": server})


def test_an_update_is_one_line_within_the_bar_of_the_epoch() -> None:
    recorder = Recorder()
    masking = updates(network(), schedule=replace(SCHEDULE, updates=2), progress=recorder)
    before = len(recorder.loops)
    masking.update(0.3)
    masking.update(0.5)
    assert len(recorder.loops) == before
    assert recorder.lines[-2:] == [f"masks, update {k} of 2: {share} % of what is asked for is pruned" for k, share in ((1, 88), (2, 100))]


def test_remask_changes_masks_and_nothing_else() -> None:
    model = bake(network(), {"fwp": {"0": torch.zeros(6, 3, 3, 3, dtype=torch.bool)}, "ffp": {"3": torch.ones(6, 4, 4, dtype=torch.bool)}})
    other = {"fwp": {"3": torch.arange(8 * 54).view(8, 6, 3, 3) % 2 > 0}}
    remask(model, other)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert same(masks_of(model), other) and torch.equal(model.eval()(x), bake(network(), other).eval()(x))
    with pytest.raises(UsageError, match="the masks name a layer '9' that the network does not have"):
        remask(model, {"fwp": {"9": torch.ones(1, dtype=torch.bool)}})


def run(
    data: FakeData, config: TrainConfig = CONFIG, output: Path | None = None, schedule: WhileTraining = SCHEDULE
) -> tuple[TrainResult, nn.Module, MaskUpdates]:
    model, teacher = network(), None if config.distill is None else network(seed=7)
    masking = updates(model, BOTH, schedule)
    with opened(model, data, config, device="cpu", output=output, beside=Beside(teacher=teacher, masking=masking)) as running:
        return running.finish(), model, masking


def test_a_run_that_may_end_before_its_masks_are_final_is_refused() -> None:
    """Of four batches the policy leaves two to the last of two epochs, whose last step begins at three quarters of the run."""
    few = {"name": "random", "window": 2, "start": 1, "block": 1, "prune_epochs": 1, "fraction": 0.7}
    late, config = replace(SCHEDULE, share=0.8), replace(CONFIG, epochs=2, policy=few)  # type: ignore[arg-type]
    result, _, masking = run(fake_data(), config, schedule=late)
    assert not masking.final and result.history[-1].visits == 18
    with pytest.raises(UsageError, match="2 epochs with policy random may end before the masks are final; train longer, or lower"):
        late.check_steps(config, 60)
    late.check_steps(replace(config, epochs=5), 60)
    late.check_steps(CONFIG, 60)
    with pytest.raises(UsageError, match="1 epochs of 1 steps may end"):  # a single sample that is left over makes no step
        replace(SCHEDULE, share=0.5).check_steps(replace(CONFIG, epochs=1), 17)


def test_a_run_ends_with_the_masks_asked_for_and_its_best_epoch_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch validates worse than the one before; half of six are over when the masks are final."""
    worse = iter(range(6))
    measured = synchronous.evaluate
    monkeypatch.setattr(synchronous, "evaluate", lambda *given, **rest: replace(measured(*given, **rest), accuracy=1 / (2 + next(worse))))
    result, model, masking = run(fake_data(), replace(CONFIG, epochs=6))
    assert masking.final and result.best_epoch == 4
    macs = count_macs(model, (3, 6, 6))
    assert macs.conv_macs / macs.conv_macs_dense == pytest.approx(0.7 * 0.6, abs=0.03)
    assert all(
        bool(layer.weight[~mask].ne(0).any()) for name, mask in masks_of(model)["fwp"].items() if (layer := model.get_submodule(name))
    )


COMPOSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "fine-pruning": {"policy": {"name": "fine-pruning", "window": 2, "start": 1, "block": 1, "prune_epochs": 1, "fraction": 0.4}},
    "random": {"policy": {"name": "random", "window": 2, "start": 1, "block": 1, "prune_epochs": 1, "fraction": 0.4}},
    "infobatch": {"policy": {"name": "infobatch", "full_share": 0.25}},
    "taught": {"distill": 0.7},
    "server": {"asynchronous": {"algorithm": "dc-asgd", "workers": 3}},
    "features": {"distill": {"share": 0.7, "features": 0.5}, "policy": {"name": "infobatch", "full_share": 0.25}},
}


@pytest.mark.parametrize("changes", COMPOSED.values(), ids=COMPOSED)
def test_a_crash_at_any_batch_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    """16 batches, fewer with a policy; updates come when an eighth, a quarter and three eighths of the run are over."""
    config = replace(CONFIG, **changes)
    expected, dense, _ = run(fake_data(), config)
    assert any(r.visits < 60 for r in expected.history[:2]) == (config.policy.name != "none"), "while masks come"
    for crash_after in (1, 3, 4, 7, 11):
        data = fake_data()
        # One is asked for by the layout, the teacher and the policy each, before the first of the run.
        data.train.fail_at = {crash_after + (config.policy.name != "none") + (config.distill is not None)}
        with pytest.raises(ConnectionError):
            run(data, config, output=tmp_path / str(crash_after))
        result, model, masking = run(data, config, output=tmp_path / str(crash_after))
        assert same(masks_of(model), masks_of(dense)) and masking.final
        assert all(torch.equal(value, dense.state_dict()[name]) for name, value in model.state_dict().items())
        assert [r.train_loss for r in result.history] == [r.train_loss for r in expected.history]
        again, finished, _ = run(data, config, output=tmp_path / str(crash_after))
        assert again.best_epoch == result.best_epoch and same(masks_of(finished), masks_of(dense))


SERVER: dict[str, Any] = {"time": {"distribution": "constant", "state_s": 0.0}}


@pytest.mark.parametrize("algorithm", ["sgd", "ssgd"])
def test_one_worker_of_a_server_is_the_plain_trainer_to_the_bit(algorithm: str) -> None:
    _, plain, _ = run(fake_data())
    result, model, masking = run(fake_data(), replace(CONFIG, asynchronous={"algorithm": algorithm, "workers": 1, **SERVER}))  # type: ignore[arg-type]
    assert masking.final and same(masks_of(model), masks_of(plain)) and result.best_epoch > 2
    for (name, expected), value in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(value, expected), name


def test_a_worker_computes_under_the_masks_that_came_with_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: dict[int, Any] = {}
    late: list[bool] = []
    pull, compute = Simulator._pull, Simulator._compute
    forward = Worker.forward

    def pulling(simulator: Simulator, m: int) -> None:
        pull(simulator, m)
        pulled[m] = deepcopy(masks_of(simulator.worker.model))

    def computing(simulator: Simulator, m: int) -> None:
        def looking(worker: Worker, *given: Any) -> Any:
            assert same(masks_of(worker.model), pulled[m])
            late.append(not same(pulled[m], simulator.masking.masks))  # type: ignore[union-attr]
            return forward(worker, *given)

        monkeypatch.setattr(Worker, "forward", looking)
        compute(simulator, m)

    monkeypatch.setattr(Simulator, "_pull", pulling)
    monkeypatch.setattr(Simulator, "_compute", computing)
    _, model, masking = run(fake_data(), replace(CONFIG, asynchronous={"algorithm": "asgd", "workers": 3, **SERVER}))  # type: ignore[arg-type]
    assert late.count(True) >= 3 and not late[-1] and same(masks_of(model), masking.masks)


def test_the_rate_does_not_end_a_run_before_its_masks_are_final() -> None:
    """It drops after four epochs and would end the run after eight; the last update is due at the start of the ninth."""
    automatic: dict[str, Any] = {"schedule": "auto", "auto_lr": {"interval": 2, "threshold": 1e9, "max_drops": 1}}
    for schedule, epochs in ((SCHEDULE, 8), (replace(SCHEDULE, share=0.8), 9)):
        result, _, masking = run(fake_data(), replace(CONFIG, epochs=10, **automatic), schedule=schedule)
        assert masking.final and len(result.history) == epochs


@pytest.fixture(scope="module")
def scheduled(folder: Path, trained: list[object]) -> dict[str, Any]:
    options = ["--prune-schedule", "cubic", "--prune-schedule-arg", "updates=2", "--prune-schedule-arg", "samples=40", "--epochs", 2]
    result = succeed("compress", *trained, "--prune", 0.5, *options, "--distill", 0.5, "--output", folder / "scheduled")
    return {"out": result.out, "err": result.err, "bundle": folder / "scheduled", **Bundle.load(folder / "scheduled").facts}


def test_manifest_table_and_page_say_so(scheduled: dict[str, Any], tmp_path: Path) -> None:
    settings = {"name": "cubic", "share": 0.45, "updates": 2, "samples": 40}
    assert scheduled["settings"]["prune_schedule"] == scheduled["training"]["finetune"]["prune_schedule"] == settings
    assert scheduled["accuracy"].keys() == {"dense", "finetuned", "split", "samples"}
    line = "(masks came in 2 updates over the first 45%)"
    assert line in scheduled["out"] and "masks, update 2 of 2: 100 % of what is asked for is pruned" in scheduled["err"]
    succeed("report", scheduled["bundle"], "--output", tmp_path / "page.html")
    assert line in (tmp_path / "page.html").read_text()


def test_as_much_is_pruned_as_at_once(scheduled: dict[str, Any], trained: list[object], tmp_path: Path) -> None:
    succeed("compress", *trained, "--prune", 0.5, "--epochs", 0, "--samples", 40, "--output", tmp_path / "b")
    assert scheduled["conv_macs_kept"] == pytest.approx(Bundle.load(tmp_path / "b").facts["conv_macs_kept"], abs=0.02)


def test_an_untrained_network_is_pruned_on_the_fly(data: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )
    finetune = TrainConfig(epochs=30, batch_size=32, lr=0.1, augment=False)
    bundle = package.compress(model, load_data(data), prune=0.5, prune_schedule={"updates": 4, "samples": 100}, finetune=finetune)
    accuracy = bundle.facts["accuracy"]
    assert accuracy["dense"] < 0.2 and accuracy["finetuned"] > accuracy["dense"] + 0.3
    assert bundle.facts["conv_macs_kept"] == pytest.approx(0.5, abs=0.03)


def test_a_schedule_is_a_name_or_a_table() -> None:
    with pytest.raises(UsageError, match="prune_schedule is a name or a table with a name and settings, got 3"):
        package.compress(network(), "digits", prune=0.4, prune_schedule=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prune-schedule", "linear"], "prune_schedule is one of one-shot, rounds, cubic, each-epoch, asl, got 'linear'"),
        (["--prune-schedule-arg", "updates=2"], "prune_schedule one-shot has unknown updates; it takes nothing"),
        (["--prune-schedule", "cubic", "--prune-schedule-arg", "share=1"], "prune_schedule: share is in (0,1), got 1"),
        (
            ["--prune-schedule", "cubic", "--prune-schedule-arg", "updates=0"],
            "prune_schedule: updates is a whole number of at least 1, got 0",
        ),
        (
            ["--prune-schedule", "cubic", "--prune-schedule-arg", "steps=4"],
            "prune_schedule cubic has unknown steps; it takes share, updates, samples",
        ),
        (["--prune-schedule", "cubic", "--epochs", 0], "give epochs of at least 1, or mask at once"),
        (
            ["--prune-schedule", "cubic", "--trainer", "asgd", "--trainer-arg", "engine=ray"],
            "masks that come while the network trains need",
        ),
        (["--prune-schedule", "cubic", "--epochs", 1, "--batch-size", 1000], "1 epochs of 1 steps may end before the masks are final"),
        (["--prune-schedule", "cubic", "--epochs", 3, "--qat-epochs", 2], "qat_epochs=2 of epochs=3 begin before they are final"),
        (["--prune-schedule", "cubic", "--statistics", "."], "statistics belong to masks made at once"),
    ],
)
def test_what_cannot_be_is_one_line(trained: list[object], tmp_path: Path, options: list[object], said: str) -> None:
    result = fineprune("compress", *trained, "--prune", 0.4, *options, "--output", tmp_path / "b")
    assert result.code == 2 and said in result.err and len(result.err.strip().splitlines()) == 1


def test_a_recipe_says_it_in_one_field(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"

    def recipe(line: str) -> dict[str, Any]:
        path.write_text(f'[model]\nname = "lenet"\n[data]\nspec = "digits"\n[train]\nepochs = 1\n[compress]\nprune = 0.4\n{line}\n')
        return read_recipe(path)

    assert job_of(recipe('prune_schedule = "one-shot"')).schedule is None
    assert job_of(recipe('prune_schedule = "cubic"')).schedule == CubicSchedule()
    assert job_of(recipe('prune_schedule = { name = "cubic", share = 0.3, updates = 4 }')).schedule == CubicSchedule(share=0.3, updates=4)
    assert "prune_schedule" not in job_of(recipe('preset = "taylor"')).to_json()
    with pytest.raises(UsageError, match=r"\[compress\] prune_schedule: share is in \(0,1\), got 2"):
        recipe("prune_schedule = { share = 2 }")
    with pytest.raises(UsageError, match=r"\[compress\] .*take the plain trainer or engine=simulated"):
        recipe('prune_schedule = "cubic"\n[finetune]\nasynchronous = { algorithm = "asgd", engine = "ray" }')


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    run(fake_data(), output=tmp_path)
    path = tmp_path / "training.pt"
    state = torch.load(path, weights_only=True)
    del state["masking"]["masks"]
    torch.save(state, path)
    with pytest.raises(RunError, match="not a whole training state"):
        run(fake_data(), output=tmp_path)
