"""Every reading of Algorithm 8 against loops written from the listing: scores, softmax, a sample's best, sums over samples, stage 2."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fineprune.calibrate.convolutions import find_convolutions
from fineprune.common.errors import UsageError
from fineprune.compressor.config import FFPConfig, prune_config
from fineprune.compressor.prune import CalibrationRun, prune
from support.fakes import FakeSplit
from support.networks import samples

SHAPE = (3, 6, 5)
RATIO = 0.37


class Net(nn.Module):
    """Two convolutions, the second strided, and no zeros, of which some would go by lot."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, (2, 3), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).mean((2, 3))


def split() -> FakeSplit:
    return samples(9, shape=SHAPE)


def patches(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """[C,P,taps] of one sample x[C,H,W]."""
    unfolded = nn.functional.unfold(x[None], conv.kernel_size, padding=conv.padding, stride=conv.stride)[0]  # type: ignore[arg-type]
    return unfolded.view(len(x), -1, unfolded.shape[1]).transpose(1, 2)


def scores(criterion: str, net: Net, image: Tensor, label: Tensor) -> dict[str, NDArray]:
    """[C,P] by layer, of one sample, in the dense network."""
    x, found = image, {}
    masks, total = {}, None
    for name, conv in (("first", net.first), ("second", net.second)):
        b = patches(x, conv)
        masks[name] = torch.ones(b.shape[:2], requires_grad=True)
        filters = conv.weight.flatten(2)  # [F,C,taps]
        y = torch.einsum("cpt,fct,cp->fp", b, filters, masks[name]) + conv.bias[:, None]  # type: ignore[index]
        height = 6 if name == "first" else 3
        y = y.view(len(filters), height, -1)
        norms = {"l2": b.square().sum(2).sqrt(), "l1": b.abs().sum(2), "apoz": (b != 0).double().sum(2)}
        if criterion in norms:
            found[name] = norms[criterion].detach().numpy()
        x, total = y.tanh(), y
    if criterion == "taylor-top":
        loss = nn.functional.cross_entropy(total.mean((1, 2))[None], label[None])  # type: ignore[union-attr]
        grads = torch.autograd.grad(loss, list(masks.values()))
        found = {name: grad.abs().numpy() for name, grad in zip(masks, grads, strict=True)}
    return found


def best(values: NDArray, ratio: float) -> NDArray:
    """bool: the K = n - round(ratio * n) largest."""
    flat = values.ravel()
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[: flat.size - round(ratio * flat.size)]] = True
    return kept.reshape(values.shape)


def naive(criterion: str, net: Net, *, softmax: bool, within: str, count: str, sample_ratio: float, scope: str) -> dict[str, NDArray]:
    data, counts, sums = split(), dict[str, Any](), dict[str, Any]()
    for image, label in zip(data.images, data.labels, strict=True):
        for name, of in scores(criterion, net, image, label).items():
            s = np.exp(of) / np.exp(of).sum(1, keepdims=True) if softmax else of
            top = best(s, sample_ratio) if within == "layer" else np.stack([best(row, sample_ratio) for row in s])
            counts[name] = counts.get(name, 0) + top
            sums[name] = sums.get(name, 0) + s
    masks = {}
    for name, frequency in counts.items():
        ranked = sums[name] if count == "sum" else frequency + 1e-6 * sums[name]  # ties by the sum
        masks[name] = best(ranked, RATIO) if scope == "layer" else np.stack([best(row, RATIO) for row in ranked])
    return masks


@pytest.mark.parametrize("criterion", ["l2", "l1", "taylor-top"])
def test_masks_are_those_of_the_listing_in_every_reading(criterion: str) -> None:
    net, run = Net(), CalibrationRun(source=split(), input_shape=SHAPE)
    different = set()
    for softmax, within, count, own, scope in product(
        (False, True), ("channel", "layer"), ("top", "sum"), (None, 0.2), ("channel", "layer")
    ):
        if count == "sum" and (own is not None or within == "layer"):
            continue  # no sample's best are counted
        settings: dict[str, Any] = {"softmax": softmax, "within": within, "count": count, "scope": scope}
        config = prune_config("thesis", ffp={"criterion": criterion, "ratio": RATIO, "propagate": "dense", "sample_ratio": own, **settings})
        masks = prune(net, config, run).masks["ffp"]
        expected = naive(criterion, net, sample_ratio=RATIO if own is None else own, **settings)
        for name, mask in expected.items():
            assert (masks[name].flatten(1).numpy() == mask).all(), (name, settings, own)
        different.add(tuple(int(bit) for mask in expected.values() for bit in mask.ravel()))
    assert len(different) > 6, "readings differ"


def test_zeros_are_counted() -> None:
    net, run = Net(), CalibrationRun(source=split(), input_shape=SHAPE)
    config = prune_config("thesis", ffp={"criterion": "apoz", "ratio": RATIO, "propagate": "dense", "count": "sum"})
    reading = {"softmax": False, "within": "channel", "count": "sum", "scope": "channel"}
    expected = naive("apoz", net, sample_ratio=RATIO, **reading)  # type: ignore[arg-type]
    assert (prune(net, config, run).masks["ffp"]["second"].flatten(1).numpy() == expected["second"]).all()


def test_a_sample_s_own_mask_acts_in_every_reading() -> None:
    """Deeper layers see masked inputs: with the whole layer's best taken, the second layer's masks differ from those of the dense pass."""
    net, run = Net(), CalibrationRun(source=split(), input_shape=SHAPE)
    for settings in ({"within": "layer"}, {"softmax": True}, {"count": "sum"}, {"sample_ratio": 0.6}):
        masks = [
            prune(net, prune_config("thesis", ffp={"ratio": RATIO, "propagate": propagate, **settings}), run).masks["ffp"]
            for propagate in ("masked", "dense")
        ]
        assert torch.equal(masks[0]["first"], masks[1]["first"]), settings
        assert not torch.equal(masks[0]["second"], masks[1]["second"]), settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"within": "position"}, "unknown FFP within 'position'; choose one of channel, layer"),
        ({"count": "max"}, "unknown FFP count 'max'; choose one of top, sum"),
        ({"softmax": 1}, "FFP softmax is true or false, got 1"),
        ({"sample_ratio": 20}, r"FFP sample_ratio must be a pruned fraction in [0, 1), got 20; for 20 % give 0.2"),
        (
            {"criterion": "obs", "within": "layer"},
            "FFP within is of methods that rank each sample (apoz, l1, l2, taylor-top), and 'obs' does not; leave it out",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        FFPConfig(**{"criterion": "l2", "scope": "channel", "ratio": RATIO, **settings})
    assert str(error.value).startswith(message)


def test_statistics_of_another_reading_are_refused() -> None:
    net, run = Net(), CalibrationRun(source=split(), input_shape=SHAPE)
    asked, other = (prune_config("thesis", ffp={"ratio": RATIO, "softmax": softmax}) for softmax in (False, True))
    measure = other.ffp.method.measure(other.ffp, find_convolutions(net, SHAPE)[0])
    assert measure is not None
    with pytest.raises(UsageError, match="the frequencies were counted with softmax=True and not False"):
        prune(net, asked, run, statistics={"blocks": run.collect(net, measure)})
