"""Orders of filters: similar ones together, the same results whatever the orders, and no change where none helps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fineprune.export.engine import Session
from fineprune.export.engine.ir.conv import ConvShape
from fineprune.export.engine.ir.network import Box, Layer, Piece
from fineprune.export.engine.ops import filter_orders, filters, permute
from fineprune.export.engine.ops.assemble import Assemble
from fineprune.export.engine.ops.conv import Conv
from fineprune.export.engine.ops.maps import Map
from fineprune.export.engine.ops.permute import Permute
from fineprune.export.engine.ops.pools import Mean, Pool
from fineprune.export.engine.passes import reorder
from fineprune.export.engine.passes.program import planned
from support.onnx_graphs import run_onnxruntime
from support.random_networks import RandomNetwork
from support.tolerances import ONNX_LOGITS

LANES = 16
SIZE = (5, 5)
BOXES: dict[str, Box] = dict.fromkeys("xabcdrsy", (64, *SIZE))


def shared_masks(sizes: Sequence[int], pairs: int, seed: int, kept: float = 0.4) -> NDArray[np.bool_]:
    """[F, pairs]: as many filters as each of `sizes` says have a mask in common; filters lie anywhere."""
    random = np.random.default_rng(seed)
    masks = random.random((len(sizes), pairs)) < kept
    return masks[random.permutation(np.repeat(np.arange(len(sizes)), sizes))]


def conv(
    name: str, *inputs: str, output: str | None = None, groups: int = 4, filters: int = 64, channels: int = 64, kept: float = 0.4
) -> Conv:
    """A convolution of so many groups of filters that share a mask; 0: each filter has its own."""
    seed = ord(name[0])
    masks = shared_masks([filters // groups] * groups if groups else [1] * filters, channels * 9, seed, kept)
    weights = np.random.default_rng(seed).standard_normal((filters, channels, 3, 3), np.float32) * masks.reshape(filters, channels, 3, 3)
    shape = ConvShape(channels=channels, filters=filters, height=SIZE[0], width=SIZE[1], kernel=(3, 3), pads=(1, 1, 1, 1))
    return Conv(name=name, inputs=inputs, output=output or name, shape=shape, weights=weights, bias=np.zeros(filters, np.float32))


def mapped(function: str, output: str, *inputs: str) -> Map:
    return Map(name=output, inputs=inputs, output=output, function=function)


def changed(layers: Sequence[Layer], boxes: Any = BOXES, outputs: Sequence[str] = ("y",)) -> list[Layer]:
    return reorder.reorder(layers, boxes, outputs, lambda layer: 1e-3)[0]


def pairs_of(layer: Layer) -> int:
    """(channel, tap) pairs that the vectors of a convolution use."""
    assert isinstance(layer, Conv)
    used = (layer.weights != 0).reshape(-1, LANES, layer.weights[0].size)
    return int(used.any(1).sum())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([16, 16, 32, 48, 8, 5]), min_size=2, max_size=9),
    kept=st.sampled_from([0.1, 0.5]),
    seed=st.integers(0, 999),
)
def test_filters_with_a_mask_follow_each_other(sizes: list[int], kept: float, seed: int) -> None:
    masks = shared_masks(sizes, 75, seed, kept)
    order = filter_orders.filter_order(np.packbits(masks, 1))
    assert order is not None
    np.testing.assert_array_equal(np.sort(order), np.arange(len(masks)))
    vectors = [masks[order][first : first + LANES] for first in range(0, len(masks), LANES)]
    alone = sum(len(np.unique(vector, axis=0)) == 1 for vector in vectors)
    assert alone >= sum(size // LANES for size in sizes)
    assert filter_orders.pairs_used(np.packbits(masks, 1), order) == sum(int(vector.any(0).sum()) for vector in vectors)


def test_what_is_left_over_goes_where_it_adds_little() -> None:
    """Five filters and eleven have nearly the same mask, five and eleven others, too."""
    masks = np.zeros((4, 64), bool)
    masks[0, :20], masks[1, :21], masks[2, 40:60], masks[3, 40:61] = True, True, True, True
    mixed = np.packbits(np.random.default_rng(0).permutation(np.repeat(masks, (5, 11, 5, 11), axis=0)), 1)
    assert filter_orders.pairs_used(mixed, None) == 84
    assert filter_orders.pairs_used(mixed, filter_orders.filter_order(mixed)) == 42


def test_similar_vectors_are_neighbours() -> None:
    masks = np.zeros((4, 64), bool)
    masks[0, :20], masks[1, 30:50], masks[2, 1:21], masks[3, 31:51] = True, True, True, True
    used = np.packbits(np.repeat(masks, LANES, axis=0), 1)
    assert filter_orders.pairs_used(used, None, 2) == 80
    assert filter_orders.pairs_used(used, filter_orders.filter_order(used), 2) == 42


@pytest.mark.parametrize("masks", [np.ones((64, 9), bool), np.eye(64, dtype=bool), np.eye(3, dtype=bool)])
def test_without_shared_masks_there_is_no_order(masks: NDArray) -> None:
    assert filter_orders.filter_order(np.packbits(masks, 1)) is None


def random_orders(layers: Sequence[Layer], boxes: Any, outputs: Sequence[str], seconds: Any) -> dict[str, reorder.Order]:
    """Of every convolution that may have one."""
    makers = reorder.makers_of(layers, boxes)
    fixed = {maker for name in outputs for maker in makers[name]}
    random = np.random.default_rng(len(layers))
    free = {maker for some in list(makers.values()) for maker in some} - fixed - {reorder.FILE}
    return {name: random.permutation(boxes[name][0]) for name in sorted(free)}


@pytest.mark.parametrize("start", range(200, 300, 50))
def test_any_orders_give_the_same_results(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of tensors in different orders, pools, linear and depthwise layers, joined and split channels, several readers and outputs."""
    made: list[Layer] = []
    real = reorder.with_orders

    def recorded(layers: Any, boxes: Any, orders: Any) -> Any:
        result = real(layers, boxes, orders)
        made.extend(result[0])
        return result

    monkeypatch.setattr(reorder, "choose", random_orders)
    monkeypatch.setattr(reorder, "with_orders", recorded)
    for seed in range(start, start + 50):
        random = RandomNetwork(seed, 10 + seed % 30)
        content = random.serialized()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        reference = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        x = np.random.default_rng(seed).standard_normal((2, *random.box), np.float32)
        with Session(content) as session:
            for expected, y in zip(reference.run(None, {"x": x}), session.run(None, {"x": x}), strict=True):
                scale = max(1.0, float(np.abs(expected).max()))
                np.testing.assert_allclose(y, expected, ONNX_LOGITS[0], ONNX_LOGITS[1] * scale, err_msg=f"network {seed}")
    assert sum(isinstance(layer, Permute) for layer in made) >= 10


