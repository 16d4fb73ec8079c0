"""What is frozen stays as it is: BatchNorm, dropout in eval mode, parameters without a gradient."""

from typing import Any

import pytest
import torch
from torch import nn

from fineprune.models.training import TrainConfig, train
from support.fakes import Recorder, fake_data, small_network

SETTINGS: dict[str, Any] = {"epochs": 1, "batch_size": 16, "lr": 0.1, "weight_decay": 0.5, "seed": 3}
LINE = "frozen, so its statistics stay: 1 (eval mode, or no parameter requires a gradient)"


def by_eval(model: nn.Sequential) -> None:
    model.train()[1].eval()


def by_parameters(model: nn.Sequential) -> None:
    model.eval()[1].requires_grad_(False)


@pytest.mark.parametrize("asynchronous", [None, {"algorithm": "asgd", "workers": 2}])
@pytest.mark.parametrize("freeze", [by_eval, by_parameters])
def test_a_frozen_batchnorm_keeps_its_statistics_and_a_line_says_so(freeze: Any, asynchronous: Any) -> None:
    model, log = small_network(), Recorder()
    model[1].running_mean += 0.3
    freeze(model)
    before = model[1].running_mean.clone(), model[1].running_var.clone(), model[3].weight.clone()
    train(model, fake_data(), TrainConfig(**SETTINGS, asynchronous=asynchronous), device="cpu", progress=log)
    assert torch.equal(model[1].running_mean, before[0]) and torch.equal(model[1].running_var, before[1])
    assert not torch.equal(model[3].weight, before[2])
    assert log.lines[0] == LINE


@pytest.mark.parametrize("whole", [True, False])
def test_a_network_in_eval_mode_trains_and_a_module_in_eval_mode_does_not(whole: bool) -> None:
    """Of a trained network loaded for compression all is in eval mode: that means nothing."""
    model, seen = small_network(), []
    model.train(not whole)
    model[6].eval()
    model[6].register_forward_hook(lambda module, inputs, output: seen.append(torch.equal(inputs[0], output)))
    log = Recorder()
    train(model, fake_data(validation=0), TrainConfig(**SETTINGS), device="cpu", progress=log)
    assert all(seen) == (not whole) and LINE not in log.lines
    assert model[1].num_batches_tracked == 4


def test_frozen_parameters_know_no_weight_decay() -> None:
    model = small_network()
    model[3].requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, fake_data(), TrainConfig(**SETTINGS), device="cpu")
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert same == {"3.weight", "3.bias"}
