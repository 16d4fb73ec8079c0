"""Networks on eight-bit grids compute in integers: the same as a loop over int64, bit for bit, and as ONNX Runtime where that is exact."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fineprune.export.engine import Session
from fineprune.export.engine.ir.network import Candidate
from fineprune.export.engine.ops.quads import USABLE, QuadConv
from fineprune.export.engine.passes import tune
from fineprune.ops.simd import quads
from support.grids import File, Grid, conv_sums, requantized
from support.onnx_comparison import in_onnxruntime

X, Y = Grid(0.02, 114), Grid(0.11, 0)


def kernels(session: Session, x: np.ndarray) -> list[str]:
    return [record.kernel for record in session.profile(x, repeats=1)]


SHAPES: list[tuple[Any, ...]] = [
    # channels, filters, height, width, kernel, strides, pads, dilations, groups
    (3, 8, 9, 11, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (16, 6, 8, 8, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    (8, 12, 7, 40, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    (5, 4, 12, 12, (5, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (8, 8, 13, 9, (3, 3), (1, 2), (2, 0, 1, 3), (2, 1), 2),
    (6, 6, 10, 10, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6),
    (11, 11, 9, 20, (5, 3), (2, 1), (2, 1, 2, 1), (1, 2), 11),
    (4, 9, 17, 17, (7, 7), (3, 3), (3, 2, 3, 3), (1, 1), 1),
    (12, 10, 1, 1, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]


STRIDED: list[tuple[Any, ...]] = [
    # every second column, which only the kernel of depthwise layers reads by itself
    (6, 6, 9, 11, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 6),
    (5, 5, 20, 41, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 5),
    (9, 9, 8, 70, (3, 2), (1, 2), (0, 1, 2, 0), (1, 3), 9),
    (4, 4, 16, 5, (3, 3), (3, 2), (1, 1, 1, 1), (2, 1), 4),
    (8, 8, 33, 3, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 8),
]
UNMASKED = [name for name in USABLE if name != "quad_blocks"]
RUNS = [(name, shape) for name in UNMASKED for shape in SHAPES if name != "quad_depthwise" or shape[0] == shape[1] == shape[-1]]
RUNS += [("quad_depthwise", shape) for shape in STRIDED]


@pytest.mark.parametrize(("name", "shape"), RUNS, ids=str)
@pytest.mark.parametrize("largest", [64, 128], ids=["fits", "saturates"])
def test_convolutions(name: str, shape: tuple[Any, ...], largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    C, F, H, W, kernel, strides, pads, dilations, groups = shape
    monkeypatch.setenv("FINEPRUNE_PLANS", "anew")
    monkeypatch.setattr(QuadConv, "candidates", [Candidate(kernel=name, layout="NCHW", any_input=False, seconds=0.0)])
    random = np.random.default_rng(C + F)
    weights = random.integers(-largest, largest, (F, C // groups, *kernel)).astype(np.int8)
    weights[random.random(weights.shape) < 0.5] = 0
    scales, bias = random.uniform(0.001, 0.01, F).astype(np.float32), random.integers(-2000, 2000, F)
    file = File((C, H, W))
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": groups}
    out = file.layer("Conv", file.on_grid("x", X), "y", weights, scales, bias, X, **attributes)
    content = file.model(file.on_grid(out, Y))
    x = (random.standard_normal((2, C, H, W)) * 3).astype(np.float32)
    sums = conv_sums(X.integers(x), X.zero, weights, bias, strides, pads, dilations, groups)
    factors = np.float32(X.scale) * scales / np.float32(Y.scale)
    wanted = (requantized(sums, factors, Y.zero) - Y.zero).astype(np.float32) * np.float32(Y.scale)
    with Session(content, fallback=False) as session:
        assert name in kernels(session, x)
        assert np.array_equal(session.run(None, {"x": x})[0], wanted)
    if largest == 64:
        assert np.array_equal(in_onnxruntime(content, x)[0], wanted)


def block(zero: int, first: bool, size: tuple[int, int] = (10, 12)) -> bytes:
    """A residual block that ends in a mean and a linear layer; `first`: the convolution is the first operand of the sum."""
    random = np.random.default_rng(zero)
    file, middle, inner, total, mean = File((6, *size)), Grid(0.05, 0), Grid(0.07, zero), Grid(0.09, 0), Grid(0.02, 0)
    x = file.on_grid("x", X)

    def conv(source: str, name: str, C: int, grid: Grid, F: int = 8, group: int = 1) -> str:
        weights = random.integers(-64, 65, (F, C // group, 3, 3)).astype(np.int8)
        scales = random.uniform(0.0005, 0.002, F) * group
        return file.layer("Conv", source, name, weights, scales, random.integers(-500, 500, F), grid, pads=(1, 1, 1, 1), group=group)

    a = file.on_grid(file.node("Relu", [conv(x, "a", 6, X)], "ar"), middle)
    own = file.on_grid(file.node("Relu", [conv(a, "own", 8, middle, group=8)], "ownr"), middle)
    b = file.on_grid(conv(own, "b", 8, middle), inner)
    pooled = file.on_grid(file.node("MaxPool", [a], "p", kernel_shape=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1)), middle)
    joined = file.on_grid(file.node("Add", [b, pooled] if first else [pooled, b], "s"), total)
    wide = file.on_grid(file.node("Concat", [joined, joined], "c", axis=1), total)
    strided = file.on_grid(file.node("MaxPool", [wide], "m", kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)), total)
    averaged = file.on_grid(file.node("GlobalAveragePool", [strided], "g"), mean)
    flat = file.node("Flatten", [averaged], "f")
    weights = random.integers(-64, 65, (5, 16)).astype(np.int8)
    out = file.layer("Gemm", flat, "y", weights, random.uniform(0.001, 0.01, 5), random.integers(-99, 99, 5), mean, transB=1)
    return file.model(out)


@pytest.mark.parametrize("first", [True, False], ids=["conv + r", "r + conv"])
@pytest.mark.parametrize("zero", [0, 97])
def test_a_block_is_integers_throughout(zero: int, first: bool) -> None:
    content = block(zero, first)
    x = np.random.default_rng(1).standard_normal((3, 6, 10, 12), np.float32)
    with Session(content, fallback=False) as session:
        found = set(kernels(session, x))
        assert {"quad_depthwise", "quad_pool", "quad_mean", "quantize"} <= found
        assert not found & {"map", "pool", "mean", "dequantize", "quad_add", "filters", "positions"}
        made = session.run(None, {"x": x})[0]
    # a step of any grid before it is ten thousand times the tolerance
    np.testing.assert_allclose(made, in_onnxruntime(content, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dropped", "said"), [(0.0, ""), (0.5, "50% of the weights in its quads are zero")])
def test_a_layer_says_how_much_of_its_quads_is_nothing(dropped: float, said: str) -> None:
    file, weights = File((8, 3, 3)), np.ones((4, 8, 1, 1), np.int8)
    weights[:, : int(4 * dropped)] = weights[:, 4 : 4 + int(4 * dropped)] = 0
    out = file.layer("Conv", file.on_grid("x", X), "y", weights, np.ones(4, np.float32), np.zeros(4, np.int32), X)
    content = file.model(file.on_grid(out, Y))
    with Session(content, fallback=False) as session:
        (found,) = [record for record in session.profile(np.zeros((1, 8, 3, 3), np.float32), repeats=1) if record.name == "y"]
    assert found.limit.startswith(said) and bool(found.limit) == bool(said)


def test_threads_and_batches_change_nothing() -> None:
    content = block(97, True)
    x = np.random.default_rng(2).standard_normal((5, 6, 10, 12), np.float32)
    with Session(content) as one, Session(content, threads=2) as two:
        alone = np.concatenate([one.run(None, {"x": x[k : k + 1]})[0] for k in range(5)])
        assert np.array_equal(alone, one.run(None, {"x": x})[0])
        assert np.array_equal(alone, two.run(None, {"x": x})[0])
        assert np.array_equal(alone[:1], two.run(None, {"x": x[:1]})[0])


def test_kernels_may_be_measured_instead_of_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_REPEATS", 1)
    content, x = block(97, True), np.random.default_rng(6).standard_normal((1, 6, 10, 12), np.float32)
    with Session(content) as estimated, Session(content, tune=True) as measured:
        assert np.array_equal(estimated.run(None, {"x": x})[0], measured.run(None, {"x": x})[0])


def test_what_has_no_integers_computes_in_float32_between_grids() -> None:
    file = File((4, 6, 6))
    a = file.on_grid("x", X)
    b = file.node("Sigmoid", [a], "s")
    content = file.model(file.on_grid(b, Grid(1 / 255, 0)))
    x = np.random.default_rng(3).standard_normal((1, 4, 6, 6), np.float32)
    with Session(content, fallback=False) as session:
        assert {"dequantize", "quantize", "map"} <= set(kernels(session, x))
        assert np.abs(session.run(None, {"x": x})[0] - in_onnxruntime(content, x)[0]).max() <= 1 / 255 + 1e-6


def test_int8_activations_are_the_same_numbers() -> None:
    random = np.random.default_rng(4)
    weights, scales, bias = random.integers(-64, 65, (4, 4, 1, 1)).astype(np.int8), np.full(4, 0.004, np.float32), np.zeros(4, np.int64)
    x = random.standard_normal((2, 4, 6, 6), np.float32)
    results = []
    for signed in (False, True):
        file = File((4, 6, 6))
        out = file.layer("Conv", file.on_grid("x", X, signed), "y", weights, scales, bias, X)
        with Session(file.model(file.on_grid(out, Grid(0.1, 100), signed)), fallback=False) as session:
            results.append(session.run(None, {"x": x})[0])
    assert np.array_equal(*results)


def test_no_number_becomes_the_least() -> None:
    file = File((4, 3, 3))
    content = file.model(file.on_grid("x", X))
    x = np.full((1, 4, 3, 3), np.nan, np.float32)
    x[0, 1], x[0, 2] = np.inf, -np.inf
    with Session(content, fallback=False) as session:
        made = session.run(None, {"x": x})[0][0, :, 0, 0]
    assert np.array_equal(made, (np.array([0, 255, 0, 0], np.float32) - X.zero) * np.float32(X.scale))


@pytest.mark.parametrize("name", [quads.VNNI512, quads.VNNI256, quads.MADD, quads.USDOT, quads.SDOT, quads.SMULL, quads.PLAIN])
def test_products_are_chosen_by_what_the_cpu_can_do(name: str) -> None:
    features = {
        quads.VNNI512: "+avx512vnni,+avx2",
        quads.VNNI256: "+avxvnni,+avx2",
        quads.MADD: "+avx2",
        quads.USDOT: "+neon,+dotprod,+i8mm",
        quads.SDOT: "+neon,+dotprod",
        quads.SMULL: "+neon",
        quads.PLAIN: "+sse2",
    }
    assert quads.products(features[name]) == name


def test_what_fits_is_added_exactly_in_sixteen_bits() -> None:
    corners = np.array(list(itertools.product((-128, -65, -64, -1, 0, 1, 64, 65, 127), repeat=2)), np.int8)
    pairs = np.concatenate([corners, np.zeros_like(corners)], 1)
    most = 255 * np.maximum(corners.astype(int), 0).sum(1)
    least = 255 * np.minimum(corners.astype(int), 0).sum(1)
    assert np.array_equal(quads.fits(pairs), (most <= 32767) & (least >= -32768))


def test_weights_of_nine_bits_are_sums_of_what_fits() -> None:
    corners = np.array(list(itertools.product((-255, -128, -65, 0, 1, 64, 127, 255), repeat=4)), np.int16)
    rows, parts = quads.split(corners)
    assert parts.dtype == np.int8 and quads.fits(parts).all() and (np.diff(rows) >= 0).all()
    sums = np.zeros(corners.shape, np.int64)
    np.add.at(sums, rows, parts)
    assert np.array_equal(sums, corners)


SCRIPT = """
import sys
import numpy as np
from test_integers import block
from fineprune.export.engine import Session
content = block(97, False, (3, 4))
x = np.random.default_rng(5).standard_normal((1, 6, 3, 4), np.float32)
with Session(content) as session:
    np.save(sys.argv[1], session.run(None, {"x": x})[0])
"""


def test_the_twins_make_the_same_integers(tmp_path: Path) -> None:
    made = []
    for disabled in ("0", "1"):
        path = tmp_path / f"{disabled}.npy"
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = os.environ | {
            "NUMBA_DISABLE_JIT": disabled,
            "FINEPRUNE_COSTS": "assumed",
            "FINEPRUNE_PLANS": "anew",
            "PYTHONPATH": paths,
        }
        subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=environment)
        made.append(np.load(path))
    assert np.array_equal(*made)
