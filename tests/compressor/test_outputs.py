"""Which convolutions are a network's outputs: found by what is computed, whatever the layers are called."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.compressor.config import prune_config
from fineprune.compressor.outputs import output_layers
from fineprune.compressor.prune import CalibrationRun, prune
from support.fakes import FakeSplit, Recorder


class Net(nn.Module):
    """Two convolutions, and `end(head(x), x)` of the second one's output and the features."""

    def __init__(self, end: Callable[[Tensor, Tensor, nn.Module], Tensor], last: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.last, self.end = last or nn.Identity(), end

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).relu_()
        return self.end(self.head(features), features, self.last)


def pooled(y: Tensor) -> Tensor:
    return y.mean((2, 3))


KINDS = {
    "pooled": (lambda y, x, last: pooled(y), None, {"head"}),
    "activated, normalised, flattened": (lambda y, x, last: last(y).relu().amax((2, 3)).log_softmax(1), nn.BatchNorm2d(6), {"head"}),
    "enlarged": (lambda y, x, last: pooled(nn.functional.interpolate(y, scale_factor=2, mode="bilinear")), None, {"head"}),
    "sum of two": (lambda y, x, last: pooled(y + x), None, {"head", "body"}),
    "linear": (lambda y, x, last: last(pooled(y)), nn.Linear(6, 3), set()),
    "matrix and vector": (lambda y, x, last: pooled(y) @ last.weight[0], nn.Linear(6, 3), set()),
    "bilinear": (lambda y, x, last: last(pooled(y), pooled(y)), nn.Bilinear(6, 6, 3), set()),
    "detached": (lambda y, x, last: pooled(y).detach(), None, set()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_whose_filters_are_outputs(kind: str) -> None:
    end, last, expected = KINDS[kind]
    model = Net(end, last).requires_grad_(False)
    assert output_layers(model, (3, 5, 7), ["body", "head"]) == expected
    assert not any(module._forward_hooks for module in model.modules())


def test_classes_that_no_sample_shows_stay_connected() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net(lambda y, x, last: pooled(y) * 9)
        nn.init.constant_(model.head.bias[3:], -9.0)  # type: ignore[index, arg-type]
        split = FakeSplit(torch.randn(9, 3, 5, 7), torch.arange(9) % 3)
    run = CalibrationRun(source=split, input_shape=(3, 5, 7), config=CalibrationConfig(), progress=Recorder())
    pruned = prune(model, prune_config("taylor", ratio=0.8, fwp={"scope": "global"}), run)
    assert pruned.masks["fwp"]["head"].flatten(1).any(1).all()


def test_a_layer_that_is_cut_off_is_named() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, split = Net(lambda y, x, last: pooled(y)), FakeSplit(torch.randn(4, 3, 5, 7), torch.arange(4) % 3)
    nn.init.zeros_(model.body.weight)
    nn.init.ones_(model.body.bias)  # type: ignore[arg-type]
    said: list[list[str]] = []
    for floor in (0.0, 0.05):
        progress = Recorder()
        run = CalibrationRun(source=split, input_shape=(3, 5, 7), config=CalibrationConfig(), progress=progress)
        prune(model, prune_config("taylor", fwp={"ratio": 0.95, "floor": floor}), run)
        said.append([line for line in progress.lines if line.startswith("warning")])
    assert said == [["warning: nothing of body is kept, so that its output is constant; give a floor above 0 or exclude the layer"], []]
