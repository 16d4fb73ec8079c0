"""The network inside what training code wraps around it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.common.wrappers import check_network, unwrapped, without_wrappers
from support.fakes import Recorder, small_network


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


AveragedModel = torch.optim.swa_utils.AveragedModel
WRAPPERS = {"DataParallel": nn.DataParallel, "torch.compile": compiled, "AveragedModel": AveragedModel}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_network_is_taken_out_and_named(name: str) -> None:
    model, log = small_network(), Recorder()
    inner = unwrapped(WRAPPERS[name](model), log)
    assert type(inner) is nn.Sequential and list(inner.state_dict()) == list(model.state_dict())
    assert name == "AveragedModel" or inner is model
    assert log.lines == [f"the network is taken out of {name}, which the result does not have"]


def test_wrappers_around_wrappers_and_none() -> None:
    model, log = small_network(), Recorder()
    assert unwrapped(compiled(nn.DataParallel(model)), log) is model and "torch.compile and DataParallel" in log.lines[0]
    assert unwrapped(model, log) is without_wrappers(model, log) is model and len(log.lines) == 1


class Holder(nn.Module):
    """A user's own module of one child: its forward does more than call it, so it is no wrapper."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.module = wrap(small_network())

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x - 1)


def test_a_users_own_module_stays() -> None:
    model = Holder()
    assert without_wrappers(model) is model


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, lambda model: compiled(nn.DataParallel(model))])
def test_wrappers_inside_are_left_out_of_a_copy(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, log = Holder(wrap).eval(), Recorder()
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    copied = without_wrappers(model, log)
    assert torch.equal(copied(x), model(x))
    assert "module.0.weight" in copied.state_dict() and "module.0.weight" not in model.state_dict()
    assert log.lines[0].startswith("the network is copied without") and "at module" in log.lines[0]


def test_a_network_compiled_in_place_is_copied() -> None:
    model = small_network().eval()
    model[0].compile(backend="eager")
    assert without_wrappers(model)[0]._compiled_call_impl is None  # type: ignore[index,union-attr]
    assert model[0]._compiled_call_impl is not None


class Sharded(nn.Sequential):
    __module__ = "torch.distributed.fsdp._fully_shard._fully_shard"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small_network().state_dict(), "the network is a OrderedDict, not a torch.nn.Module; give the module itself"),
        (nn.ModuleList(), "ModuleList has no forward pass"),
        (nn.Sequential(Sharded()), "Sequential holds its weights in pieces on several processes"),
    ],
)
def test_what_cannot_be_worked_on_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_network(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the network is a TorchScript module.*give the torch.nn.Module that it was made from"):
        check_network(torch.jit.script(small_network()))
