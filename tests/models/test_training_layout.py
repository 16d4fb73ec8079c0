"""Channels-last memory steps aside for networks whose forward reads memory in its own order."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.models.training import TrainConfig, evaluate, recalibrate_batchnorm, train
from fineprune.models.training.layout import suits_nhwc
from support.fakes import FakeBatch, FakeSplit, Recorder, fake_data


class _ViewsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.view(-1).view(grad.shape)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(len(x), -1),
    "unfold": lambda x: F.unfold(x, 1).flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "view of -1": lambda x: x.view(-1, 5 * 36),
    "as_strided": lambda x: x.as_strided((len(x), 5 * 36), (5 * 36, 1)),
    "resize_": lambda x: x.clone(memory_format=torch.preserve_format).detach().resize_(len(x), 5 * 36) + 0 * x.flatten(1),
    "gradient": lambda x: torch.flatten(x, 1),
    "numpy": lambda x: x.flatten(1) + torch.from_numpy(np.ravel(x.detach().numpy(), order="K").reshape(len(x), -1)),
}


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            self.conv, self.norm, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(180, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = _ViewsGradient.apply(x) if self.how == "gradient" else x
        return self.head(WAYS[self.how](F.relu(self.norm(x))))


@pytest.mark.parametrize("how", WAYS)
def test_any_way_to_flatten_trains_as_it_does_in_nchw(how: str) -> None:
    data, weights, log = fake_data(), [], Recorder()
    config = TrainConfig(epochs=2, batch_size=16, lr=0.1, seed=3)
    for channels_last in (True, False):
        model = Net(how)
        train(model, data, TrainConfig(**{**config.to_json(), "channels_last": channels_last}), device="cpu", progress=log)
        weights.append([p.detach() for p in model.parameters()])
        assert evaluate(model, data.test, device="cpu").samples == 12
    same = how in ("flatten", "reshape", "unfold")
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if same else {"rtol": 0, "atol": 0}
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    said = [line for line in log.lines if "relies on the order of numbers in memory" in line]
    assert len(said) == (0 if same else 1)


class _Counts(nn.Module):
    """Puts another tensor in its buffer's place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("how", ["view", "flatten"])
def test_trying_leaves_the_network_as_it_was(how: str) -> None:
    model = Net(how).train()
    model.counts = _Counts()
    model.register_forward_pre_hook(lambda module, inputs: module.counts(inputs[0]))
    model.norm.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert suits_nhwc(model, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))) == (how == "flatten")
    torch.set_rng_state(state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and not model.norm.training and model.conv.training and model.conv.weight.is_contiguous()
    assert model.conv.weight.grad is None and model.head.weight.grad is not None and model.head.weight.grad.sum() == 180 * 3


def test_a_network_that_fails_in_either_order_is_left_to_the_first_step() -> None:
    assert suits_nhwc(nn.Sequential(nn.Conv2d(4, 2, 1)), torch.zeros(2, 3, 6, 6))
    assert suits_nhwc(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), torch.zeros(2, 9))


class _Views(FakeSplit):
    """Whose batches are parts of its own tensor, not copies."""

    def batches(self, batch_size: int, **options: object) -> Iterator[FakeBatch]:  # type: ignore[override]
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield FakeBatch(self.images[part], self.labels[part], torch.arange(len(self))[part])


class _Overwrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).flatten(1)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_that_writes_to_its_input_finds_the_same_images_again(channels_last: bool) -> None:
    data = fake_data()
    data.train = _Views(data.train.images, data.train.labels)
    before, model = data.train.images.clone(), nn.Sequential(nn.Identity(), _Overwrites(), nn.BatchNorm1d(108), nn.Linear(108, 3))
    train(model, data, TrainConfig(epochs=1, batch_size=16, lr=0.1, channels_last=channels_last), device="cpu")
    evaluate(model, data.train, device="cpu")
    recalibrate_batchnorm(model, data.train.batches(20), device="cpu")
    assert torch.equal(data.train.images, before)
