"""Adaptive Sparsity Loss: thresholds, masks and gradients against the paper's formulas; a run ends at its budget, and goes on."""

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import UsageError
from fineprune.compressor.bake import bake, masks_of
from fineprune.compressor.bundle import Bundle
from fineprune.compressor.config import prune_config
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prunable
from fineprune.models.training import TrainConfig
from fineprune.models.training.interfaces import Beside
from fineprune.models.training.trainer import opened
from fineprune.recipe import job_of
from fineprune.schedules import Adaptive
from fineprune.thresholds import AdaptiveThresholds, first_threshold, gradient
from support.command import succeed
from support.fakes import fake_data, small_network

SCHEDULE = Adaptive(share=0.5, strength=10, speed=0.5, smallest=20)
RATIO = 0.6


def thresholds(model: nn.Module, schedule: Adaptive = SCHEDULE, ffp: float = 0.0) -> AdaptiveThresholds:
    run = CalibrationRun(source=fake_data(seed=1).train, input_shape=(3, 6, 6), config=CalibrationConfig(batch_size=8))
    config = prune_config("thesis", fwp={"criterion": "asl", "ratio": RATIO}, ffp={"ratio": ffp})
    return AdaptiveThresholds(model, config, schedule, run, prunable(model, config, run), lr=0.1)


