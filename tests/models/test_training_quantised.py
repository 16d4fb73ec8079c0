"""The last epochs on the grids of int8: numbers and gradients by hand, exactly resumable, masks and all else as they were."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import UsageError
from fineprune.common.processes import Group
from fineprune.compressor.layers import MaskedConv2d
from fineprune.models.training import TrainConfig, TrainResult, synchronous, train
from fineprune.models.training.evaluate import Evaluation
from fineprune.models.training.quantised import Quantised, fake_activations, fake_weights
from fineprune.ops.grids import Grid, integer_weights, weight_scales
from fineprune.ops.ranges import RANGES, RANGES_DEFAULT, histograms
from support.fakes import FakeData, Recorder, fake_data, small_network

CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.1, seed=5, qat_epochs=2, checkpoint_every_s=0)


def masked(seed: int = 0) -> nn.Sequential:
    """The first convolution keeps half of its weights, the other half of its blocks."""
    network = small_network(seed)
    keep = torch.rand(5, 3, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    network[0] = MaskedConv2d.wrap(network[0], fwp_mask=keep)
    network[3] = MaskedConv2d.wrap(network[3], ffp_mask=torch.rand(5, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.5)
    return network


def run(config: TrainConfig = CONFIG, data: FakeData | None = None, **options: Any) -> tuple[nn.Module, TrainResult]:
    model = options.pop("model", None) or masked()
    return model, train(model, data or fake_data(), config, device="cpu", **options)


def begun(model: nn.Module, data: FakeData | None = None) -> Quantised:
    """The model as its last epoch has it."""
    task: Any = SimpleNamespace(model=model, config=CONFIG, data=data or fake_data(), device=torch.device("cpu"), group=Group())
    layers = Quantised(task)
    layers.begin(CONFIG.epochs - 1)
    return layers


@pytest.mark.parametrize("low", [-1.5, 0.0])
def test_activations_are_those_of_the_grid(low: float) -> None:
    grid = Grid.of(low, 2.0)
    steps = torch.arange(-300, 301) / 2  # numbers on the grid, halfway between two, and beyond its ends
    x = torch.cat([steps * float(grid.scale), 2 * torch.randn(500, generator=torch.Generator().manual_seed(0))])
    assert np.array_equal(fake_activations(x, grid).numpy(), grid.reals(grid.integers(x.numpy())))
    assert fake_activations(torch.zeros(1), grid).item() == 0


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 7)])
def test_weights_are_the_integers_of_the_export(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    weight[2, :2] = 0
    scales = weight_scales(weight.numpy(), None, np.float32(1))
    spread = scales.reshape(-1, *[1] * (len(shape) - 1))
    assert np.array_equal(fake_weights(weight).numpy(), integer_weights(weight.numpy(), scales) * spread)
    assert (fake_weights(weight)[1] == 0).all() and (fake_weights(weight)[2, :2] == 0).all()


def test_gradients_pass_where_the_grid_reaches() -> None:
    grid = Grid(scale=np.float32(0.5), zero_point=np.uint8(10))  # from -5 to 122.5
    x = torch.tensor([-5.1, -5.0, -0.2, 0.0, 3.3, 122.5, 122.6], requires_grad=True)
    fake_activations(x, grid).backward(torch.arange(1.0, 8.0))
    assert x.grad is not None and x.grad.tolist() == [0, 2, 3, 4, 5, 6, 0]
    weight = torch.tensor([[-3.0, 0.7], [0.0, 0.1]], requires_grad=True)
    fake_weights(weight).backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert weight.grad is not None and weight.grad.tolist() == [[1, 2], [3, 4]]


def test_a_layer_computes_on_grids() -> None:
    model = masked().eval()
    x, inner = fake_data().train.images, torch.rand(2, 5, 6, 6, generator=torch.Generator().manual_seed(3))
    float32 = [model[0](x), model[3](inner)]
    layers = begun(model)
    assert layers.grids is not None and set(layers.grids) == {"0", "3", "7"}
    conv = model[0]
    expected = F.conv2d(fake_activations(x, layers.grids["0"]), fake_weights(conv.weight * conv.fwp_mask), padding=1)
    assert torch.equal(conv(x), expected) and torch.equal(conv(input=x), expected) and not torch.equal(expected, float32[0])
    blocks = MaskedConv2d.wrap(copy.deepcopy(model[3]), ffp_mask=model[3].ffp_mask)
    with torch.no_grad():
        blocks.weight.copy_(fake_weights(model[3].weight))
    found = model[3](inner)
    assert torch.equal(found, blocks(fake_activations(inner, layers.grids["3"]))) and not torch.equal(found, float32[1])
    with pytest.raises(RuntimeError):
        conv(x[:, :1])
    assert isinstance(conv.weight, nn.Parameter)
    layers.close()
    assert torch.equal(conv(x), float32[0])


def test_a_step_follows_the_gradient_of_the_network_on_grids() -> None:
    """One plain step of SGD on one batch, written out."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.network(x)
            return y

    data = fake_data(train=256, size=2)
    model, own = Plain(), Plain()
    own.load_state_dict(model.state_dict())
    x, linear = data.train.images.flatten(1), own.network[1]
    grid = Grid.of(*RANGES[RANGES_DEFAULT](histograms(lambda _: [{"x": x.numpy()}])["x"]))
    weight = linear.weight.detach().clone().requires_grad_()
    F.cross_entropy(F.linear(fake_activations(x, grid), fake_weights(weight), linear.bias), data.train.labels).backward()
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 256, "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    run(TrainConfig(**settings, augment=False, qat_epochs=1), data, model=model)
    assert weight.grad is not None
    torch.testing.assert_close(model.network[1].weight, linear.weight - 0.5 * weight.grad, atol=1e-6, rtol=1e-5)
    float32 = linear.weight.detach().clone().requires_grad_()
    F.cross_entropy(F.linear(x, float32, linear.bias), data.train.labels).backward()
    assert float32.grad is not None and not torch.allclose(weight.grad, float32.grad, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"distill": 0.7, "policy": {"name": "infobatch", "full_share": 0.25}}], ids=["alone", "taught"])
