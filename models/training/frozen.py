"""What training leaves alone: modules that were given in eval mode, and normalisation whose parameters are all frozen.

torch users freeze a BatchNorm by eval() and requires_grad False; model.train() would set it going again, and no optimizer is needed to
change its statistics.
"""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that stay in eval mode while `model` trains.

    Those in eval mode within a network in training mode (a network in eval mode as a whole is the usual one and says nothing), and
    normalisation layers with parameters of which none requires a gradient.
    """
    return [module for module in model.modules() if (model.training and not module.training) or _is_frozen(module)]


def running_norms(model: nn.Module) -> list[_NormBase]:
    """Normalisation layers that keep running statistics, the frozen ones left out."""
    frozen = {id(module) for module in frozen_modules(model)}
    norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.running_mean is not None]
    return [norm for norm in norms if id(norm) not in frozen]


def start_training(model: nn.Module, frozen: Sequence[nn.Module]) -> None:
    """Training mode for all of `model` but `frozen`."""
    model.train()
    for module in frozen:
        module.training = False


def frozen_line(model: nn.Module) -> str | None:
    """One line that names the normalisation layers which keep their statistics; None where there are none."""
    kept = {id(module) for module in frozen_modules(model)}
    names = [name for name, module in model.named_modules() if isinstance(module, _NormBase) and id(module) in kept]
    if not names:
        return None
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"frozen, so its statistics stay: {', '.join(names[:3])}{more} (eval mode, or no parameter requires a gradient)"


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return isinstance(module, _NormBase) and bool(parameters) and not any(p.requires_grad for p in parameters)
