"""Filters by their distance from the geometric median, against the loop of the paper, through every door that a method has."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fineprune.common.errors import UsageError
from fineprune.compressor.config import FWPConfig, prune_config
from fineprune.compressor.criteria.fpgm import distances
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.export.exporter import export_onnx
from fineprune.export.parity import check_parity
from support.filters import without_smallest
from support.networks import SHAPE, samples, varied


def run() -> CalibrationRun:
    return CalibrationRun(source=samples(4, dtype=torch.float64), input_shape=SHAPE)


def sums(weight: np.ndarray) -> list[float]:
    """As the paper says it: of the distances from all others, which those that go minimise."""
    return [sum(float(np.sqrt(((one - other) ** 2).sum())) for other in weight) for one in weight]


def test_the_sums_of_distances_worked_by_hand() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]]).view(3, 2, 1, 1)
    assert distances(weight).tolist() == [5 + 4, 5 + 3, 4 + 3]


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.75])
def test_whole_filters_go_as_in_the_paper_without_a_pass_over_the_data(ratio: float) -> None:
    pruned = without_smallest("fpgm", ratio, sums)
    assert count_macs(pruned.model, SHAPE).macs < count_macs(varied(), SHAPE).macs


class Classifier(nn.Module):
    """Its classes are filters."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.classes = nn.Conv2d(3, 8, 3, dtype=torch.float64), nn.Conv2d(8, 3, 1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classes(self.body(x).relu()).mean((2, 3))


def test_no_class_is_dropped() -> None:
    pruned = prune(Classifier(), prune_config(fwp={"criterion": "fpgm", "ratio": 0.5}), run())
    masks = pruned.masks["fwp"]
    assert masks.keys() == {"body", "classes"}
    assert torch.equal(masks["classes"], masks["body"].any((1, 2, 3)).view(1, 8, 1, 1).expand(3, -1, -1, -1)), "no class, what it reads"


def test_layers_do_not_share_a_list_and_taps_are_not_shared() -> None:
    with pytest.raises(UsageError, match=r"FWP scope 'global' needs the criterion .*, got 'fpgm': its layers do not compare"):
        FWPConfig(criterion="fpgm", scope="global", ratio=0.4)
    with pytest.raises(UsageError, match="the FWP criterion 'fpgm' ranks filters in scope 'layer', not 'kernel'"):
        FWPConfig(criterion="fpgm", scope="kernel", ratio=0.4)
    with pytest.raises(UsageError, match="FWP share='group' is of taps, and 'fpgm' ranks filters; leave it out"):
        FWPConfig(criterion="fpgm", scope="layer", share="group", ratio=0.4)


def test_its_masks_are_exported_and_run_in_the_engine(tmp_path: Path) -> None:
    model = prune(varied(), prune_config(fwp={"criterion": "fpgm", "ratio": 0.4}, ffp={"ratio": 0.15}), run()).model.float().eval()
    export_onnx(model, SHAPE, tmp_path / "net.onnx")
    report = check_parity(model, tmp_path / "net.onnx", samples(4).images.numpy(), reference_samples=1, engine=True)
    assert report.passed and report.compares("engine")
