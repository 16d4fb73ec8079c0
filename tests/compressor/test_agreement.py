"""Before anything is pruned: masks that drop nothing and collectors at work leave the network's outputs as they are."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate.convolutions import find_convolutions
from fineprune.common.errors import RunError
from fineprune.compressor.agreement import check_agreement
from fineprune.compressor.config import prune_config
from support.fakes import Recorder
from support.networks import SHAPE, samples, varied


class Asking(nn.Module):
    """A forward that does something else where its convolution is not the one it was built with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3)
        self.norm = nn.BatchNorm2d(4, track_running_stats=kind != "batch statistics")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        plain = {
            "type": lambda: type(self.first) is nn.Conv2d,
            "name": lambda: self.first.__class__.__name__ == "Conv2d",
            "gradient": lambda: not torch.is_grad_enabled(),
            "input": lambda: not x.requires_grad,
        }.get(self.kind)
        if plain is not None and not plain():
            y = 2 * y
        if self.kind == "weights":
            y = y + F.conv2d(x, self.first.weight, padding=1)
        return self.second(F.relu(y)).mean((2, 3))


def check(model: nn.Module, preset: str = "taylor", *, exclude: tuple[str, ...] = ()) -> list[str]:
    """The lines of the log."""
    progress = Recorder()
    config = prune_config(preset, ffp={"ratio": 0.3, "exclude": exclude}, fwp={"ratio": 0.3, "exclude": exclude})
    images = samples(2, dtype=next(model.parameters()).dtype).images
    check_agreement(model, find_convolutions(model, SHAPE)[0], config, images, progress)
    return progress.lines


@pytest.mark.parametrize("preset", ["taylor", "thesis"])
def test_networks_that_bear_masks_pass_and_stay_as_they_are(preset: str) -> None:
    model = varied().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert check(model, preset) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and "forward" not in vars(module) for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "type",
            r"masks that drop nothing change the network's outputs \(by .*%.*\) in first: .*the layer's type .* --exclude first .in Python",
        ),
        (
            "name",
            r"masks that drop nothing change the network's outputs \(by .*%.*\) in first: .*the layer's type .* --exclude first .in Python",
        ),
        (
            "weights",
            r"weights that masks drop still act on .* in first: its code uses them outside the layer, too; .* --exclude first .in Python",
        ),
        ("gradient", r"outputs differ by .*% of the largest where they are measured: .* under gradients .*, or use --preset thesis"),
        ("input", r"outputs differ by .*% of the largest where they are measured: .* under gradients .*, or use --preset thesis"),
    ],
)
def test_networks_that_compute_something_else_are_refused_with_the_layer_and_a_remedy(kind: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        check(Asking(kind))
    assert check(Asking(kind), "thesis" if "thesis" in message else "taylor", exclude=("first",) if "exclude" in message else ()) == []


def test_networks_that_read_the_order_in_memory_pass() -> None:
    class Viewing(Asking):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y.view(len(y), -1).view_as(y)).mean((2, 3))

    assert check(Viewing("")) == check(Viewing(""), "thesis") == []


def test_batch_statistics_get_a_warning() -> None:
    (line,) = check(Asking("batch statistics"), "thesis")
    assert line.startswith("warning: a sample's output depends on the others in its batch, since norm (BatchNorm2d) mixes them; scores, ")


def test_random_outputs_are_refused_with_their_cause() -> None:
    model = varied()
    model.relu = nn.RReLU()
    model.relu.train = lambda mode=True: model.relu  # type: ignore[method-assign]
    with pytest.raises(
        RunError, match=r"give different outputs in eval mode, since relu \(RReLU\) draws random numbers; nothing can be measured"
    ):
        check(model)
