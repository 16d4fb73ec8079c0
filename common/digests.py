"""A hash of named values: two networks with the same one hold the same numbers."""

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any


def state_digest(state: Iterable[tuple[str, Any]]) -> str:
    """Hex digest of (name, tensor) pairs in their order, as of `state_dict().items()`; what is no tensor counts by its text."""
    import torch

    digest = sha256()
    for name, value in state:
        if not isinstance(value, torch.Tensor):  # what a module's get_extra_state returns
            digest.update(f"{name} {value!r}".encode())
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
