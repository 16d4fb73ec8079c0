"""Filters of smallest weights, against the loop of the paper."""

import numpy as np
import pytest
import torch
from torch import nn

from fineprune.compressor.config import prune_config
from fineprune.compressor.prune import CalibrationRun, prune
from support.fakes import Recorder
from support.networks import SHAPE, samples, varied, without_readers


def naive(weight: np.ndarray, ratio: float) -> np.ndarray:
    """Kept filters: the m of smallest sum of absolute kernel weights go."""
    sums = [sum(abs(float(w)) for w in filter.ravel()) for filter in weight]
    kept = np.ones(len(weight), bool)
    kept[np.argsort(sums, kind="stable")[: int(len(weight) * ratio)]] = False
    return kept


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.75])
def test_whole_filters_go_as_in_the_paper_without_a_pass_over_the_data(ratio: float) -> None:
    model, progress = varied(), Recorder()
    run = CalibrationRun(source=samples(4, dtype=torch.float64), input_shape=SHAPE, progress=progress)
    pruned = prune(model, prune_config(fwp={"criterion": "l1-filters", "ratio": ratio}), run)
    assert progress.loops == [], "it needs no data"
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            expected = naive(conv.weight.detach().numpy(), ratio)
            mask = pruned.masks["fwp"].get(name, torch.ones(conv.weight.shape, dtype=torch.bool)).numpy()
            assert not mask[~expected].any(), name
            assert (mask == (expected[:, None] & ~without_readers(name, pruned.masks["fwp"]))[:, :, None, None]).all(), name
