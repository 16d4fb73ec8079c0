"""Second moments of inputs against loops over samples, positions and taps; blocks of channels; positions that stand for all."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate import moments
from fineprune.calibrate.collect import CalibrationConfig, collect
from fineprune.calibrate.convolutions import ConvSite
from fineprune.calibrate.measures import InputSquares
from fineprune.calibrate.moments import add_moments, block_limit, moments_shape, positions_taken, spread
from support.geometries import KINDS, Geometry, problem
from support.networks import CONVOLUTIONS, SHAPE, samples, varied
from support.patches import patches

CASES = {**KINDS, "many": Geometry(channels=6, filters=2, samples=3)}


def conv_of(geometry: Geometry, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(geometry.channels, geometry.filters, geometry.kernel, bias=bias, **geometry.options)  # type: ignore[arg-type]


def naive(p, geometry: Geometry, mask: np.ndarray | None, at: list[list[int]]) -> list[np.ndarray]:
    """By group, a row for each sample and position: the patches of the group's channels, zero where the mask drops the block."""
    (kh, kw), (sh, sw), (dh, dw), per_group = geometry.kernel, geometry.stride, geometry.dilation, geometry.channels // geometry.groups
    padded = np.pad(p.x, ((0, 0), (0, 0), (geometry.padding[0],) * 2, (geometry.padding[1],) * 2))
    rows: list[list[list[float]]] = [[] for _ in range(geometry.groups)]
    for group, sample in itertools.product(range(geometry.groups), range(len(padded))):
        for position in at[sample]:
            i, j = divmod(position, geometry.output[1])
            channels = range(group * per_group, (group + 1) * per_group)
            taps = itertools.product(channels, range(kh), range(kw))
            kept = np.ones(p.mask.shape) if mask is None else mask
            rows[group].append([padded[sample, c, i * sh + u * dh, j * sw + v * dw] * kept[c, i, j] for c, u, v in taps])
    return [np.array(group) for group in rows]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("geometry", CASES.values(), ids=CASES)
