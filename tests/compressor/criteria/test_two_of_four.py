"""Two of every four weights, against the loop of the paper, through every door that a method has."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fineprune.common.errors import UsageError
from fineprune.compressor.config import FWPConfig, prune_config
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.export.exporter import export_onnx
from fineprune.export.parity import check_parity
from support.fakes import Recorder
from support.networks import samples

SHAPE = (7, 6, 5)
"""Seven channels: a whole group of four, and three that are left over."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.plain, self.grouped = nn.Conv2d(7, 8, 3, padding=1), nn.Conv2d(8, 6, (1, 2), groups=2)
            self.depthwise, self.pointwise = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 5, 1)
            self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.plain(x).relu()).relu()
        return self.head(self.pointwise(self.depthwise(x)).relu().mean((2, 3)))


def run(**options: object) -> CalibrationRun:
    return CalibrationRun(**{"source": samples(4, shape=SHAPE), "input_shape": SHAPE, **options})  # type: ignore[arg-type]


def naive(weight: np.ndarray) -> np.ndarray:
    """Kept weights [F,C,kh,kw], one group of four input channels after the other."""
    kept = np.zeros(weight.shape, bool)
    filters, channels, rows, columns = weight.shape
    for f, u, v in np.ndindex(filters, rows, columns):
        for first in range(0, channels, 4):
            group = range(first, min(first + 4, channels))
            for c in sorted(group, key=lambda c: (-abs(weight[f, c, u, v]), c))[:2]:
                kept[f, c, u, v] = True
    return kept


def test_two_of_every_four_input_channels_stay_without_a_pass_over_the_data() -> None:
    model, progress = Net(), Recorder()
    model.plain.weight.data[0, :4, 0, 0] = torch.tensor([1.0, -1.0, 1.0, -2.0])  # two of those that tie go
    masks = prune(model, prune_config(fwp={"criterion": "2:4", "ratio": 0.5}), run(progress=progress)).masks["fwp"]
    assert progress.loops == [], "it needs no data"
    assert set(masks) == {"plain", "grouped", "pointwise"}, "a depthwise filter reads one channel"
    for name, mask in masks.items():
        assert (mask.numpy() == naive(model.get_submodule(name).weight.detach().numpy())).all(), name  # type: ignore[union-attr]
    assert masks["plain"][0, :4, 0, 0].tolist() == [True, False, False, True]
    assert (masks["plain"][:, 4:].sum(1) == 2).all() and (masks["grouped"].sum(1) == 2).all()


def test_a_layer_may_be_spared_and_no_other_ratio_makes_sense() -> None:
    config = prune_config(fwp={"criterion": "2:4", "ratio": 0.5, "per_layer": {"plain": 0.0}})
    assert "plain" not in prune(Net(), config, run()).masks["fwp"]
    for wrong in ({"ratio": 0.3}, {"ratio": 0.5, "per_layer": {"plain": 0.25}}):
        with pytest.raises(UsageError, match=r"the FWP criterion '2:4' drops 0.5 of the weights, not 0\.\d+; give 0.5"):
            FWPConfig(criterion="2:4", scope="layer", **wrong)  # type: ignore[arg-type]


def test_its_masks_are_exported_and_run_in_the_engine(tmp_path: Path) -> None:
    model = prune(Net(), prune_config(fwp={"criterion": "2:4", "ratio": 0.5}), run()).model.eval()
    export_onnx(model, SHAPE, tmp_path / "net.onnx")
    report = check_parity(model, tmp_path / "net.onnx", samples(4, shape=SHAPE).images.numpy(), reference_samples=1, engine=True)
    assert report.passed and report.compares("engine")
