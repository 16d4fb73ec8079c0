"""Channels that nothing reads leave the file: sizes, counts, numbers, and what must stay."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fineprune.compressor.bake import bake
from fineprune.compressor.config import prune_config
from fineprune.compressor.macs import count_macs
from fineprune.compressor.prune import CalibrationRun, prune
from fineprune.export.exporter import ExportReport, export_onnx
from fineprune.export.parity import check_parity
from support.fakes import FakeSplit

SHAPE = (3, 9, 7)


class Net(nn.Module):
    """A sum, a gate (SiLU, squeeze and excite), a depthwise layer, pools, a join, groups, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(3, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.wide, self.depthwise = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
            self.narrow, self.grouped = nn.Conv2d(8, 6, 3), nn.Conv2d(12, 8, 1, groups=2)
            self.head = nn.Linear(8, 5)
            nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).relu() + nn.functional.hardswish(self.b(x))
        x = nn.functional.silu(self.depthwise(nn.functional.max_pool2d(self.wide(x), 2)))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = self.narrow(x)
        x = self.grouped(torch.cat([x, x.tanh()], 1)).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def images(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def exported(model: nn.Module, path: Path, *, reference: int = 1, **options: Any) -> tuple[ExportReport, dict[str, tuple[int, ...]]]:
    """The report, and the shapes of weights and masks in the file, which computes what the model does."""
    report = export_onnx(model.eval(), SHAPE, path, plain=True, **options)
    assert check_parity(model, path, images().numpy(), reference_samples=reference, engine=False).passed
    shapes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    return report, {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}


def masks(model: nn.Module, **dropped: tuple[list[int], list[int]]) -> dict[str, Tensor]:
    """Weight masks without these filters and without these channels."""
    found = {}
    for name, (filters, channels) in dropped.items():
        shape: torch.Size = model.get_submodule(name).weight.shape  # type: ignore[assignment]
        found[name] = torch.ones(*shape, *(1,) * (4 - len(shape)), dtype=torch.bool)
        found[name][filters] = False
        found[name][:, channels] = False
    return found


def test_filters_leave_with_what_reads_them_through_sums_gates_pools_and_depthwise_layers(tmp_path: Path) -> None:
    dense = Net()
    weights = masks(
        dense,
        a=([1, 2], []), b=([2, 3], []), wide=([5], [2]), depthwise=([5, 7], []), squeeze=([0], [5, 7]), excite=([], [0]),
        narrow=([], [5, 7]),
    )  # fmt: skip
    model = bake(dense, {"fwp": weights})
    report, shapes = exported(model, tmp_path / "net.onnx")
    assert shapes["a"] == shapes["b"] == (5, 3, 3, 3), "channel 2 alone has no summand that is read"
    assert shapes["wide"] == (6, 5, 1, 1) and shapes["depthwise"] == (6, 1, 3, 3), "what only an unread filter reads is unread"
    assert (shapes["squeeze"], shapes["excite"], shapes["narrow"]) == ((1, 6, 1, 1), (6, 1, 1, 1), (6, 6, 3, 3))
    assert shapes["grouped"] == (8, 6, 1, 1), "joined, and of two groups"
    rows = {row.name: row for row in count_macs(model, SHAPE).layers}
    for layer in report.layers:
        assert layer.macs_dense == rows[layer.name].macs_dense, "those of the layer as it was"
        assert layer.macs <= rows[layer.name].macs and layer.kept["ffp"] == 1
    assert {layer.name: layer.kept["fwp"] for layer in report.layers}["narrow"] == 6 / 8


def test_rows_of_block_masks_leave_with_their_channels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    dense = Net()
    blocks = {"wide": torch.rand(6, 9, 7, generator=generator) < 0.7, "depthwise": torch.rand(8, 4, 3, generator=generator) < 0.7}
    blocks |= {"narrow": torch.ones(8, 2, 1, dtype=torch.bool)}
    blocks["narrow"][[0, 3]] = False  # every block of two channels
    model = bake(dense, {"ffp": blocks, "fwp": masks(dense, squeeze=([], [0, 3]), excite=([], []), narrow=([], [4]))})
    path = tmp_path / "net.onnx"
    report = export_onnx(model.eval(), SHAPE, path)
    assert check_parity(model, path, images().numpy(), reference_samples=1, engine=False).passed
    shapes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    assert shapes["depthwise.weight"] == (6, 1, 3, 3), "squeeze reads channel 4"
    kept = {layer.name: layer.kept["ffp"] for layer in report.layers}
    assert kept["wide"] == pytest.approx(float(blocks["wide"].float().mean())) and kept["narrow"] == 1, "of the channels in the file"


@pytest.mark.parametrize("method", ["fpgm", "l1-filters"])
def test_a_network_without_its_filters_is_a_smaller_dense_one(method: str, tmp_path: Path) -> None:
    class Chain(nn.Sequential):
        def __init__(self) -> None:
            widths = [3, 8, 10, 12]
            layers = [
                layer
                for before, after in pairwise(widths)
                for layer in (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            ]
            super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = Chain()
    run = CalibrationRun(source=FakeSplit(images(), torch.zeros(3, dtype=torch.int64)), input_shape=SHAPE)
    blocks = {"criterion": "random", "scope": "channel", "ratio": 0.15}
    for ffp in ({}, blocks):
        model = prune(dense, prune_config(fwp={"criterion": method, "ratio": 0.4}, ffp=ffp), run).model
        report, shapes = exported(model, tmp_path / "net.onnx")
        if not ffp:
            assert [shapes[str(index)] for index in (0, 3, 6, 11)] == [(5, 3, 3, 3), (6, 5, 3, 3), (8, 6, 3, 3), (5, 8)]
        counts = count_macs(model, SHAPE)
        assert sum(layer.macs for layer in report.layers) == counts.conv_macs
        assert sum(layer.macs_dense for layer in report.layers) == counts.conv_macs_dense


def test_a_filter_without_weights_whose_bias_is_read_stays(tmp_path: Path) -> None:
    dense = Net()
    _, shapes = exported(bake(dense, {"fwp": masks(dense, wide=([5], []))}), tmp_path / "net.onnx")
    assert shapes["wide"] == (8, 6, 1, 1)
    _, untouched = exported(dense, tmp_path / "dense.onnx")
    assert untouched == shapes


def test_a_layer_of_which_nothing_is_read_keeps_a_channel(tmp_path: Path) -> None:
    dense = Net()
    nothing = {"narrow": torch.zeros(dense.narrow.weight.shape, dtype=torch.bool)}
    _, shapes = exported(bake(dense, {"fwp": nothing}), tmp_path / "net.onnx")
    assert shapes["narrow"] == (6, 1, 3, 3) and shapes["depthwise"][0] == 1
    assert np.prod(shapes["a"]) == 27


class Enlarged(nn.Module):
    """A map that is brought to the size of the image, which a file of any size computes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(nn.functional.interpolate(self.b(self.a(x).relu()), size=x.shape[2:], mode="bilinear"))


@pytest.mark.parametrize("dynamic_size", [False, True])
def test_a_size_that_is_computed_and_inputs_that_are_left_out(dynamic_size: bool, tmp_path: Path) -> None:
    model = bake(Enlarged().eval(), {"fwp": masks(Enlarged(), a=([1, 4], []), b=([], [1, 4]))}, input_shape=SHAPE)
    _, shapes = exported(model, tmp_path / "m.onnx", dynamic_size=dynamic_size)
    assert shapes["a"] == (4, 3, 3, 3) and shapes["b"] == (8, 4, 3, 3)


class Vectors(Net):
    """Means of maps that Gemm adds, or that meet a vector."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.a(x).relu()).relu().mean((2, 3))
        if self.how == "vector":
            return x @ self.head.weight[0].detach()
        return torch.addmm(x, self.head(x), self.head.weight.detach())


class Numbered(Net):
    """Where the largest values are, which is counted over all channels."""

    def forward(self, x: Tensor) -> Tensor:
        x, at = nn.functional.max_pool2d(self.a(x), 2, return_indices=True)
        return self.wide(x) + at.float().mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("model", "dropped"),
    [(Vectors("sum"), {"head": ([], [1, 2])}), (Vectors("vector"), {"head": ([], [1])}), (Numbered(), {"wide": ([], [1, 4])})],
    ids=["sum", "vector", "indices"],
)
def test_what_reads_a_map_beside_its_products_keeps_it_whole(model: Net, dropped: Any, tmp_path: Path) -> None:
    numbered = isinstance(model, Numbered)  # onnx.reference counts otherwise
    _, shapes = exported(bake(model, {"fwp": masks(model, **dropped)}), tmp_path / "net.onnx", reference=not numbered)
    assert shapes["a"][0] == 6 and (numbered or shapes["wide"][0] == 8)


def test_no_unread_channel_divides(tmp_path: Path) -> None:
    """For the width a zero channel would stay among 16, and zero times 0 / 0 is NaN."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        a, b, c = nn.Conv2d(3, 20, 3, bias=False), nn.Conv2d(20, 20, 3, bias=False), nn.Conv2d(20, 4, 1)

    class Ratio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = a, b, c

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            return self.c(x / (x * 2)) / 3

    weights = masks(Ratio(), b=([1], range(15, 20)), c=([], range(1, 6)))  # type: ignore[arg-type]
    weights["b"][1, 15:17] = True  # an unread filter, of channels that no other reads
    _, shapes = exported(bake(Ratio().eval(), {"fwp": weights}), tmp_path / "net.onnx")
    assert shapes["b"][0] == 20


def test_wide_maps_keep_a_multiple_of_sixteen(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = [3, 40, 20, 15, 5]
        layers = [layer for pair in pairwise(widths) for layer in (nn.Conv2d(*pair, 3, padding=1), nn.ReLU())]
        dense = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    kept = {}
    for name, gone in (("2", 10), ("4", 3), ("6", 4)):  # 30, 17 and 11 channels are read
        kept[name] = torch.ones(dense.get_submodule(name).weight.shape, dtype=torch.bool)  # type: ignore[arg-type]
        kept[name][:, 1 : gone + 1] = False
    _, shapes = exported(bake(dense, {"fwp": kept}), tmp_path / "net.onnx")
    assert [shapes[name] for name in ("0", "2", "4", "6")] == [(32, 3, 3, 3), (20, 32, 3, 3), (11, 20, 3, 3), (5, 11, 3, 3)]
