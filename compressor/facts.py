"""What a bundle says of its network: counted from the network itself, and measured on exactly these weights or left out."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from .macs import count_macs
from .masks import in_order

_MEASURED = ("masked", "reconstructed", "batchnorm_recalibrated", "finetuned")
"""Accuracies of the compressed network; the others are of the dense one, which stays what it was."""

NOT_MEASURED = "the compressed network was not measured with these weights"


def facts_of(model: nn.Module, facts: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """`facts` for a bundle of `model`, whose weights and masks have `digest`.

    Facts that were taken over from another bundle (`measured_on` has another digest) lose the accuracies of its weights, unless new ones
    are in their place. With an `input_shape`, what is missing is counted or filled in, so that every command can read the bundle;
    structured `inputs` leave nothing to count on: what was counted under the same masks stays.
    """
    facts = dict(facts)
    accuracy: dict[str, Any] = dict(facts.get("accuracy") or {})
    stamp: dict[str, str] = facts.get("measured_on") or {"weights": digest}
    others = stamp["weights"] != digest
    if others and stamp == measured_on(stamp["weights"], accuracy):
        accuracy = {key: value for key, value in accuracy.items() if key not in _MEASURED}
        accuracy["note"] = NOT_MEASURED
    if "input_shape" in facts:
        facts["input_shape"] = list(facts["input_shape"])
        if others or "macs" not in facts:
            facts |= _counted(model, facts)
    if {"input_shape", "inputs"} & facts.keys():
        facts = {"model": None, "data": None, "training": {}, "left_dense": [], "machine": {}, **facts}
        accuracy |= {key: value for key, value in {"split": "test", "samples": 0}.items() if key not in accuracy}
    return {**facts, "accuracy": accuracy, "measured_on": measured_on(digest, accuracy)} if accuracy else facts


def measured_on(digest: str, accuracy: Mapping[str, Any]) -> dict[str, str]:
    """The stamp that says whose accuracies these are: digests of the weights and masks, and of the accuracies themselves."""
    return {"weights": digest, "accuracy": sha256(json.dumps(accuracy, sort_keys=True).encode()).hexdigest()}


def _counted(model: nn.Module, facts: Mapping[str, Any]) -> dict[str, Any]:
    report = count_macs(model, facts["input_shape"])
    ratios = facts.get("ratios", {})
    achieved = report.pruned(in_order(ratios.get("achieved", ())))
    return {
        "ratios": {"asked": ratios.get("asked", achieved), "achieved": achieved},
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
