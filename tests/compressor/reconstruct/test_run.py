"""The whole reconstruction against one that keeps every activation and refits by numpy; where passes start; interruption; what is left."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import RunError, UsageError
from fineprune.compressor.bake import bake, masked_layers
from fineprune.compressor.prune import CalibrationRun
from fineprune.compressor.reconstruct.passes import Starts, forward
from fineprune.compressor.reconstruct.refit import RIDGE
from fineprune.compressor.reconstruct.run import ReconstructConfig, Reconstructed, reconstruct
from support.networks import CONVOLUTIONS, SHAPE, samples, varied


def calibration(source: object = None, folder: Path | None = None, progress: object = None) -> CalibrationRun:
    options: Any = {"progress": progress} if progress else {}
    options["source"] = samples() if source is None else source
    return CalibrationRun(input_shape=SHAPE, config=CalibrationConfig(data="noise"), folder=folder, **options)


def masked_of(dense: nn.Module, names: list[str], *, keep: float = 0.6) -> nn.Module:
    """`dense` under random masks of blocks and weights; every layer keeps some."""
    random = torch.Generator().manual_seed(5)
    outputs: dict[str, Tensor] = {}
    hooks = [dense.get_submodule(n).register_forward_hook(lambda m, x, y, n=n: outputs.update({n: y})) for n in names]
    dense(torch.zeros(2, *SHAPE))
    for hook in hooks:
        hook.remove()
    masks: dict[str, dict[str, Tensor]] = {"ffp": {}, "fwp": {}}
    for name in names:
        conv = dense.get_submodule(name)
        masks["ffp"][name] = torch.rand(conv.in_channels, *outputs[name].shape[2:], generator=random) < keep  # type: ignore[arg-type]
        masks["fwp"][name] = torch.rand(conv.weight.shape, generator=random) < keep  # type: ignore[arg-type]
    return bake(dense, masks, input_shape=SHAPE)


def single(seed: int = 0) -> nn.Module:
    return varied(seed, dtype=torch.float32).eval()


def input_and_output(model: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, x, y: seen.append((x[0].clone(), y.clone())))
    with torch.no_grad():
        model(images.clone())
    hook.remove()
    return seen[0]


def naively_refitted(dense: nn.Module, masked: nn.Module, images: Tensor) -> None:
    """One filter after the other by least squares, on all patches that torch unfolds."""
    for name in CONVOLUTIONS:
        layer = dict(masked_layers(masked))[name]
        x, _ = input_and_output(masked, name, images)
        _, y = input_and_output(dense, name, images)
        pads = layer._reversed_padding_repeated_twice
        x = F.pad(x, pads, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
        (kh, kw), per_group = layer.kernel_size, layer.in_channels // layer.groups
        columns = F.unfold(x, (kh, kw), stride=layer.stride, dilation=layer.dilation).double()
        columns = columns.view(len(x), layer.in_channels, kh * kw, -1) * layer.ffp_mask.flatten(1)[:, None]
        weight = layer.weight.detach().clone()
        for f in range(layer.out_channels):
            group = f // (layer.out_channels // layer.groups)
            own = columns[:, group * per_group : (group + 1) * per_group].flatten(1, 2).transpose(0, 1).flatten(1)
            root = (RIDGE * own.square().sum(1).mean()).sqrt() or torch.tensor(1.0)  # a channel that is always zero
            stay = layer.fwp_mask[f].flatten().nonzero().flatten()
            before = layer.weight[f].detach().flatten()[stay].double()
            system = torch.cat([own[stay].T, root * torch.eye(len(stay))])
            wanted = torch.cat([y[:, f].flatten().double(), root * before])
            if layer.bias is not None:
                system = torch.cat([system, torch.cat([torch.ones(own.shape[1], 1), torch.zeros(len(stay), 1)])], 1)
            found = torch.from_numpy(np.linalg.lstsq(system.numpy(), wanted.numpy(), rcond=None)[0]).float()
            weight[f] = torch.zeros(weight[f].numel()).scatter(0, stay, found[: len(stay)]).view(weight[f].shape)
            if layer.bias is not None:
                layer.bias.data[f] = found[-1]
        layer.weight.data.copy_(weight)


def test_all_layers_are_those_of_the_naive_reconstruction() -> None:
    dense, source = single(4), samples()
    masked, expected = masked_of(dense, CONVOLUTIONS), masked_of(dense, CONVOLUTIONS)
    result = reconstruct(dense, masked, calibration(source))
    naively_refitted(dense, expected, source.images)
    assert result.layers == CONVOLUTIONS and result.images == len(source)
    assert [(s.name, s.reason) for s in result.left] == [("head", "it carries no masks")]
    for name in CONVOLUTIONS:
        for one, other in zip(conv_at_name(masked, name).parameters(), conv_at_name(expected, name).parameters(), strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4), name


def conv_at_name(model: nn.Module, name: str) -> nn.Conv2d:
    conv = model.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    return conv


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def refitted(config: ReconstructConfig | None = None, run: CalibrationRun | None = None, seed: int = 0) -> dict[str, Tensor]:
    dense = single(seed)
    masked = masked_of(dense, CONVOLUTIONS)
    reconstruct(dense, masked, run or calibration(), config)
    return state(masked)


def test_the_memory_decides_how_often_the_network_runs_and_nothing_else() -> None:
    several = samples(300)  # three batches
    assert same(refitted(run=calibration(several)), refitted(ReconstructConfig(memory_bytes=0), calibration(several)))


def test_drawn_positions_are_a_seeded_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fineprune.calibrate.moments._FEW", 1)
    few, again, all_of_them = refitted(ReconstructConfig(columns=3)), refitted(ReconstructConfig(columns=3)), refitted()
    assert same(few, again)
    assert not same(few, all_of_them)


class _Interrupted:
    """Progress that stops a run before layer `at`."""

    def __init__(self, at: int | None) -> None:
        self.at, self.begun = at, -1

    def __call__(self, items: object, *, total: int | None, description: object, start: int = 0):  # type: ignore[no-untyped-def]
        self.begun = start
        for item in items:  # type: ignore[attr-defined]
            if item == self.at:
                raise KeyboardInterrupt
            yield item

    def log(self, message: str) -> None: ...


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        refitted(run=calibration(folder=tmp_path, progress=_Interrupted(3)))
    again = _Interrupted(None)
    assert same(refitted(run=calibration(folder=tmp_path, progress=again)), refitted())
    assert again.begun == 3
    other = _Interrupted(None)
    refitted(run=calibration(folder=tmp_path, progress=other), seed=1)
    assert other.begun == 0  # of another network


def test_a_kept_layer_that_is_not_of_its_shape_is_named(tmp_path: Path) -> None:
    refitted(run=calibration(folder=tmp_path))
    first, second = sorted((tmp_path / "reconstruction").glob("*.safetensors"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(RunError, match="does not hold the weights of its layer"):
        refitted(run=calibration(folder=tmp_path))


class Twins(nn.Module):
    """Two layers of one weight, the second of which runs twice, and one that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.second = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.second.weight = self.first.weight
        self.idle = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.second(torch.tanh(self.first(x))))).mean((2, 3))


