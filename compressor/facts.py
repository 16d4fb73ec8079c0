"""What a bundle says of its network: counted from the network itself, and measured on exactly these weights or left out."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from .macs import count_macs

_MEASURED = ("masked", "batchnorm_recalibrated", "finetuned")
"""Accuracies of the compressed network; the others are of the dense one, which stays what it was."""


def facts_of(model: nn.Module, facts: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """`facts` for a bundle of `model`, whose weights and masks have `digest`.

    Facts that were taken over from another bundle (`measured_on` is another digest) lose the accuracies of its weights. With an
    `input_shape`, what is missing is counted or filled in, so that every command can read the bundle.
    """
    others = "measured_on" in facts and facts["measured_on"] != digest
    facts = dict(facts)
    if others and isinstance(facts.get("accuracy"), Mapping):
        facts["accuracy"] = {key: value for key, value in facts["accuracy"].items() if key not in _MEASURED}
    if "input_shape" in facts:
        facts["input_shape"] = list(facts["input_shape"])
        if others or "macs" not in facts:
            facts |= _counted(model, facts)
        facts = {"model": None, "data": None, "accuracy": {}, "training": {}, "left_dense": [], "machine": {}, **facts}
        facts["accuracy"] = {"split": "test", "samples": 0, **facts["accuracy"]}
    return {**facts, "measured_on": digest} if "accuracy" in facts else facts


def _counted(model: nn.Module, facts: Mapping[str, Any]) -> dict[str, Any]:
    report = count_macs(model, facts["input_shape"])
    asked = facts.get("ratios", {}).get("asked", report.pruned)
    return {
        "ratios": {"asked": asked, "achieved": report.pruned},
        "macs": report.to_json(),
        "conv_macs_kept": report.conv_macs / max(report.conv_macs_dense, 1),
    }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of named CPU tensors."""
    digest = sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