def test_vectors_of_the_program_use_one_mask_each() -> None:
    layers: list[Layer] = [conv("a", "x"), conv("b", "a"), conv("y", "b")]
    a, b, y = [i.layer for i in planned(layers, BOXES, ["x"], ["y"]).list if isinstance(i.layer, Conv)]
    for before, after in zip(layers[:2], (a, b), strict=True):
        assert isinstance(before, Conv) and isinstance(after, Conv)
        masks = np.unique((before.weights != 0).reshape(64, -1), axis=0)
        assert pairs_of(after) == masks.sum() < 0.6 * pairs_of(before)
        assert after.name == before.name
    assert pairs_of(y) == pairs_of(layers[2])  # it is read from outside


@pytest.mark.parametrize(
    "layer",
    [
        conv("a", "x", kept=1.0),
        conv("a", "x", groups=1),
        conv("a", "x", groups=0),
        conv("a", "x", groups=4, filters=16),
    ],
    ids=["dense", "channel", "unstructured", "one vector"],
)
def test_what_no_order_helps_stays_as_it_is(layer: Conv) -> None:
    layers = [layer, conv("y", "a", channels=layer.shape.filters)]
    result = changed(layers, {**BOXES, "a": (layer.shape.filters, *SIZE)})
    assert all(one is other for one, other in zip(result, layers, strict=True))


@pytest.mark.parametrize(
    ("reader", "box"),
    [
        (Assemble(name="y", inputs=("a",), output="y", pieces=(Piece(source=0, size=(32, *SIZE), start=(1, 0, 0)),)), (32, *SIZE)),
        (Assemble(name="y", inputs=("a",), output="y", pieces=(Piece(source=0, size=(64, *SIZE), to=(0, 1, 0)),)), (64, 6, 5)),
        (Mean(name="y", inputs=("a",), output="y"), (64, 1, 1)),
    ],
    ids=["slice", "pad", "output"],
)
def test_who_takes_channels_apart_keeps_the_order_of_the_file(reader: Layer, box: Box) -> None:
    layers = [conv("a", "x"), reader]
    assert changed(layers, {**BOXES, "y": box})[0] is layers[0]


