"""BatchNorm statistics computed anew."""

import math

import pytest
import torch
from torch import nn

from fineprune.common.errors import RunError
from fineprune.models.training import recalibrate_batchnorm
from support.fakes import FakeSplit, fake_data, small_network


def test_statistics_are_averages_weighted_by_batch_size() -> None:
    data = fake_data(train=17, size=5)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    model[0].running_mean.fill_(math.nan)
    model[0].train(False)
    assert recalibrate_batchnorm(model, data.train.batches(7), device="cpu") == 17
    parts = data.train.images.split(7)
    mean = sum(len(p) * p.mean((0, 2, 3)) for p in parts) / 17
    var = sum(len(p) * p.var((0, 2, 3)) for p in parts) / 17
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, var)
    assert model[0].momentum == 0.1 and not model[0].training and model[1].training


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