def twins(*, alike: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = Twins().eval()
    first = torch.rand(3, 3, 3, 3) < 0.6
    masks = {"first": first, "second": first if alike else ~first, "idle": torch.ones(3, 3, 1, 1, dtype=torch.bool)}
    return dense, bake(dense, {"fwp": masks})


def test_layers_that_share_a_weight_are_refitted_together_over_all_their_calls() -> None:
    dense, masked = twins(alike=True)
    before = deepcopy(masked)
    source = samples()
    result = reconstruct(dense, masked, calibration(source))
    assert result.layers == ["first", "second"]
    assert [(s.name, s.reason) for s in result.left] == [("idle", "the forward pass does not call it")]
    with torch.no_grad():
        columns, wanted = [], []
        x, y = source.images, source.images
        for name in ("first", "second", "second"):
            out = conv_at_name(dense, name)(y)
            columns.append(F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1).double())
            wanted.append(out.transpose(0, 1).flatten(1).double())
            x, y = torch.tanh(conv_at_name(before, name)(x)), torch.tanh(out)
    rows, outputs = torch.cat(columns, 1), torch.cat(wanted, 1)
    root = (RIDGE * rows.square().sum(1).mean()).sqrt()
    weight = conv_at_name(before, "first").weight.detach()
    for f, kept in enumerate(conv_at_name(before, "first").fwp_mask.flatten(1)):
        stay = kept.nonzero().flatten()
        system = torch.cat([rows[stay].T, root * torch.eye(len(stay))])
        target = torch.cat([outputs[f], root * weight[f].flatten()[stay]])
        found = torch.from_numpy(np.linalg.lstsq(system.numpy(), target.numpy(), rcond=None)[0])
        assert torch.allclose(conv_at_name(masked, "first").weight[f].flatten()[stay].double(), found, atol=1e-4)


