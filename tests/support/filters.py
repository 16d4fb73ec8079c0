"""What all methods that drop whole filters do, each by its own sums."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fineprune.compressor.config import prune_config
from fineprune.compressor.prune import CalibrationRun, Pruned, prune
from support.fakes import Recorder
from support.networks import SHAPE, samples, varied, without_readers


def kept_filters(sums: Sequence[float], ratio: float) -> NDArray[np.bool_]:
    """bool [F]: the int(F * ratio) filters of the smallest sums go."""
    kept = np.ones(len(sums), bool)
    kept[np.argsort(sums, kind="stable")[: int(len(sums) * ratio)]] = False
    return kept


def without_smallest(method: str, ratio: float, sums: Callable[[NDArray], Sequence[float]]) -> Pruned:
    """`varied` by `method`, without a pass: the filters of the smallest `sums` of weight[F,C,kh,kw] go, and what reads them alone."""
    model, progress = varied(), Recorder()
    run = CalibrationRun(source=samples(4, dtype=torch.float64), input_shape=SHAPE, progress=progress)
    pruned = prune(model, prune_config(fwp={"criterion": method, "ratio": ratio}), run)
    assert progress.loops == [], "it needs no data"
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            expected = kept_filters(sums(conv.weight.detach().numpy()), ratio)
            mask = pruned.masks["fwp"].get(name, torch.ones(conv.weight.shape, dtype=torch.bool)).numpy()
            assert not mask[~expected].any(), name
            assert (mask == (expected[:, None] & ~without_readers(name, pruned.masks["fwp"]))[:, :, None, None]).all(), name
    return pruned
