"""Networks whose answers vary are found, and what makes them vary is named."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate.steadiness import Unsteady, answers, difference, unsteadiness
from fineprune.common.errors import RunError
from fineprune.common.inputs import Structured
from support.networks import samples, varied

IMAGES = samples(2).images
NUMBERS = np.random.default_rng(0)


class Changing(nn.Module):
    """A network that computes `change(self, x)` between two convolutions."""

    def __init__(self, change) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm2d(4, track_running_stats=False)
        self.change, self.calls = change, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.change(self, self.first(x))).mean((2, 3))


def count(model: Changing, x: Tensor) -> Tensor:
    model.calls += 1
    return x * model.calls


RANDOM = "draws random numbers"
STATE = "draws numbers that torch.manual_seed does not fix, or keeps something from call to call"


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (lambda model, x: F.dropout(x), "the forward of Changing, before second,", RANDOM),
        (lambda model, x: x + torch.randn_like(x), "the forward of Changing, before second,", RANDOM),
        (lambda model, x: model.drop.train()(x), "drop (Dropout)", RANDOM),
        (lambda model, x: x * NUMBERS.random(), "the forward of Changing, before second,", STATE),
        (count, "the forward of Changing, before second,", STATE),
    ],
    ids=["F.dropout", "noise", "dropout in training mode", "numpy", "a counter"],
)
def test_answers_that_vary_from_call_to_call(change, where: str, what: str) -> None:
    found = unsteadiness(Changing(change), IMAGES, 1e-4)
    assert found == Unsteady(f"two equal calls give different outputs in eval mode, since {where} {what}", with_batch=False)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda model, x: model.norm(x), "norm (BatchNorm2d)"),
        (lambda model, x: x - x.mean(0), "the forward of Changing, before second,"),
        (lambda model, x: x / x.abs().max(), "the forward of Changing, before second,"),
    ],
    ids=["BatchNorm without statistics", "centred", "scaled by the largest"],
)
def test_answers_that_vary_with_the_batch(change, where: str) -> None:
    found = unsteadiness(Changing(change), IMAGES, 1e-4)
    assert found == Unsteady(f"a sample's output depends on the others in its batch, since {where} mixes them", with_batch=True)


@pytest.mark.parametrize("model", [varied(dtype=torch.float32), Changing(lambda model, x: model.drop(x))])
def test_steady_networks_are_left_as_they_were(model: nn.Module) -> None:
    before, images = torch.get_rng_state(), IMAGES.clone()
    assert unsteadiness(model.train(), images, 1e-4) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, IMAGES)
    assert all(module.training and not module._forward_hooks for module in model.modules())


class Told(nn.Module):
    """A network that answers in words."""

    def forward(self, x: Tensor) -> str:
        return "scores"


def called(images: Tensor) -> Structured:
    """The images in a dict, of which the network is called on one, and its scores come back in a dict, too."""
    return Structured({"images": (images, "a caption")}, len(images), lambda model, given: {"scores": model(given["images"][0])})


def test_structured_inputs_and_outputs_are_told_apart_alike() -> None:
    assert unsteadiness(Changing(lambda model, x: model.drop(x)), called(IMAGES), 1e-4, called(IMAGES[:1])) is None
    mixing = unsteadiness(Changing(lambda model, x: x / x.abs().max()), called(IMAGES), 1e-4, called(IMAGES[:1]))
    assert mixing is not None and mixing.with_batch and "before second, mixes them" in mixing.cause
    random = unsteadiness(Changing(lambda model, x: F.dropout(x)), called(IMAGES), 1e-4, called(IMAGES[:1]))
    assert random is not None and not random.with_batch


def test_a_batch_that_fails_is_named() -> None:
    with pytest.raises(
        RunError, match=r"takes one sample but not a batch of 2: shape '\[1, 4, 5, 3\]' is invalid .*; let its forward take any"
    ):
        unsteadiness(Changing(lambda model, x: x.view(1, 4, 5, 3)), IMAGES, 1e-4)
    with pytest.raises(RunError, match="the network returns str, in which no tensor of numbers is"):
        answers(Told(), IMAGES)
    assert [tuple(one.shape) for one in answers(nn.LSTM(3, 3), torch.zeros(2, 3))] == [(2, 3), (1, 3), (1, 3)]  # any structure


def test_differences_are_fractions_of_the_largest_value() -> None:
    one = torch.tensor([4.0, -8.0])
    assert difference([one], [torch.tensor([4.0, -7.0])]) == 1 / 8
    assert difference([one], [torch.tensor([4.0, torch.nan])]) == 1
    assert difference([one], [torch.zeros(3)]) == difference([one], []) == float("inf")
    assert difference([one / 0], [one / 0]) == 0
    assert difference([one, one / 1000], [one, torch.tensor([4.0, -7.0]) / 1000]) == pytest.approx(1 / 8)  # of each by itself
