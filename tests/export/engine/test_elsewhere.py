"""Which nodes run in ONNX Runtime because it is faster there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fineprune.common.errors import UsageError
from fineprune.export.engine import Session
from fineprune.export.engine.ir import costs
from fineprune.export.engine.ir.conv import ConvShape
from fineprune.export.engine.ir.costs import Costs
from fineprune.export.engine.ops import conv
from fineprune.export.engine.ops.conv import dense_counts
from fineprune.export.engine.ops.filters_forms import CACHED_WEIGHTS
from fineprune.export.engine.passes.elsewhere import REASON, placed
from fineprune.export.engine.reader.graph import Step, read_graph
from fineprune.export.engine.run import machine
from fineprune.ops.simd import quads
from support.grids import File, Grid
from support.onnx_comparison import in_onnxruntime

pytestmark = pytest.mark.elsewhere
DENSE = (
    "dense.load",
    *(f"dense.{kind}{part}" for kind in ("", "int8.") for part in ("operation", "window", "pointwise", "depthwise", "output")),
)
X86 = (quads.VNNI512, quads.VNNI256, quads.MADD)


def chain(kept: list[float], channels: int = 16, side: int = 16) -> bytes:
    """Convolutions one after another, of whose weights so much is kept, each with Relu; the last ones end in a sum over positions."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for k, share in enumerate(kept):
        w = random.standard_normal((channels, channels, 3, 3), np.float32) / 12 * (random.random((channels, channels, 3, 3)) < share)
        weights.append(numpy_helper.from_array(w.astype(np.float32), f"w{k}"))
        nodes.append(helper.make_node("Conv", [last, f"w{k}"], [f"c{k}"], f"conv{k}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"], f"relu{k}"))
        last = f"r{k}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"], "pool"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, side, side])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels, 1, 1])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()  # type: ignore[no-any-return]


def table(dense: float, part: float = 1.0) -> Costs:
    """The assumed costs, those of ONNX Runtime times `dense`, of a part that it runs times `part`."""
    factors = {**dict.fromkeys(DENSE, dense), "dense.part": part}
    return Costs(MappingProxyType({name: ns * factors.get(name, 1.0) for name, ns in costs.current().nanoseconds.items()}))