def test_a_crash_at_any_batch_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    options: dict[str, Any] = {"teacher": small_network(seed=7)} if config.distill else {}
    model, result = run(config, **options)
    for crash_after in (3, 7, 12, 14):
        data = fake_data()
        data.train.fail_at = {crash_after}
        with pytest.raises(ConnectionError):
            run(config, data, output=tmp_path / str(crash_after), **options)
        again, resumed = run(config, data, model=masked(), output=tmp_path / str(crash_after), **options)
        assert [r.train_loss for r in resumed.history] == [r.train_loss for r in result.history]
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_only_the_last_epochs_are_on_grids_and_the_network_is_a_plain_one_after_them() -> None:
    recorder = Recorder()
    model, _ = run(progress=recorder)
    assert [line.endswith(", on int8 grids") for line in recorder.lines] == [False, True, True]
    float32, _ = run(replace(CONFIG, qat_epochs=0))
    assert model.state_dict().keys() == float32.state_dict().keys()
    assert not all(torch.equal(value, float32.state_dict()[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks or "weight" in vars(module) for module in model.modules())


def test_the_best_epoch_is_one_on_grids_measured_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    x = fake_data().test.images

    def falling(model: nn.Sequential, *_: Any, **__: Any) -> Evaluation:
        model.eval()
        weight = model[0].weight * model[0].fwp_mask
        seen.append(torch.equal(model[0](x), F.conv2d(x, weight, padding=1)))
        return Evaluation(accuracy=1 - 0.1 * len(seen), top5=None, loss=0.1, samples=12)

    monkeypatch.setattr(synchronous, "evaluate", falling)
    _, result = run()
    assert seen == [True, False, False]
    assert (result.best_epoch, result.best_accuracy) == (2, pytest.approx(0.8))


def test_dropped_weights_get_no_gradient() -> None:
    model = masked()
    before = model[0].weight.detach().clone()
    run(replace(CONFIG, weight_decay=0.0, qat_epochs=3), model=model)
    changed, dropped = model[0].weight != before, ~model[0].fwp_mask
    assert not changed[dropped].any() and changed[~dropped].all()
    assert (model[0].masked_weight()[dropped] == 0).all()


def test_settings_that_cannot_be() -> None:
    for wrong in (-1, 1.5, True):
        with pytest.raises(UsageError, match="qat_epochs is a whole number of at least 0"):
            TrainConfig(qat_epochs=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="qat_epochs are the last ones of epochs=3, got 4"):
        TrainConfig(epochs=3, qat_epochs=4)
    with pytest.raises(UsageError, match="a parameter server and its workers compute in float32; leave qat_epochs out"):
        TrainConfig(qat_epochs=1, asynchronous={"algorithm": "asgd"})  # type: ignore[arg-type]
    assert "qat_epochs" not in TrainConfig().identity() and TrainConfig(qat_epochs=1).identity()["qat_epochs"] == 1
    with pytest.raises(UsageError, match="no convolution or linear layer that int8 could take"):
        run(model=nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
