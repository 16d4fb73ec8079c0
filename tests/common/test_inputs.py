"""Batches of any structure, and the one place where a network is called on them."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fineprune.common import inputs
from fineprune.common.errors import UsageError
from fineprune.common.inputs import Structured

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Boxes:
    corners: Tensor
    kind: str = "boxes"


def structure() -> dict[str, object]:
    return {
        "image": torch.arange(12.0).view(2, 3, 2, 1),
        "others": [Pair(torch.zeros(2), torch.ones(2, 5, dtype=torch.int64)), "a word"],
        "boxes": Boxes(torch.full((2, 4), 3.0)),
    }


def batch() -> Structured:
    return Structured(structure(), 2, lambda model, given: model(given["image"]))


def test_every_tensor_of_a_structure_is_found_by_its_path() -> None:
    names = [name for name, _ in inputs.named(structure())]
    assert names == ["image", "others.0.left", "others.0.right", "boxes.corners"]
    assert [name for name, _ in inputs.named(torch.zeros(1))] == [""]
    assert [tuple(one.shape) for one in inputs.floats(structure())] == [(2, 3, 2, 1), (2,), (2, 4)]


def test_a_structure_keeps_its_form_where_its_tensors_change() -> None:
    changed = inputs.mapped(structure(), lambda tensor: tensor + 1)
    assert isinstance(changed["others"][0], Pair) and changed["others"][1] == "a word" and changed["boxes"].kind == "boxes"
    assert all(torch.equal(one, other + 1) for one, other in zip(inputs.tensors(changed), inputs.tensors(structure()), strict=True))
    told = "{image: float32 2x3x2x1, others: ((float32 2, int64 2x5), str), boxes: {corners: float32 2x4, kind: str}}"
    assert inputs.told(batch()) == told and inputs.told((3, 4, 5)) == [3, 4, 5]
    assert inputs.written(batch()).startswith("2 samples, {image") and inputs.written(torch.zeros(2, 3, 4)) == "2 images of 3x4"


def test_a_batch_is_copied_followed_and_laid_out() -> None:
    given = batch()
    assert len(given) == 2 and inputs.numbers(given) == 6 + 1 + 5 + 4 and inputs.numbers_of((3, 4)) == 12
    copy = given.clone()
    copy.value["image"].zero_()
    assert bool(given.value["image"].any()) and inputs.zeros(given, nn.Identity()).value["image"] is not given.value["image"]  # type: ignore[union-attr]
    followed = inputs.tracked(given)
    assert isinstance(followed, Structured)
    assert [tensor.requires_grad for tensor in inputs.tensors(followed.value)] == [True, True, False, True]
    assert not inputs.tracked(torch.zeros(2)).is_leaf and not torch.zeros(2).requires_grad  # type: ignore[union-attr]
    laid = inputs.laid_out(given, torch.channels_last)
    assert isinstance(laid, Structured) and laid.value["image"].is_contiguous(memory_format=torch.channels_last)


def test_the_call_travels_with_the_inputs() -> None:
    model = nn.Conv2d(3, 2, 1)
    image = structure()["image"]
    assert torch.equal(inputs.answer(model, batch()), model(image))
    assert torch.equal(inputs.answer(model, image), model(image))  # type: ignore[arg-type]
    assert tuple(inputs.answer(model, inputs.noise((3, 4, 5), model)).shape) == (1, 2, 4, 5)
    with pytest.raises(UsageError, match="called on one tensor alone, and the samples have a forward of their own"):
        inputs.one(batch())
