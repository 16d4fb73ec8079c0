"""Products that are no layer: counted as they are written, or named as uncounted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.compressor.layers import MaskedConv2d
from fineprune.compressor.macs import FUNCTIONAL, count_macs


class Product(nn.Module):
    """f(x, parameters...), of parameters of the shapes given."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.weights = function, nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


COUNTED = {
    "x @ v": (Product(lambda x, v: x @ v, (7,)), (7,), 7),
    "x @ v of a batch": (Product(lambda x, v: x @ v, (7,)), (2, 3, 7), 2 * 3 * 7),
    "addmv": (Product(lambda x, b, w: torch.addmv(b, w, x[0]), (5,), (5, 7)), (7,), 5 * 7),
    "dot": (Product(lambda x, v: torch.dot(x[0], v), (7,)), (7,), 7),
    "vdot": (Product(lambda x, v: torch.vdot(x[0], v), (7,)), (7,), 7),
    "inner": (Product(torch.inner, (5, 7)), (7,), 5 * 7),
    "addbmm": (Product(lambda x, w: torch.addbmm(torch.zeros(2, 5), x[0], w), (3, 7, 5)), (3, 2, 7), 3 * 2 * 7 * 5),
    "baddbmm": (Product(lambda x, w: torch.baddbmm(torch.zeros(3, 2, 5), x[0], w), (3, 7, 5)), (3, 2, 7), 3 * 2 * 7 * 5),
    "einsum": (Product(lambda x, w: torch.einsum("ni,oi->no", x, w), (5, 7)), (7,), 5 * 7),
    "tensordot": (Product(lambda x, w: torch.tensordot(x, w, dims=1), (7, 5)), (7,), 7 * 5),
    "multi_dot": (Product(lambda x, v, w: torch.linalg.multi_dot([x, v, w]), (7, 3), (3, 2)), (7,), 7 * 3 + 3 * 2),
    "F.linear of a vector": (Product(lambda x, w, b: F.linear(x[0], w, b), (5, 7), (5,)), (7,), 5 * 7),
    "F.bilinear": (Product(lambda x, w: F.bilinear(x, x[:, :2], w), (5, 7, 2)), (7,), 5 * 7 * 2),
    "cdist": (Product(torch.cdist, (5, 7)), (3, 7), 3 * 5 * 7),
    "cdist of many": (Product(torch.cdist, (30, 7)), (40, 7), 40 * 30 * 7),
    "attention": (Product(lambda x: F.scaled_dot_product_attention(x, x, x)), (2, 3, 7), 2 * 2 * 3 * 3 * 7),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_products_are_counted(kind: str) -> None:
    model, shape, macs = COUNTED[kind]
    report = count_macs(model, shape)
    assert (report.macs, report.uncounted) == (macs, ())


def test_a_bilinear_layer_is_counted() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.form = nn.Bilinear(3, 2, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.form(x, x[:, :2])

    (row,) = count_macs(Pair(), (3,)).layers
    assert (row.name, row.macs) == (FUNCTIONAL, 5 * 3 * 2)


@torch.library.custom_op("fineprune_test::product", mutates_args=())
def product(x: Tensor) -> Tensor:
    return x @ x.T


UNCOUNTED = {
    "_fft_r2c": Product(lambda x: torch.fft.rfft2(x).abs()),
    "_linalg_det": Product(torch.linalg.det),
    "fineprune_test.product": Product(lambda x: product(x[0])),
}


@pytest.mark.parametrize("operator", UNCOUNTED)
def test_products_without_a_formula_are_named(operator: str) -> None:
    named = nn.Sequential(nn.Identity(), UNCOUNTED[operator])
    assert count_macs(named, (3, 3)).uncounted == (f"1: {operator}",)


def test_what_only_looks_like_a_product_is_not_named() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Softmax(-1), nn.GroupNorm(1, 3))
    assert count_macs(model, (3, 8, 8)).uncounted == ()


ZEROED = {
    "convolution": (nn.Conv2d(3, 4, 3, padding=1), (3, 5, 7), 35),
    "grouped": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 5, 7), 35),
    "transposed": (nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 5, 7), 35),
    "1-d": (nn.Conv1d(3, 4, 3), (3, 9), 7),
    "linear": (nn.Linear(7, 5), (3, 7), 3),
}


@pytest.mark.parametrize("kind", ZEROED)
def test_weights_that_are_zero_already_are_counted_apart(kind: str) -> None:
    layer, shape, times = ZEROED[kind]
    with torch.no_grad():
        layer.weight[1] = 0
    report = count_macs(nn.Sequential(layer), shape)
    assert report.macs_zero == report.to_json()["macs_zero"] == layer.weight[1].numel() * times
    assert report.macs == report.macs_dense


def test_zeros_that_a_mask_drops_are_not_counted_again() -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1)
    fwp, ffp = torch.ones(4, 2, 3, 3, dtype=torch.bool), torch.ones(2, 5, 7, dtype=torch.bool)
    fwp[0], ffp[1, :, 3:] = False, False
    with torch.no_grad():
        conv.weight[:2] = 0
    report = count_macs(nn.Sequential(MaskedConv2d.wrap(conv, ffp_mask=ffp, fwp_mask=fwp)), (2, 5, 7))
    assert report.macs_zero == 9 * (35 + 15), "of filter 1: filter 0 is dropped"
    assert report.macs == 3 * report.macs_zero
