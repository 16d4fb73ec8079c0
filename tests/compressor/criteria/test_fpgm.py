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
from support.fakes import Recorder
from support.networks import SHAPE, samples, varied, without_readers


def run(**options: object) -> CalibrationRun:
    return CalibrationRun(**{"source": samples(4, dtype=torch.float64), "input_shape": SHAPE, **options})  # type: ignore[arg-type]


def naive(weight: np.ndarray, ratio: float) -> np.ndarray:
    """Kept filters, as the paper says it: those dropped minimise the sum of distances to all others."""
    filters = len(weight)
    sums = [sum(float(np.sqrt(((weight[i] - weight[j]) ** 2).sum())) for j in range(filters)) for i in range(filters)]
    kept = np.ones(filters, bool)
    kept[np.argsort(sums, kind="stable")[: int(filters * ratio)]] = False
    return kept


def test_the_sums_of_distances_worked_by_hand() -> None:
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]]).view(3, 2, 1, 1)
    assert distances(weight).tolist() == [5 + 4, 5 + 3, 4 + 3]


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.75])
def test_whole_filters_go_as_in_the_paper_without_a_pass_over_the_data(ratio: float) -> None:
    model, progress = varied(), Recorder()
    pruned = prune(model, prune_config(fwp={"criterion": "fpgm", "ratio": ratio}), run(progress=progress))
    assert progress.loops == [], "it needs no data"
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            expected = naive(conv.weight.detach().numpy(), ratio)
            mask = pruned.masks["fwp"].get(name, torch.ones(conv.weight.shape, dtype=torch.bool)).numpy()
            assert not mask[~expected].any(), name
            assert (mask == (expected[:, None] & ~without_readers(name, pruned.masks["fwp"]))[:, :, None, None]).all(), name
    report = count_macs(pruned.model, SHAPE)
    assert report.macs < count_macs(model, SHAPE).macs


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
