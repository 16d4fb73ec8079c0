"""The convolution that carries masks: its arithmetic, its parameters, and that nothing in dropped weights can reach the output."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.compressor.layers import MaskedConv2d
from support import reference
from support.geometries import KINDS, Geometry, problem
from support.slow_calibration import pad
from support.tolerances import FLOAT64

MODES = {
    "zeros": {"padding": (1, 2)},
    "same": {"padding": "same", "dilation": (2, 1)},
    "valid": {"padding": "valid"},
    "reflect": {"padding": (2, 1), "padding_mode": "reflect", "stride": (2, 1)},
    "circular": {"padding": "same", "padding_mode": "circular"},
    "replicate": {"padding": 1, "padding_mode": "replicate", "groups": 2},
}


def layer(*, ffp: bool = True, fwp: bool = True, **options: object) -> tuple[nn.Conv2d, MaskedConv2d, Tensor]:
    """(dense, masked, input) of 4 to 6 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, 3, **options).double()  # type: ignore[arg-type]
        x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
        ffp_mask = torch.rand(4, *conv(x).shape[2:]) < 0.6
        fwp_mask = torch.rand(conv.weight.shape) < 0.5
    return conv, MaskedConv2d.wrap(conv, ffp_mask=ffp_mask if ffp else None, fwp_mask=fwp_mask if fwp else None), x


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
@pytest.mark.parametrize(("ffp", "fwp"), [(True, True), (True, False), (False, True), (False, False)])
def test_equals_the_naive_loop_in_every_padding_mode(options: dict, ffp: bool, fwp: bool) -> None:
    conv, masked, x = layer(ffp=ffp, fwp=fwp, **options)
    weight = conv.weight.detach().numpy() * (masked.fwp_mask.numpy() if masked.fwp_mask is not None else 1)
    mask = None if masked.ffp_mask is None else masked.ffp_mask.numpy()
    bias = conv.bias.detach().numpy() if conv.bias is not None else None
    expected = reference.masked_conv2d(pad(conv, x).numpy(), weight, bias, mask, conv.stride, 0, conv.dilation, conv.groups)
    rtol, atol = FLOAT64
    np.testing.assert_allclose(masked(x).detach(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)
def test_equals_the_naive_loop_in_every_geometry(geometry: Geometry) -> None:
    p, g = problem(geometry), geometry
    conv = nn.Conv2d(g.channels, g.filters, g.kernel, **g.options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(p.w))
        conv.bias.copy_(torch.from_numpy(p.bias))  # type: ignore[union-attr]
    kept = np.abs(p.w) > 0.5
    masked = MaskedConv2d.wrap(conv, ffp_mask=torch.from_numpy(p.mask), fwp_mask=torch.from_numpy(kept))
    rtol, atol = FLOAT64
    expected = reference.masked_conv2d(p.x, p.w * kept, p.bias, p.mask, **g.options)
    np.testing.assert_allclose(masked(torch.from_numpy(p.x)).detach(), expected, rtol=rtol, atol=atol)


def test_takes_over_parameters_and_their_names() -> None:
    conv, masked, _ = layer(padding=1)
    conv.eval()
    assert masked.weight is conv.weight
    assert masked.bias is conv.bias
    assert [name for name, _ in masked.named_parameters()] == list(conv.state_dict()) == ["weight", "bias"]
    assert (masked.training, conv.training) == (True, False)
    assert MaskedConv2d.wrap(conv).training is False
    assert isinstance(masked, nn.Conv2d)
    assert MaskedConv2d.wrap(nn.Conv2d(2, 2, 1, bias=False)).bias is None
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
        assert getattr(masked, name) == getattr(conv, name)


def network(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU())


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_carries_the_masks_and_a_network_with_others_refuses_it(strict: bool, tmp_path: Path) -> None:
    conv, masked, _ = layer(padding=1)
    torch.save(network(masked).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(state["0.ffp_mask"], masked.ffp_mask) and torch.equal(state["0.fwp_mask"], masked.fwp_mask)
    assert not network(deepcopy(masked)).load_state_dict(state, strict=strict).unexpected_keys
    other = MaskedConv2d.wrap(conv, ffp_mask=masked.ffp_mask, fwp_mask=~masked.fwp_mask)
    for different in (other, MaskedConv2d.wrap(conv, ffp_mask=masked.ffp_mask)):
        with pytest.raises(RuntimeError, match=r"0\.fwp_mask is another mask than the network's; load the state into the network"):
            network(different).load_state_dict(state, strict=strict)
    if strict:
        with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "0\.ffp_mask", "0\.fwp_mask"'):
            network(nn.Conv2d(4, 6, 3)).load_state_dict(state)


def test_weights_without_masks_are_loaded_under_the_layers_own() -> None:
    """Checkpoints of the dense network, bundles, and what earlier versions saved of masked ones."""
    _, masked, x = layer(padding=1)
    again = deepcopy(masked)
    nn.init.zeros_(again.weight)
    again.load_state_dict({name: value for name, value in masked.state_dict().items() if not name.endswith("_mask")})
    assert torch.equal(again(x), masked(x))


def test_dropped_weights_get_no_gradient() -> None:
    _, masked, x = layer(padding=1)
    masked(x).square().sum().backward()
    assert masked.weight.grad is not None
    assert (masked.weight.grad[~masked.fwp_mask] == 0).all()
    assert (masked.weight.grad[masked.fwp_mask] != 0).all()


def test_nothing_in_dropped_weights_reaches_the_output() -> None:
    _, masked, x = layer(padding=1)
    before = masked(x).detach()
    with torch.no_grad():
        masked.weight[~masked.fwp_mask] = 1e30
    assert torch.equal(masked(x), before)
    assert (masked.masked_weight()[~masked.fwp_mask] == 0).all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masks_hold_under_momentum_and_weight_decay(optimizer: str) -> None:
    _, masked, x = layer(padding=1)
    twin = deepcopy(masked)
    with torch.no_grad():
        twin.weight[~twin.fwp_mask] *= -3
    for each in (masked, twin):
        steps = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
        if optimizer == "adamw":
            steps = torch.optim.AdamW(each.parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[assignment]
        for _ in range(5):
            steps.zero_grad()
            each(x).tanh().sum().backward()
            steps.step()
    assert not torch.equal(masked.weight, twin.weight)
    assert torch.equal(masked(x), twin(x))
    assert torch.equal(masked.masked_weight(), twin.masked_weight())


def test_a_copy_is_independent_and_equal() -> None:
    _, masked, x = layer(padding=1)
    copy = deepcopy(masked)
    assert torch.equal(copy(x), masked(x))
    assert copy.weight is not masked.weight
    copy.ffp_mask.fill_(False)  # type: ignore[union-attr]
    assert masked.ffp_mask.any()


def test_its_print_shows_the_kept_fractions() -> None:
    conv = nn.Conv2d(1, 1, 2)
    ffp, fwp = torch.tensor([[[True, False, False, True]]]), torch.tensor([[[[True, True], [True, False]]]])
    text = repr(MaskedConv2d.wrap(conv, ffp_mask=ffp, fwp_mask=fwp))
    assert text == "MaskedConv2d(1, 1, kernel_size=(2, 2), stride=(1, 1), ffp_kept=0.500, fwp_kept=0.750)"
    assert "kept" not in repr(MaskedConv2d.wrap(conv))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"ffp_mask": torch.ones(3, 5, 5).bool()}, r"FFP mask must be bool of shape 2x\*x\*, got torch.bool of shape \(3, 5, 5\)"),
        ({"ffp_mask": torch.ones(5, 5).bool()}, r"FFP mask must be bool of shape 2x\*x\*, got torch.bool of shape \(5, 5\)"),
        ({"ffp_mask": torch.ones(2, 5, 5)}, r"FFP mask must be bool of shape 2x\*x\*, got torch.float32 of shape \(2, 5, 5\)"),
        ({"fwp_mask": torch.ones(3, 3).bool()}, r"FWP mask must be bool of shape 4x2x3x3, got torch.bool of shape \(3, 3\)"),
        ({"fwp_mask": torch.ones(4, 2, 3, 1).bool()}, r"FWP mask must be bool of shape 4x2x3x3, got torch.bool of shape \(4, 2, 3, 1\)"),
    ],
)
def test_masks_of_the_wrong_kind_are_refused(masks: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MaskedConv2d.wrap(nn.Conv2d(2, 4, 3), **masks)


def test_another_input_size_is_refused() -> None:
    masked = MaskedConv2d.wrap(nn.Conv2d(2, 4, 3), ffp_mask=torch.ones(2, 5, 5).bool())
    masked(torch.zeros(1, 2, 7, 7))
    message = r"mask of shape \(2, 5, 5\) does not fit a 2-channel convolution with output 6x6; masks are fixed to the input size"
    with pytest.raises(UsageError, match=message):
        masked(torch.zeros(1, 2, 8, 8))