class Pruned(torch.autograd.Function):
    """w where |w| > b, else 0: the paper's pruning function, straight through in w; what is below the threshold grows with -w / b in b."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(w, b)
        return w * (w.abs() > b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        w, b = ctx.saved_tensors
        return grads[0], (grads[0] * torch.where(w.abs() > b, 0, -w / b)).sum()


def test_thresholds_learn_as_in_the_paper() -> None:
    """Three steps of plain descent on loss + 10 (density - target)^2, thresholds among the variables."""
    model = small_network(dropout=0.0).train()
    masking = thresholds(model)
    data = fake_data(seed=2).train
    first, second = (model.get_submodule(name).weight.detach().clone().requires_grad_() for name in ("0", "3"))
    rest = small_network(dropout=0.0).train()
    r = {name: torch.tensor(first_threshold(RATIO), requires_grad=True) for name in ("0", "3")}
    speed = {name: torch.zeros(()) for name in r}
    macs = {"0": 3 * 5 * 9 * 36, "3": 5 * 7 * 36}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        masking.update(0.1 * step)
        for name, w in (("0", first), ("3", second)):
            mask = masks_of(model)["fwp"][name]
            assert torch.equal(mask, w.abs() > r[name] * w.std()), (step, name)
            assert masking.thresholds[name] == pytest.approx(r[name].item(), rel=1e-4)
        optimizer.zero_grad()
        F.cross_entropy(model(data.images), data.labels).backward()
        optimizer.step()

        kept = {name: Pruned.apply(w, r[name] * w.std().detach()) for name, w in (("0", first), ("3", second))}
        y = torch.func.functional_call(rest, {"0.weight": kept["0"], "3.weight": kept["3"]}, (data.images,))
        total = sum(macs.values())
        density = sum(m / total * (1 - torch.erf(r[name] / sqrt(2))) for name, m in macs.items())
        task = F.cross_entropy(y, data.labels)
        others = [parameter for name, parameter in rest.named_parameters() if name not in ("0.weight", "3.weight")]
        grads = torch.autograd.grad(task, [first, second, *others], retain_graph=True)
        by_density = dict(zip(r, torch.autograd.grad(10 * (density - (1 - RATIO)) ** 2, list(r.values())), strict=True))
        with torch.no_grad():
            for value, grad in zip([first, second, *others], grads, strict=True):
                value -= 0.1 * grad
        # dropped weights move before thresholds read them: the gradient of the loss in r is taken at the new weights
        with torch.no_grad():
            for (name, w), grad in zip((("0", first), ("3", second)), grads, strict=False):
                gone = kept[name] == 0
                by_task = -(grad * w)[gone].sum() / r[name]
                speed[name] = 0.9 * speed[name] + by_task + by_density[name]
            for name in r:
                r[name] -= 0.1 * 0.5 * speed[name]
    assert not torch.equal(model.get_submodule("0").weight, small_network().get_submodule("0").weight)


def test_the_gradient_in_a_threshold_is_the_paper_s() -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(2, 30, generator=generator)
    r = torch.tensor(0.8, requires_grad=True)
    (Pruned.apply(w, r * w.std()) * g).sum().backward()  # type: ignore[no-untyped-call]
    assert gradient(w, g, w.abs() > 0.8 * w.std(), 0.8) == pytest.approx(r.grad.item(), rel=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("ffp", [0.0, 0.15])
def test_a_run_ends_at_its_budget_and_goes_on_where_it_stopped(ffp: float, tmp_path: Path) -> None:
    config = TrainConfig(epochs=4, batch_size=16, lr=0.1, seed=5, checkpoint_every_s=0)

    def run(fail_at: int | None, output: Path | None) -> tuple[nn.Module, AdaptiveThresholds]:
        model, data = small_network(), fake_data(seed=3)
        data.train.fail_at |= {fail_at} if fail_at is not None else set()
        masking = thresholds(model, ffp=ffp)
        with opened(model, data, config, device="cpu", output=output, beside=Beside(masking=masking)) as running:
            running.finish()
        return model, masking

    model, masking = run(None, None)
    assert masking.final and len(set(masking.thresholds.values())) == 2
    dense, left = count_macs(small_network(), (3, 6, 6)).conv_macs, count_macs(model, (3, 6, 6)).conv_macs
    assert left / dense == pytest.approx((1 - RATIO) * (1 - ffp), abs=0.02)
    assert bool(masking.masks["ffp"]) == bool(ffp)
    for batch in (2, 6, 11):
        with pytest.raises(ConnectionError):
            run(batch, tmp_path / str(batch))
        again, resumed = run(None, tmp_path / str(batch))
        assert resumed.thresholds == masking.thresholds
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_went_before_counts_towards_the_ratio() -> None:
    dense, half = small_network(), torch.Generator().manual_seed(0)
    before = {"0": torch.rand(5, 3, 3, 3, generator=half) < 0.5, "3": torch.rand(7, 5, 1, 1, generator=half) < 0.5}
    model = bake(dense, {"fwp": before})
    masking = thresholds(model)
    masking.update(0.5)
    assert masking.final and all((masking.masks["fwp"][name] <= kept).all() for name, kept in before.items())
    left = [count_macs(network, (3, 6, 6)).conv_macs for network in (model, dense)]
    assert left[0] / left[1] == pytest.approx(1 - RATIO, abs=0.02)


def test_the_method_brings_its_training_and_refuses_what_it_cannot_learn(trained: list[object], tmp_path: Path) -> None:
    job = job_of({"compress": {"method": "asl", "rate": 0.7, "ffp": 0.15, "preset": "thesis"}, "finetune": {"epochs": 5}})
    assert job.schedule == Adaptive() and job.config.ffp.criterion == "l2"
    assert job_of({"compress": {"method": "asl", "rate": 0.7}, "finetune": {"epochs": 0}}).schedule is None, "one threshold for all layers"
    for table, message in (
        ({"method": "lamp", "rate": 0.5, "prune_schedule": "asl"}, "trains the thresholds of method 'asl', and not of 'lamp'"),
        ({"method": "asl", "rate": 0.5, "fwp": {"unit": "quad"}}, "learns the ratio of each layer, of single weights"),
        ({"method": "asl", "rate": 0.5, "prune_schedule": {"name": "asl", "share": 1}}, r"share is in \(0,1\), got 1"),
        ({"method": "asl", "rate": 0.5, "prune_schedule": {"name": "asl", "speed": 0}}, "speed is a number above 0, got 0"),
    ):
        with pytest.raises(UsageError, match=message):
            job_of({"compress": table, "finetune": {"epochs": 2}})
    options = ["--method", "asl", "--rate", 0.5, "--ffp", 0.15, "--preset", "thesis", "--epochs", 2, "--samples", 16]
    args = ["--prune-schedule", "asl", "--prune-schedule-arg", "smallest=2", "--prune-schedule-arg", "share=0.5"]
    succeed("compress", *trained, *options, *args, "--output", tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.facts["training"]["finetune"]["prune_schedule"]["name"] == "asl" and bundle.masks["ffp"] and bundle.masks["fwp"]
    rows = [row for row in bundle.facts["macs"]["layers"] if row["name"] in bundle.masks["fwp"]]
    assert sum(row["macs"] for row in rows) / sum(row["macs_dense"] for row in rows) == pytest.approx(0.5 * 0.85, abs=0.03)
    with pytest.raises(UsageError, match="no layer that is pruned has as many as 999 weights; lower prune_schedule's smallest"):
        thresholds(small_network(), replace(SCHEDULE, smallest=999))