def test_layers_that_share_a_weight_under_other_masks_keep_it() -> None:
    dense, masked = twins(alike=False)
    before = state(masked)
    result = reconstruct(dense, masked, calibration())
    assert same(before, state(masked))
    assert {s.name: "shares its weight" in s.reason for s in result.left} == {"first": True, "second": True, "idle": False}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + x)


def test_passes_start_at_blocks_and_at_the_layers_of_a_chain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(), Residual(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    names = ["0", "1.conv1", "1.conv2", "2.conv1", "2.conv2", "3"]
    starts = Starts(model, torch.randn(2, 3, 6, 6), torch.randn(1, 3, 6, 6), names)
    assert [starts.before(name, 1e9) for name in names] == ["0", "1", "1", "2", "2", "3"]
    assert [starts.before(name, 120) for name in names] == ["0"] * 6  # 4x6x6 numbers are too many to keep


class Counting(nn.Module):
    """Asks for the size of the batch before its layers and needs it after them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Sequential(Residual(), Residual()), nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        samples = x.shape[0]
        return self.head(self.body(self.stem(x) + 1).view(samples, -1))


def test_where_the_network_counts_its_samples_what_comes_before_a_start_computes_nothing() -> None:
    torch.manual_seed(0)
    model = Counting().eval()
    names = ["stem", "body.0.conv1", "body.0.conv2", "body.1.conv1"]
    starts = Starts(model, torch.randn(2, 3, 6, 6), torch.randn(1, 3, 6, 6), names)
    assert [starts.before(name, 1e9) for name in names] == ["stem", "body.0", "body.0", "body.1"]
    lead, start = starts.to("body.1", torch.randn(5, 4, 6, 6))
    assert len(lead) == 5 and [idle.layer for idle in start.idle] == [model.stem, model.body[0]]
    calls: list[nn.Module] = []
    for layer in (model.stem, model.body[0].conv1, model.body[1].conv1):
        layer.register_forward_hook(lambda layer, args, y: calls.append(layer) if y.any() else None)
    torch.testing.assert_close(forward(model, lead, start), model.head(model.body[1](start.value).flatten(1)))
    assert calls == [model.body[1].conv1] * 2
    assert "forward" not in vars(model.stem)


class Remembering(nn.Module):
    """Leaves an activation on itself that is read much later: no module's input is all that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.mean((1, 2, 3), keepdim=True)
        return (self.third(self.second(self.first(x))) * self.mean).flatten(1)


def test_no_pass_starts_where_the_network_reads_something_else_too() -> None:
    torch.manual_seed(0)
    starts = Starts(Remembering().eval(), torch.randn(2, *SHAPE), torch.randn(1, *SHAPE), ["first", "second", "third"])
    assert [starts.before(name, 1e9) for name in ("first", "second", "third")] == [None] * 3


def test_a_network_without_masks_has_nothing_to_refit() -> None:
    dense = single()
    result = reconstruct(dense, deepcopy(dense), calibration())
    assert result.layers == [] and len(result.left) == len(CONVOLUTIONS) + 1


def test_inputs_that_are_not_finite_and_no_inputs_are_refused() -> None:
    source = samples()
    source.images[3] = torch.nan
    with pytest.raises(RunError, match="stem has inputs or outputs that are NaN"):
        refitted(run=calibration(source))
    with pytest.raises(RunError, match="no samples to reconstruct on"):
        refitted(run=calibration(samples(0)))


@pytest.mark.parametrize("wrong", [{"images": 0}, {"columns": True}, {"memory_bytes": -1}, {"images": 2.5}])
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ReconstructConfig(**wrong)


def test_the_answers_come_nearer_to_the_dense_ones() -> None:
    dense, source = single(), samples(200)
    masked = masked_of(dense, CONVOLUTIONS)
    with torch.no_grad():
        wanted, before = dense(source.images), masked(source.images)
        result: Reconstructed = reconstruct(dense, masked, calibration(source))
        assert (masked(source.images) - wanted).square().mean() < 0.8 * (before - wanted).square().mean()
    assert result.seconds > 0
