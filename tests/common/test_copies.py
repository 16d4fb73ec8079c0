"""Copies of networks as they are found: with activations kept, in any precision, or with something that cannot be worked on."""

import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

from fineprune.common.copies import copied, working_copy
from fineprune.common.errors import RunError, UsageError
from support.fakes import Recorder, small_network

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """Keeps its activations, plainly and deep in containers, one of them twice, and a hook that keeps more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.register_forward_hook(self.keep)

    def keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen = {"conv": [output]}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x).relu()
        self.both = (self.features, {"again": self.features})
        return self.features.mean((2, 3))


def test_activations_that_a_network_keeps_are_copied_as_values() -> None:
    model = Keeps()
    expected = model(X)
    copy = copied(model)
    assert isinstance(copy, Keeps)
    assert torch.equal(copy.features, model.features) and copy.features is not model.features
    assert copy.features.is_leaf and not copy.features.requires_grad
    assert copy.both[0] is copy.both[1]["again"] is copy.features
    assert model.features.grad_fn is not None
    assert copy.conv.weight.requires_grad and copy.conv.weight is not model.conv.weight
    assert torch.equal(copy(X), expected)
    assert copy.seen["conv"][0] is not model.seen["conv"][0], "the hook is the copy's"


@pytest.mark.parametrize("thing", [threading.Lock(), (n for n in range(3)), threading], ids=["lock", "generator", "module"])
def test_what_cannot_be_copied_is_named(thing: object) -> None:
    model = small_network()
    model[3].extra = [thing]
    with pytest.raises(
        RunError, match=r"cannot copy Sequential: 3.extra \(list\) does not let itself be copied: cannot pickle .*; remove it"
    ):
        copied(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_that_is_said(dtype: torch.dtype) -> None:
    model, progress = small_network().to(dtype), Recorder()
    copy = working_copy(model, progress)
    name = str(dtype).removeprefix("torch.")
    assert progress.lines == [f"the network's {name} weights become float32, in which the work is done and the result is kept"]
    assert {value.dtype for value in copy.state_dict().values()} == {torch.float32, torch.int64}
    assert next(model.parameters()).dtype == dtype
    assert copy(X).dtype == torch.float32


def test_a_float32_network_is_copied_and_nothing_said() -> None:
    model, progress = small_network().eval(), Recorder()
    copy = working_copy(model, progress)
    assert torch.equal(copy(X), model(X)) and progress.lines == []
    assert copy[0].weight is not model[0].weight


def test_weights_made_in_inference_mode_can_be_trained_in_the_copy() -> None:
    with torch.inference_mode():
        model = small_network()
    working_copy(model, Recorder())(X).sum().backward()


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 3, 3))


def of_a_subclass() -> nn.Module:
    class Spread(Tensor):
        pass

    model = small_network()
    model[3].weight = nn.Parameter(torch.zeros(7, 5, 1, 1).as_subclass(Spread))
    model[3].weight.data = model[3].weight.data.as_subclass(Spread)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), r"0.weight has no shape yet \(a lazy module\); call the network once"),
        (lambda: small_network().to("meta"), r"0.weight has no values \(it is on the device meta\); load a checkpoint"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3, dtype=torch.complex64)), r"0.weight is complex \(torch.complex64\); only real networks"),
        (quantized, r"0 \(Conv2d\) is quantized; give the float network that it was made from"),
        (of_a_subclass, r"3.weight is no plain tensor \(Spread: quantized or spread over devices\)"),
    ],
    ids=["lazy", "meta", "complex", "quantized", "subclass"],
)
def test_weights_that_cannot_be_worked_on_are_named(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        working_copy(make(), Recorder())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_modules_are_named() -> None:
    model = small_network().eval()
    with pytest.raises(UsageError, match=r"1 is scripted \(torch.jit\), which fixes its code; give the module it was made from"):
        working_copy(nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.trace(model, X)), Recorder())
    with pytest.raises(UsageError, match="the network is scripted"):
        working_copy(torch.jit.trace(model, X), Recorder())
