"""Channels that masks drop together come to lie together, whatever their places in the file; the integers stay the same."""

from dataclasses import replace

import numpy as np
import pytest

from fineprune.export.engine import Session
from fineprune.export.engine.ops.quads import QuadConv
from fineprune.export.engine.passes.align import align
from fineprune.export.engine.passes.program import planned
from fineprune.export.engine.reader.graph import read_graph
from support import engine_layers
from support.grids import File, Grid
from support.onnx_comparison import in_onnxruntime

X, MIDDLE, TOTAL = Grid(0.02, 114), Grid(0.05, 0), Grid(0.09, 31)


def clustered(random: np.random.Generator, filters: int, channels: int) -> np.ndarray:
    """Weights of quads of channels from all over, a quarter of them kept."""
    weights = random.integers(1, 65, (filters, channels, 3, 3)).astype(np.int8)
    clusters = random.permutation(channels) // 4
    kept = random.random((filters, -(-channels // 4), 3, 3)) < 0.25
    return np.where(kept[:, clusters], weights, np.int8(0)).astype(np.int8)


def network(channels: int, strides: int) -> bytes:
    """Two convolutions, of which the first makes channels for the second alone, and a sum that a third reads."""
    random, file = np.random.default_rng(channels), File((channels, 20, 20))

    def conv(source: str, name: str, grid: Grid, stride: int = 1) -> str:
        filters = channels * stride**2  # so that a copy of the channels is worth its time where products are fast, too
        weights = clustered(random, filters, channels)
        scales = random.uniform(0.0005, 0.002, filters)
        bias = random.integers(-500, 500, filters)
        return file.layer("Conv", source, name, weights, scales, bias, grid, pads=(1, 1, 1, 1), strides=(stride, stride))

    x = file.on_grid("x", X)
    a = file.on_grid(file.node("Relu", [conv(x, "a", X)], "ar"), MIDDLE)
    b = file.on_grid(conv(a, "b", MIDDLE), X)
    total = file.on_grid(file.node("Add", [b, x], "s"), TOTAL)
    return file.model(file.on_grid(conv(total, "c", TOTAL, strides), X), total)


@pytest.mark.parametrize(("channels", "strides"), [(16, 1), (16, 2)])
def test_clusters_are_found_and_the_integers_stay(channels: int, strides: int) -> None:
    content = network(channels, strides)
    graph = read_graph(content)
    layers = [layer for step in graph.steps for layer in step.layers or ()]
    made = planned(layers, graph.boxes, ["x"], [port.name for port in graph.outputs])
    convs = [instruction.layer for instruction in made.list if isinstance(instruction.layer, QuadConv)]
    assert len(convs) == 3
    for conv in convs:
        quads = conv.weights.any(-1)
        assert np.count_nonzero(conv.weights) / np.count_nonzero(quads) / 4 > 0.95
    x = np.random.default_rng(1).standard_normal((2, channels, 20, 20), np.float32)
    with Session(content, fallback=False) as session:
        permuted = [record for record in session.profile(x, repeats=1) if record.kernel == "quad_permute"]
        assert len(permuted) == 2  # of the input and of the sum; the second convolution's channels are made in its order
        outputs = session.run(None, {"x": x})
    wanted = in_onnxruntime(content, x)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(outputs, wanted, strict=True))


def test_what_times_depend_on_is_told_apart() -> None:
    """Measured times are kept by it: convolutions that keep other quads, or end otherwise, have times of their own."""
    graph = read_graph(network(16, 1))
    layers = [layer for step in graph.steps for layer in step.layers or ()]
    made = planned(layers, graph.boxes, ["x"], [port.name for port in graph.outputs])
    convs = [instruction.layer for instruction in made.list if isinstance(instruction.layer, QuadConv)]
    assert len({conv.fingerprint for conv in convs}) == len(convs) == 3
    assert replace(convs[0], weights=convs[0].weights * 2).fingerprint == convs[0].fingerprint


def test_layers_without_integers_stay_as_they_are() -> None:
    layers, boxes = [engine_layers.conv("a", "x"), engine_layers.relu("a", "r")], dict.fromkeys("xar", engine_layers.BOX)
    found, sizes = align(layers, boxes, ["r"])
    assert [id(layer) for layer in found] == [id(layer) for layer in layers] and sizes == boxes
