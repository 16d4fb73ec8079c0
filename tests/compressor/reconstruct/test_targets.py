"""Targets fit the memory, and are as many as asked for, also where maps are not one for each image."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate import moments
from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.processes import joined
from fineprune.compressor.attention import split
from fineprune.compressor.bake import bake
from fineprune.compressor.prune import CalibrationRun
from fineprune.compressor.reconstruct.layers import outputs_of, refittable
from fineprune.compressor.reconstruct.stream import Stream
from fineprune.compressor.reconstruct.targets import Targets
from support.networks import samples

IMAGES, TOKENS = 24, 35


class Network(nn.Module):
    """Tokens of an image are one map, 35 maps of a batch (in torch's attention), or seven windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 4, 1), nn.MultiheadAttention(4, 2, batch_first=True)
        self.windows, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        return self.head(x + F.relu(self.windows(x.reshape(-1, 5, 4))).reshape(x.shape))


def made(columns: int, memory: float) -> tuple[Targets, list[str]]:
    dense = split(Network().eval())
    names = ["attention.in_proj", "attention.out_proj", "windows", "head"]
    masks = {name: torch.rand(12 if "in_proj" in name else 4, 4, 1, 1, generator=torch.Generator().manual_seed(0)) < 0.5 for name in names}
    run = CalibrationRun(source=samples(IMAGES), input_shape=(3, 7, 5), config=CalibrationConfig())
    with joined() as group:
        stream = Stream(run, IMAGES, group)
    order, _ = refittable(bake(dense, {"fwp": masks}), outputs_of(dense, stream.few(), names))
    return Targets(dense, order, stream, columns, memory), [shared.name for shared in order]


def test_what_is_kept_fits_the_memory() -> None:
    memory = 4 * 12 * IMAGES * TOKENS
    targets, names = made(64, memory)
    assert names == ["attention.in_proj", "attention.out_proj", "windows", "head"]
    for place in range(len(names)):
        targets.of(place)
        kept = [y for of_layer in targets._found.values() for calls in of_layer.values() for _, y in calls]
        assert sum(4 * y.numel() for y in kept) <= memory
    assert set(targets._found) == {1, 2, 3}, "three layers of 4 filters take what one of 12 does"


@pytest.mark.parametrize("columns", [1, 30])
def test_columns_are_those_asked_for(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_FEW", 1)
    targets, names = made(columns, 1e9)
    for place, name in enumerate(names):
        [[(_, y)]] = targets.of(place).values()
        at_least = columns * 4
        assert at_least <= y.shape[-1] <= IMAGES * TOKENS, name
        if name != "attention.out_proj":  # each of its maps is one position
            assert y.shape[-1] < max(2 * at_least, 8 * IMAGES), name