def test_moments_are_those_of_the_patches(geometry: Geometry, masked: bool, constant: bool) -> None:
    p = problem(geometry)
    x, mask = p.tensors("x", "mask")
    positions = p.mask[0].size
    each = [[(sample + 2 * k) % positions for k in range(-(-positions // 2))] for sample in range(geometry.samples)]
    for at in (each, [each[0]] * geometry.samples):
        where = torch.tensor(at if at is each else at[0])
        columns = patches(conv_of(geometry), x, mask if masked else None, where, constant=constant)
        total = torch.ones(geometry.groups, 1, columns.shape[1], columns.shape[1], dtype=torch.float64)
        add_moments(total, columns)
        expected = naive(p, geometry, p.mask if masked else None, at)
        expected = [np.pad(rows, ((0, 0), (0, int(constant))), constant_values=1.0) for rows in expected]
        np.testing.assert_allclose(total[:, 0], [rows.T @ rows + 1 for rows in expected], rtol=1e-12)


@pytest.mark.parametrize("padding", ["same", "valid", 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_any_padding_that_convolutions_take(padding: str | int, mode: str) -> None:
    """The weights times the patches are the layer's answer."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (5, 3), padding=padding, padding_mode=mode)
    x = torch.randn(2, 3, 6, 5)
    y = conv(x).detach()
    columns = patches(conv, x, None, torch.arange(y[0, 0].numel()), constant=True)[0]
    weights = torch.cat([conv.weight.flatten(1), conv.bias[:, None]], 1).detach()
    torch.testing.assert_close(weights @ columns, y.transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 8, 10, 20])
def test_blocks_are_those_of_the_whole_matrix(channels: int) -> None:
    geometry = Geometry(channels=channels, filters=2, padding=(1, 1))
    rows = patches(conv_of(geometry), *problem(geometry).tensors("x"), None, torch.arange(35))
    groups, blocks, size, _ = moments_shape(geometry.site, 90)
    total, whole = torch.zeros(groups, blocks, size, size, dtype=torch.float64), rows[0] @ rows[0].T
    add_moments(total, rows)
    seen = torch.zeros_like(whole)
    for block, first in zip(total[0], range(0, 9 * channels, size), strict=True):
        last = min(first + size, 9 * channels)
        torch.testing.assert_close(block[: last - first, : last - first], whole[first:last, first:last])
        assert not block[last - first :].any() and not block[:, last - first :].any()
        seen[first:last, first:last] = 1
    assert bool((seen.diagonal() == 1).all()) and size <= 90 and (size % (4 * 9) == 0 or size == 9 * channels)


def site(channels: int, groups: int = 1, kernel: tuple[int, int] = (3, 3)) -> ConvSite:
    return ConvSite(name="it", in_channels=channels, out_channels=channels, kernel=kernel, groups=groups, output_size=(4, 4))


@pytest.mark.parametrize("layers", [[site(512)] * 13, [site(2048, kernel=(1, 1))] * 60, [site(512, groups=512), *[site(1024)] * 3]])
def test_blocks_are_as_large_as_the_memory_holds(layers: list[ConvSite]) -> None:
    def needed(limit: int) -> int:
        return sum(8 * s.groups * d * min(d, limit) for s in layers for d in [s.in_channels // s.groups * s.taps])

    limit = block_limit(layers)
    assert needed(limit) <= moments.MEMORY < needed(limit + 1)
    taken = sum(8 * np.prod(moments_shape(s, limit), dtype=np.int64) for s in layers)
    assert 0.6 * moments.MEMORY < taken < 1.02 * moments.MEMORY
    assert block_limit(layers, most=300) == 300


def test_small_networks_have_whole_matrices() -> None:
    layers = [site(6), site(64), site(8, groups=2)]
    assert [moments_shape(s, block_limit(layers)) for s in layers] == [(1, 1, 54, 54), (1, 1, 576, 576), (2, 1, 36, 36)]


def test_positions_of_a_sample_are_apart_and_all_are_taken_alike() -> None:
    at = spread(torch.arange(500), 7, 30)
    assert at.shape == (500, 7) and all(len(set(row)) == 7 for row in at.tolist())
    counts = at.flatten().bincount(minlength=30)
    assert counts.min() > 0.95 * 3500 / 30 and counts.max() < 1.05 * 3500 / 30
    assert torch.equal(spread(torch.tensor([41, 3]), 7, 30), at[[41, 3]])
    assert spread(torch.arange(3), 30, 30).tolist() == [list(range(30))] * 3


def test_positions_are_taken_so_that_samples_suffice() -> None:
    assert positions_taken(1024, samples=2048, rows=144) == 32
    assert positions_taken(64, samples=2048, rows=2048) == 64
    assert positions_taken(1000, samples=10, rows=10) == 1000
    assert positions_taken(10_000, samples=256, rows=2304, columns=64) == 576


def test_a_part_of_the_positions_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = samples(400, dtype=torch.float64), varied()

    def run(size: int) -> dict[str, dict[str, Tensor]]:
        return collect(model, data, InputSquares(), input_shape=SHAPE, config=CalibrationConfig(batch_size=size)).layers

    whole = run(400)
    monkeypatch.setattr(moments, "_FEW", 1)
    some, pieces = run(400), run(37)
    for name in CONVOLUTIONS:
        torch.testing.assert_close(pieces[name]["moments"], some[name]["moments"])
        torch.testing.assert_close(some[name]["outputs"], whole[name]["outputs"])
    apart = [float((some[n]["moments"] - whole[n]["moments"]).norm() / whole[n]["moments"].norm()) for n in CONVOLUTIONS]
    assert 0.01 < max(apart) < 0.2  # 64 samples a row


def test_a_network_may_cut_its_samples_into_several() -> None:
    def halves(x: Tensor) -> Tensor:
        return torch.stack([x[:, :, :4], x[:, :, -4:]], 1).flatten(0, 1)

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(halves(x)).amax((2, 3))).unflatten(0, (-1, 2)).mean(1)

    model, data = Cut().double(), samples(6, dtype=torch.float64)
    got = collect(model, data, InputSquares(), input_shape=SHAPE).layers["conv"]["moments"][0, 0]
    columns = F.unfold(halves(data.images), 3).transpose(0, 1).flatten(1)
    torch.testing.assert_close(got, columns @ columns.T)