@contextmanager
def believing(found: Costs, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with costs.using(lambda: found):
        monkeypatch.setattr(machine, "table", lambda: found)
        monkeypatch.setenv("FINEPRUNE_PLANS", "anew")
        yield


def there(content: bytes) -> list[str]:
    """Names of the nodes that are placed in ONNX Runtime."""
    graph = read_graph(content)
    steps: list[Step] = placed(graph.steps, graph.boxes)
    assert all(step.reason == REASON for step in steps if step.layers is None)
    return [node.name for step in steps if step.layers is None for node in step.nodes]


def test_a_network_is_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    content = chain([1.0, 1.0, 1.0])
    with believing(table(dense=100), monkeypatch):
        assert there(content) == []
    with believing(table(dense=0.01), monkeypatch):
        assert len(there(content)) == 7


def as_long(content: bytes, name: str) -> float:
    """What costs of ONNX Runtime have to be multiplied with, so that it takes as long as the engine for a layer."""
    [layer] = [layer for step in read_graph(content).steps for layer in step.layers or () if layer.name == name]
    assert layer.seconds_elsewhere is not None
    return min(candidate.seconds for candidate in layer.candidates) / layer.seconds_elsewhere


@pytest.mark.parametrize(("share", "expected"), [(1.2, 0), (1.05, 3)])
def test_the_engine_keeps_what_it_is_clearly_faster_at(share: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = chain([1.0])
    with believing(table(dense=share * as_long(content, "conv0")), monkeypatch):
        assert len(there(content)) == expected


@pytest.mark.parametrize(("part", "expected"), [(0.0, ["conv1"]), (1000.0, [])])
def test_one_layer_goes_there_if_the_way_is_worth_it(part: float, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that keeps all its weights, between layers that keep few."""
    content = chain([0.02, 1.0, 0.02], channels=64)
    with believing(table(0.7 * as_long(content, "conv1"), part), monkeypatch):
        assert [name for name in there(content) if name.startswith("conv")] == expected


def test_weights_that_come_from_memory_cost_dense_convolutions_too() -> None:
    """512 channels on 2x2 positions: what takes time is to read nine megabytes."""
    shapes = (ConvShape(channels=512, filters=512, height=side, width=side, kernel=(3, 3), pads=(1, 1, 1, 1)) for side in (2, 3))
    small, larger = (dense_counts(shape) for shape in shapes)
    assert small["linear.weight"] == larger["linear.weight"] == 512 * 512 * 9 - CACHED_WEIGHTS


@pytest.mark.skipif(quads.HOST not in X86, reason="costs of another CPU decide otherwise")
def test_weights_that_come_from_memory_are_read_here() -> None:
    """Of nine megabytes the engine needs a third."""
    assert there(chain([0.3], channels=512, side=2)) == []


@pytest.mark.parametrize("dense", [0.001, 0.3, 100.0])
def test_outputs_are_those_of_the_file_wherever_it_runs(dense: float, monkeypatch: pytest.MonkeyPatch) -> None:
    content = chain([0.02, 1.0, 0.02, 1.0], channels=32)
    x = np.random.default_rng(1).standard_normal((3, 32, 16, 16)).astype(np.float32)
    expected = onnxruntime.InferenceSession(content).run(None, {"x": x})[0]
    with believing(table(dense, part=0.0), monkeypatch), Session(content) as ours:
        np.testing.assert_allclose(ours.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)
        records = {record.name for record in ours.profile(x)}
    assert ("conv1" in records) == (dense == 100.0)


def test_what_is_faster_there_stays_where_only_what_is_needed_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    content, x = chain([1.0, 1.0]), np.random.default_rng(1).standard_normal((1, 16, 16, 16), np.float32)
    for fallback, timed in ((True, 0), ("needed", 2)):
        with believing(table(dense=0.001), monkeypatch), Session(content, fallback=fallback) as ours:  # type: ignore[arg-type]
            assert len([record for record in ours.profile(x) if record.name.startswith("conv")]) == timed
    for wrong in ("sometimes", 1):
        with pytest.raises(UsageError, match="fallback is True, False or 'needed'"):
            Session(content, fallback=wrong)  # type: ignore[arg-type]


def test_nothing_goes_there_without_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    with believing(table(dense=0.001), monkeypatch), Session(chain([1.0]), fallback=False) as ours:
        assert any(record.name == "conv0" for record in ours.profile(np.zeros((1, 16, 16, 16), np.float32)))


def masked() -> Any:
    import torch
    from torch import nn

    from fineprune.compressor.bake import bake

    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()
    mask = torch.rand(16, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    return bake(model, {"ffp": {"2": mask}})


def test_block_masks_stay_in_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip("torch")
    from fineprune.export.exporter import export_onnx

    export_onnx(masked(), (16, 12, 12), tmp_path / "m.onnx")
    content = onnx.load(tmp_path / "m.onnx").SerializeToString()
    with believing(table(dense=0.001, part=0.0), monkeypatch):
        assert not any(node.op_type == "MaskedConv" for step in placed_steps(content) if step.layers is None for node in step.nodes)
        assert any(step.layers is None for step in placed_steps(content))


def placed_steps(content: bytes) -> list[Step]:
    graph = read_graph(content)
    return placed(graph.steps, graph.boxes)


def on_grids(kept: float = 1.0, channels: int = 64, *, largest: int = 64, clip: bool = False, signed: bool = False) -> bytes:
    """Two convolutions of integers, of whose quads so many are kept, and the sum of their outputs. clip: narrower than the grid."""
    random, file, grid = np.random.default_rng(0), File((channels, 16, 16)), Grid(0.05, 0)
    last, made = file.on_grid("x", grid, signed), []
    for k in range(2):
        weights = random.integers(-largest, largest + 1, (channels, channels, 3, 3))
        weights[0, 0, 0, 0] = largest
        weights *= np.repeat(random.random((channels, channels // 4, 3, 3)) < kept, 4, 1)
        scales, bias = np.full(channels, 0.002, np.float32), random.integers(-999, 999, channels)
        last = file.layer("Conv", last, f"conv{k}", weights, scales, bias, grid, pads=(1, 1, 1, 1))
        if clip:
            last = file.node("Clip", [last, file.constant(f"low{k}", 0, np.float32), file.constant(f"high{k}", 6, np.float32)], f"clip{k}")
        last = file.on_grid(last, grid, signed)
        made.append(last)
    return file.model(file.on_grid(file.node("Add", made, "sum"), grid, signed))


def runs_here(content: bytes, **options: bool) -> bool:
    """Whether the engine runs a file; its outputs are ONNX Runtime's, bit by bit, wherever it runs."""
    x = np.random.default_rng(1).standard_normal((2, 64, 16, 16)).astype(np.float32)
    with Session(content, **options) as ours:
        assert (ours.run(None, {"x": x})[0] == in_onnxruntime(content, x)[0]).all()
        names = {record.name for record in ours.profile(x, repeats=1)}
    assert not names or {"conv0", "conv1"} <= names
    return bool(names)


def placed_here(content: bytes) -> bool:
    with Session(content) as ours:
        return bool(ours.profile(np.zeros((1, 64, 16, 16), np.float32), repeats=1))


@pytest.mark.skipif(quads.HOST not in X86, reason="networks on grids stay in the engine on this CPU")
@pytest.mark.parametrize("dense", [0.01, 100.0])
def test_a_network_on_grids_is_where_it_is_faster(dense: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with believing(table(dense, part=0.0), monkeypatch):
        assert runs_here(on_grids()) == (dense == 100.0)
        assert runs_here(on_grids(), fallback=False)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime makes the same sums."""
    monkeypatch.setattr(conv, "stock_exact", lambda weights: True)


@pytest.mark.skipif(quads.HOST not in X86, reason="networks on grids stay in the engine on this CPU")
@pytest.mark.usefixtures("alike")
def test_masks_keep_a_network_on_grids_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is expected: costs that were measured beside other work err by a third."""
    for dense in (0.7, 0.01):
        with believing(table(dense, part=0.0), monkeypatch):
            assert [placed_here(on_grids(kept)) for kept in (1.0, 0.28)] == [False, True]


@pytest.mark.parametrize(
    ("host", "largest", "exact"),
    [
        *((quads.MADD, largest, largest <= 64) for largest in (1, 64, 65, 127)),
        *((host, 127, True) for host in (quads.VNNI512, quads.VNNI256)),
        *((host, 1, False) for host in (quads.USDOT, quads.SDOT, quads.SMULL, quads.PLAIN)),
    ],
)
def test_integers_are_the_same_on_every_cpu(host: str, largest: int, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI ONNX Runtime adds pairs in 16 bits, which weights beyond 64 may leave; nobody has seen its integers on Arm."""
    monkeypatch.setattr(quads, "HOST", host)
    assert quads.stock_exact(np.array([0, largest])) == quads.stock_exact(np.array([[-largest]])) == exact


@pytest.mark.parametrize("exact", [True, False])
def test_what_onnxruntime_adds_otherwise_stays_here(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(conv, "stock_exact", lambda weights: exact or bool(seen.append(int(np.abs(weights).max()))))
    with believing(table(dense=0.001), monkeypatch):
        assert placed_here(on_grids(largest=65)) == (not exact)
    assert exact or set(seen) == {65}


@pytest.mark.skipif(quads.HOST != quads.MADD, reason="ONNX Runtime adds exactly on this CPU")
def test_weights_beyond_64_are_exact_here_alone() -> None:
    """What the rule is for: all inputs and weights are as large as can be."""
    file, grid = File((8, 4, 4), np.uint8), Grid(1.0, 0)
    x = file.node("DequantizeLinear", ["x", *file.parameters("x", grid)], "real")
    y = file.layer("Conv", x, "conv", np.full((8, 8, 1, 1), 127), np.ones(8, np.float32), np.zeros(8), grid)
    content = file.model(file.on_grid(y, Grid(2000.0, 0)))
    full = np.full((1, 8, 4, 4), 255, np.uint8)
    with Session(content) as ours:
        found = ours.run(None, {"x": full})[0]
    assert (found == np.rint(8 * 255 * 127 / 2000) * 2000).all()
    assert not (in_onnxruntime(content, full)[0] == found).any()


@pytest.mark.usefixtures("alike")
@pytest.mark.parametrize("kind", ["clip", "signed"])
def test_what_onnxruntime_rounds_otherwise_stays_here(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with believing(table(dense=0.001), monkeypatch):
        assert not placed_here(on_grids())
        assert placed_here(on_grids(**{kind: True}))


@pytest.mark.usefixtures("alike")
def test_block_masks_keep_a_network_on_grids_here() -> None:
    [layer] = [layer for step in read_graph(on_grids()).steps for layer in step.layers or () if layer.name == "conv0"]
    assert isinstance(layer, conv.Conv)
    blocks = replace(layer, mask=np.zeros((64, 16, 16), bool))
    assert np.isfinite(layer.seconds_on_grids((64, 16, 16)))
    assert blocks.seconds_on_grids((64, 16, 16)) == np.inf
