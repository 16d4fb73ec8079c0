"""BatchNorm statistics computed anew."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fineprune.common.errors import RunError
from fineprune.models.training import recalibrate_batchnorm
from support.fakes import FakeBatch, FakeSplit, Recorder, fake_data, small_network


def test_statistics_are_averages_weighted_by_batch_size() -> None:
    data = fake_data(train=17, size=5)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    model[0].running_mean.fill_(math.nan)
    model.eval()[1].train()
    assert recalibrate_batchnorm(model, data.train.batches(7), device="cpu") == 17
    parts = data.train.images.split(7)
    mean = sum(len(p) * p.mean((0, 2, 3)) for p in parts) / 17
    var = sum(len(p) * p.var((0, 2, 3)) for p in parts) / 17
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, var)
    assert model[0].momentum == 0.1 and not model[0].training and model[1].training


class Twice(nn.Module):
    """One layer that a pass calls twice, and one that it calls for some batches only."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm, self.seldom, self.never = norm(3), norm(3), norm(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x) + self.norm(x + 10)
        return self.seldom(x) if len(x) == 4 else x


NORMS = [
    nn.BatchNorm2d,
    lambda width: nn.BatchNorm2d(width, momentum=None),
    nn.SyncBatchNorm,
    partial(nn.InstanceNorm2d, track_running_stats=True),
]


@pytest.mark.parametrize("norm", NORMS)
def test_every_call_of_a_layer_weighs_alike(norm: Callable[[int], nn.Module]) -> None:
    data, model = fake_data(train=20, size=5), Twice(norm)
    model.never.running_mean.fill_(7.0)
    momentum = model.norm.momentum
    recalibrate_batchnorm(model, data.train.batches(8), device="cpu")
    torch.testing.assert_close(model.norm.running_mean, data.train.images.mean((0, 2, 3)) + 5)
    assert model.norm.momentum == momentum and model.never.running_mean.tolist() == [7.0] * 3
    last = data.train.images[16:]
    torch.testing.assert_close(
        model.seldom.running_mean, (model.norm.train()(last) + model.norm(last + 10)).mean((0, 2, 3)), atol=1e-4, rtol=0
    )


def test_frozen_layers_keep_their_statistics_and_are_named() -> None:
    model, log = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)), Recorder()
    model[0].eval()
    model[1].requires_grad_(False)
    assert recalibrate_batchnorm(model, fake_data().train.batches(20), device="cpu", progress=log) == 60
    assert [bool(norm.running_mean.any()) for norm in model] == [False, False, True]  # type: ignore[union-attr]
    assert log.lines == ["frozen, so its statistics stay: 0, 1 (eval mode, or no parameter requires a gradient)"]


def test_after_a_failure_the_statistics_are_the_old_ones() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    model[0].running_mean.fill_(7.0)
    batches = [*fake_data().train.batches(20), FakeBatch(torch.zeros(4, 2, 6, 6), torch.zeros(4).long(), torch.arange(4))]
    with pytest.raises(RunError, match="the model failed on 4 images of 2x6x6"):
        recalibrate_batchnorm(model, batches, device="cpu")
    assert model[0].running_mean.tolist() == [7.0] * 3 and model[0].momentum == 0.1


def test_deeper_layers_see_batch_statistics_and_weights_stay() -> None:
    data, model = fake_data(), small_network()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    recalibrate_batchnorm(model, data.train.batches(30), device="cpu")
    with torch.no_grad():
        hidden = model[0](data.train.images)
    torch.testing.assert_close(model[1].running_mean, hidden.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def test_a_batch_of_one_is_left_out() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    data = fake_data(train=9, size=1)
    assert recalibrate_batchnorm(model, data.train.batches(4), device="cpu") == 8
    torch.testing.assert_close(model[0].running_mean, data.train.images[:8].mean((0, 2, 3)))


def test_refusals_and_nothing_to_do() -> None:
    assert recalibrate_batchnorm(nn.Sequential(nn.Flatten()), fake_data().train.batches(4), device="cpu") == 0
    with pytest.raises(RunError, match="got no batch of two images or more"):
        recalibrate_batchnorm(small_network(), iter(()), device="cpu")
    with pytest.raises(RunError, match="met activations that are not finite"):
        split = FakeSplit(torch.full((4, 3, 6, 6), math.nan), torch.zeros(4, dtype=torch.int64))
        recalibrate_batchnorm(small_network(), split.batches(4), device="cpu")