def test_a_residual_is_permuted_once_where_that_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """r -> a -> s = b(a) + r -> c -> d(c) + s, read by y: r, s and the last sum have filters of different groups."""
    layers = [
        conv("r", "x"),
        conv("a", "r"),
        conv("b", "a", "r", output="s"),
        conv("c", "s"),
        conv("d", "c", "s"),
        Pool(name="pool", inputs=("d",), output="p", kind="max", kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0)),
        conv("y", "p"),
    ]
    boxes: dict[str, Box] = {**BOXES, "p": (64, 2, 2)}
    result = changed(layers, boxes)
    assert [type(layer).__name__ for layer in result] == ["Conv", "Conv", "Permute", "Conv", "Conv", "Permute", "Conv", "Pool", "Conv"]
    convs = [layer for layer in result if isinstance(layer, Conv)]
    assert all(pairs_of(after) < 0.6 * pairs_of(before) for before, after in zip(layers[:5], convs, strict=False))
    monkeypatch.setattr(permute, "estimate", lambda *size: 1.0)
    dear = changed(layers, boxes)
    assert not any(isinstance(layer, Permute) for layer in dear)
    before = {layer.name: layer for layer in layers}
    better = {layer.name for layer in dear if isinstance(layer, Conv) and pairs_of(layer) < 0.6 * pairs_of(before[layer.name])}
    assert {"a", "c"} < better and len(better) == 3  # those inside of the blocks, and one of the sum


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), toll=st.sampled_from([0.0, 0.2, 1.0, 3.0]))
def test_no_single_change_is_better(seed: int, toll: float) -> None:
    """Of a chain of sums; a convolution takes its pairs in vectors and in pairs of vectors, a permutation `toll` times 1000."""
    random = np.random.default_rng(seed)
    names = ["r0", "r1", "r2", "r3"]
    layers: list[Layer] = [
        conv(chr(97 + int(random.integers(26))), "x", *names[:k][-1:], output=name, groups=int(random.choice([1, 2, 4, 4])))
        for k, name in enumerate(names)
    ]
    layers.append(conv("y", "r3"))
    boxes: dict[str, Box] = {**BOXES, **dict.fromkeys(names, (64, *SIZE))}

    def time(weights: NDArray) -> float:
        used = np.packbits((weights != 0).reshape(64, -1), 1)
        return float(filter_orders.pairs_used(used, None) + filter_orders.pairs_used(used, None, 2))

    def total(orders: dict[str, reorder.Order]) -> float:
        made = reorder.with_orders(layers, boxes, orders)[0]
        return sum(time(layer.weights) if isinstance(layer, Conv) else toll * 1000 for layer in made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permute, "estimate", lambda *size: toll * 1000)
        patch.setattr(filters, "estimate", lambda shape, weights, mask: time(weights))
        chosen = reorder.choose(layers, boxes, ["y"], lambda layer: time(layer.weights))
    best = total(chosen)
    assert best <= total({}) and (chosen or toll or all(pairs_of(layer) == pairs_of(layers[0]) for layer in layers[:-1]))
    for name in names:
        for order in [None, *chosen.values()]:
            other = {**chosen, name: order}
            assert best <= total({key: value for key, value in other.items() if value is not None}) + 1e-6


def grouped(seed: int) -> Any:
    """A network with the filters of its wide convolutions in groups of LANES that share a mask, anywhere among the filters."""
    import torch

    from fineprune.compressor.layers import MaskedConv2d
    from fineprune.models.zoo.registry import build

    model = build("resnet20", width=32, seed=0)
    for number, (name, module) in enumerate([*model.named_modules()]):
        if isinstance(module, torch.nn.Conv2d) and module.out_channels >= 2 * LANES:
            sizes = [LANES] * (module.out_channels // LANES)
            masks = shared_masks(sizes, module.weight[0].numel(), seed + number).reshape(module.weight.shape)
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], MaskedConv2d.wrap(module, fwp_mask=torch.from_numpy(masks)))
    return model.eval()


def test_exported_networks_are_what_onnxruntime_computes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fineprune.export.exporter import export_onnx

    path = tmp_path / "network.onnx"
    export_onnx(grouped(1), (3, 20, 20), path)
    content = path.read_bytes()
    with Session(content) as session, Session(content, threads=2) as two:
        for count in (1, 3):
            x = np.random.default_rng(count).standard_normal((count, 3, 20, 20), np.float32)
            [y], [again] = session.run(None, {"input": x}), two.run(None, {"input": x})
            expected = run_onnxruntime(content, x)
            np.testing.assert_allclose(y, expected, ONNX_LOGITS[0], ONNX_LOGITS[1] * max(1.0, float(np.abs(expected).max())))
            np.testing.assert_array_equal(again, y)
        records = session.profile(x, repeats=2)
    kernels = {record.kernel for record in records}
    assert {"permute", "filters"} <= kernels
    names = [record.name for record in records if record.macs]
    assert {"conv1", "layer2.0.conv1", "layer3.2.conv2"} < {name.split()[0] for name in names}
