"""State dicts as modules want them back."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn


def as_state_of(model: nn.Module, entries: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """`entries` as a state dict with the versions of the modules of `model`: some modules (torchvision's MNASNet) refuse one without."""
    state = OrderedDict(entries)
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    return state
