"""That a bundle gives back the network that went into it: tried before any work, and again before a run is called done."""

import torch
from torch import Tensor, nn

from fineprune.calibrate.convolutions import evaluating
from fineprune.calibrate.steadiness import difference
from fineprune.common.errors import RunError
from fineprune.common.inputs import Inputs, answer, floats
from fineprune.compressor.bundle import Bundle, check_storable, same_bits

_TOLERANCE = 1e-4
"""Of the largest output: what the same weights may differ by when a library adds up in another order."""


def check_before(model: nn.Module, fresh: nn.Module, images: Inputs) -> None:
    """Errors where an untouched copy of `model` would not come back from a bundle; `fresh` is the network as later commands build it."""
    _outputs(model, images)  # some networks make buffers at their first forward
    bundle = Bundle.of(model, {})
    check_storable(bundle)
    check_restored(bundle, model, fresh, images)


def check_restored(bundle: Bundle, model: nn.Module, fresh: nn.Module, images: Inputs) -> nn.Module:
    """The network that `bundle` makes of `fresh`. RunError unless it has the state of `model` and its outputs for a batch."""
    try:
        restored = bundle.restore(fresh)
    except RunError as error:
        raise RunError(f"a bundle of this network could not be read again: {error}") from error
    held, again = bundle.weights, restored.state_dict()
    different = next((name for name in held if name not in again or not same_bits(held[name], again[name].cpu())), None)
    if different is not None:
        raise RunError(
            f"a bundle of this network would change {different}: loading the state dict does not give it back as it was; "
            "see the network's own state_dict and load_state_dict, or their hooks"
        )
    expected = _outputs(model, images)
    if difference(expected, _outputs(model, images)) > _TOLERANCE:
        return restored  # its outputs vary by themselves
    if difference(expected, _outputs(restored.to(_device(model)), images)) > _TOLERANCE:
        raise RunError(
            "a bundle of this network would compute other outputs: some of what it computes with is not in its state dict; "
            "register that as a parameter or a persistent buffer, or make it alike each time that the network is built"
        )
    return restored


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _outputs(model: nn.Module, images: Inputs) -> list[Tensor]:
    inputs = images.to(_device(model), copy=True)
    if isinstance(inputs, Tensor):
        inputs = inputs.to(next((p.dtype for p in model.parameters()), inputs.dtype))
    with evaluating(model), torch.no_grad():
        return [output.cpu() for output in floats(answer(model, inputs))]
