"""What has been worked out of a mask, kept as long as the mask lives and does not change."""

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

MASKS = ("ffp_mask", "fwp_mask")
"""What a convolution calls its masks, as attributes and in its network's state dict."""

_FACTS: Any = WeakIdKeyDictionary()


def is_mask(name: str) -> bool:
    """Whether an entry of a state dict is a mask, by its name."""
    return name.rpartition(".")[2] in MASKS


def of_mask(mask: Tensor, key: Hashable, make: Callable[[Tensor], Any]) -> Any:
    """make(mask), made once."""
    now = version(mask)
    found = _FACTS.setdefault(mask, {})
    if found.get("version") != now:
        found.clear()
        found["version"] = now
    if key not in found:
        found[key] = make(mask.detach())
    return found[key]


def version(mask: Tensor | None) -> int:
    """A number that grows when a mask is written to."""
    return 0 if mask is None or mask.is_inference() else mask._version


def keeps_everything(mask: Tensor) -> bool:
    """Whether a mask that samples share drops nothing."""
    return mask.dim() == 3 and bool(of_mask(mask, "whole", lambda kept: bool(kept.all())))
