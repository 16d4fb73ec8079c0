"""The Triton kernels: on a GPU as they are, otherwise in Triton's interpreter. Triton comes with the CUDA builds of torch only."""

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from fineprune.ops import masked_conv_torch
from fineprune.ops.geometry import Conv
from support.geometries import KINDS, Geometry, problem
from support.tolerances import FLOAT32_SUMS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDE = Geometry(channels=40, filters=70, padding=(1, 1))


pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")  # Triton's interpreter does it


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not installed (it comes with CUDA builds of torch)")
    if DEVICE == "cpu" and not _arrays_of_one_are_numbers():
        pytest.skip("Triton's interpreter takes arrays of one element for numbers, which NumPy 2.4 refuses; NumPy 2.3 allows it")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    sys.modules.pop("fineprune.ops.masked_conv_triton", None)
    return importlib.import_module("fineprune.ops.masked_conv_triton")


def _arrays_of_one_are_numbers() -> bool:
    try:
        return int(np.ones(1)) == 1
    except TypeError:
        return False


@pytest.mark.parametrize("density", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("geometry", [*KINDS.values(), WIDE], ids=[*KINDS, "wide"])
def test_the_three_products_equal_those_of_torch(kernels: ModuleType, geometry: Geometry, shared: bool, density: float) -> None:
    p = problem(geometry, density=density, seed=0)
    x, w, grad = (torch.from_numpy(v).float().to(DEVICE) for v in (p.x, p.w, p.grad))
    shape = (*(() if shared else (geometry.samples,)), geometry.channels, *geometry.output)
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < density).to(DEVICE)
    conv = Conv(*geometry.where, geometry.groups)
    close = {"rtol": FLOAT32_SUMS[0], "atol": FLOAT32_SUMS[1]}
    torch.testing.assert_close(kernels.forward(x, w, mask, conv), masked_conv_torch.forward(x, w, mask, conv), **close)
    expected = masked_conv_torch.input_grad(grad, w, mask, conv, geometry.size)
    torch.testing.assert_close(kernels.input_grad(grad, w, mask, conv, geometry.size), expected, **close)
    expected = masked_conv_torch.weight_grad(grad, x, mask, conv, geometry.kernel)
    torch.testing.assert_close(kernels.weight_grad(grad, x, mask, conv, geometry.kernel), expected, **close)


def test_the_weight_gradient_adds_up_over_programs(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_SUM_ROWS", 20)
    p = problem(Geometry(samples=3, padding=(1, 1)), density=0.5, seed=0)
    x, grad = (torch.from_numpy(v).float().to(DEVICE) for v in (p.x, p.grad))
    mask = torch.from_numpy(p.mask) if not isinstance(p.mask, torch.Tensor) else p.mask
    conv, close = Conv(padding=(1, 1)), {"rtol": FLOAT32_SUMS[0], "atol": FLOAT32_SUMS[1]}
    expected = masked_conv_torch.weight_grad(grad, x, mask.to(DEVICE), conv, (3, 3))
    torch.testing.assert_close(kernels.weight_grad(grad, x, mask.to(DEVICE), conv, (3, 3)), expected, **close)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_single(kernels: ModuleType, dtype: torch.dtype) -> None:
    p = problem(WIDE, density=0.6, seed=0)
    x, w = (torch.from_numpy(v).float().to(DEVICE) for v in (p.x, p.w))
    mask = (torch.rand(WIDE.channels, *WIDE.output, generator=torch.Generator().manual_seed(1)) < 0.6).to(DEVICE)
    exact = masked_conv_torch.forward(x, w, mask, Conv(*WIDE.where))
    torch.testing.assert_close(kernels.forward(x.to(dtype), w.to(dtype), mask, Conv(*WIDE.where)).float(), exact, rtol=0.05, atol=0.5)
