"""torch's attention with its projection of inputs as a layer, which can carry masks.

    nn.MultiheadAttention    in_proj_weight [3E,E], in_proj_bias [3E]    parameters of its own
    SplitAttention           in_proj.weight, in_proj.bias                of an nn.Linear, which it multiplies with as before

State dicts are those of torch's: a checkpoint of either fits the other.
"""

from typing import Any

from torch import Tensor, nn

IN_PROJ = "in_proj"
_NAMES = {f"{IN_PROJ}_{name}": f"{IN_PROJ}.{name}" for name in ("weight", "bias")}


class SplitAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention, whose `in_proj` is a layer."""

    in_proj: nn.Linear

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """[3E,E], under its masks."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """[3E]."""
        return self.in_proj.bias

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """By torch's names."""
        state, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        for theirs, ours in _NAMES.items():
            if prefix + ours in state:
                state[prefix + theirs] = state.pop(prefix + ours)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for theirs, ours in _NAMES.items():
            if prefix + theirs in state_dict:
                state_dict[prefix + ours] = state_dict.pop(prefix + theirs)
        super()._load_from_state_dict(state_dict, prefix, *args)


def split(model: nn.Module) -> nn.Module:
    """`model` itself, whose torch attention of one embedding is a `SplitAttention`; subclasses of torch's stay as they are."""
    for module in list(model.modules()):
        if type(module) is nn.MultiheadAttention and (weight := module._parameters.get("in_proj_weight")) is not None:
            _, bias = (module._parameters.pop(name) for name in _NAMES)
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
            module.__class__ = SplitAttention
            module.in_proj = layer.train(module.training)
    return model


def join(model: nn.Module) -> None:
    """Undo `split`."""
    for module in list(model.modules()):
        if isinstance(module, SplitAttention):
            layer = module.in_proj
            del module.in_proj
            module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
            for name, value in zip(_NAMES, (layer.weight, layer.bias), strict=True):
                module.register_parameter(name, value)  # type: ignore[arg-type]
