"""A compressed network on disk: one folder of weights, bit-packed masks and facts. No pickle.

manifest.json        schema, model and data specs, settings, ratios asked and achieved, MACs, accuracies, hashes of the other files
weights.safetensors  the state dict, dropped weights at zero
masks.safetensors    LAYER/ffp and LAYER/fwp: uint8, eight mask elements a byte, first element in the highest bit, row-major;
                     LAYER/groups: int16 [F], filters that share taps (scope "group" only)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import RunError, UsageError
from ..common.files import atomic_path, read_json, sha256, write_json
from ..common.form import Maybe, require
from ..common.wrappers import unwrapped, without_wrappers
from .bake import bake, masks_of
from .layers import MaskedConv2d

SCHEMA = 1
MANIFEST, WEIGHTS, MASKS = "manifest.json", "weights.safetensors", "masks.safetensors"
_FORM = {"mask_shapes": {str: {"ffp": Maybe([int]), "fwp": Maybe([int])}}, "sha256": {WEIGHTS: str, MASKS: str}}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything needed to rebuild a masked network from its architecture. `facts` is the manifest without schema, shapes and hashes."""

    facts: dict[str, Any]
    weights: dict[str, Tensor]
    ffp_masks: dict[str, Tensor]
    fwp_masks: dict[str, Tensor]
    groups: dict[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None
    """Where it was read from: what such a bundle names is a file's word. None for a bundle made in this process."""

    @classmethod
    def of(cls, model: nn.Module, facts: Mapping[str, Any], groups: Mapping[str, Tensor] | None = None) -> Self:
        """Take weights and masks from a baked network; RunError names a weight that is NaN or infinite."""
        model = unwrapped(model)
        weights = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
        for name, value in weights.items():
            if not torch.isfinite(value).all():
                raise RunError(
                    f"{name} has NaN or infinite values; the bundle was not written, lower the learning rate and fine-tune again"
                )
        for name, dropped in _dropped_weights(model).items():
            weights[name][dropped] = 0
        ffp, fwp = masks_of(model)
        return cls(facts=dict(facts), weights=weights, ffp_masks=_on_cpu(ffp), fwp_masks=_on_cpu(fwp), groups=dict(groups or {}))

    def restore(self, model: nn.Module) -> nn.Module:
        """A copy of `model` (the dense architecture) with this bundle's masks and weights, in eval mode. RunError when it does not fit."""
        model = without_wrappers(model)
        try:
            masked = bake(model, ffp_masks=self.ffp_masks, fwp_masks=self.fwp_masks)
            masked.load_state_dict(self.weights)
        except (UsageError, RuntimeError) as error:
            cause = " ".join(str(error).split())
            raise RunError(
                f"the bundle does not fit the network {type(model).__name__}: {cause}; rebuild it with the arguments of its manifest"
            ) from error
        return masked.eval()

    def save(self, folder: Path | str) -> None:
        """Write the folder whole or not at all; an older bundle there is replaced, any other folder is refused (UsageError)."""
        from safetensors.torch import save

        check_target(folder)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            shapes: dict[str, dict[str, list[int]]] = {}
            packed: dict[str, Tensor] = {f"{name}/groups": value.to(torch.int16) for name, value in self.groups.items()}
            for kind, masks in (("ffp", self.ffp_masks), ("fwp", self.fwp_masks)):
                for name, mask in masks.items():
                    shapes.setdefault(name, {})[kind] = list(mask.shape)
                    packed[f"{name}/{kind}"] = torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))
            # Not by save_file: its failures are no OSError, and only the owner may read what it writes.
            (temporary / WEIGHTS).write_bytes(save(self.weights))
            (temporary / MASKS).write_bytes(save(packed))
            hashes = {name: sha256(temporary / name) for name in (WEIGHTS, MASKS)}
            write_json(temporary / MANIFEST, {"schema": SCHEMA, **self.facts, "mask_shapes": shapes, "sha256": hashes})

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what `save` wrote. UsageError when `folder` is no bundle, RunError when a file is missing, truncated or altered."""
        folder = Path(folder)
        manifest = _read_manifest(folder)
        tensors = {}
        for name in (WEIGHTS, MASKS):
            if not (folder / name).is_file():
                raise RunError(f"{folder / name} is missing; the bundle is incomplete, compress again")
            if sha256(folder / name) != manifest["sha256"][name]:
                raise RunError(f"{folder / name} does not match the hash in {MANIFEST}; it was truncated or altered, compress again")
            tensors[name] = _load_tensors(folder / name)
        masks: dict[str, dict[str, Tensor]] = {"ffp": {}, "fwp": {}}
        for name, kinds in manifest["mask_shapes"].items():
            for kind in masks:
                if (shape := kinds.get(kind)) is not None:
                    masks[kind][name] = _unpack(tensors[MASKS].get(f"{name}/{kind}"), shape, f"{folder / MASKS}: {name}/{kind}")
        groups = {key.rpartition("/")[0]: value.long() for key, value in tensors[MASKS].items() if key.endswith("/groups")}
        facts = {key: value for key, value in manifest.items() if key not in ("schema", "mask_shapes", "sha256")}
        return cls(facts=facts, weights=tensors[WEIGHTS], ffp_masks=masks["ffp"], fwp_masks=masks["fwp"], groups=groups, folder=folder)


def is_bundle(folder: Path | str) -> bool:
    """Whether `folder` looks like a bundle (it has a manifest)."""
    return (Path(folder) / MANIFEST).is_file()


def check_target(folder: Path | str) -> None:
    """UsageError when saving a bundle to `folder` would remove anything but an older bundle."""
    folder = Path(folder)
    if not folder.exists():
        return
    others = sorted({path.name for path in folder.iterdir()} - {MANIFEST, WEIGHTS, MASKS}) if folder.is_dir() else []
    if not folder.is_dir() or (others and not is_bundle(folder)):
        raise UsageError(f"{folder} exists and is not a bundle; choose another output folder")
    if others:
        raise UsageError(f"{folder} holds {others[0]!r} beside the old bundle and would be replaced; choose another output folder")


def _dropped_weights(model: nn.Module) -> dict[str, Tensor]:
    """Where weights are dropped, by their name in the state dict. One that layers share is dropped only where all of them drop it."""
    masks = {f"{name}.weight": m.fwp_mask for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, MaskedConv2d)}
    named = list(model.named_parameters(remove_duplicate=False))
    dropped: dict[int, Tensor] = {}
    for name, weight in named:
        mask = masks.get(name)
        own = torch.zeros(weight.shape, dtype=torch.bool) if mask is None else ~mask.cpu()
        dropped[id(weight)] = own & dropped.get(id(weight), own)
    return {name: dropped[id(weight)] for name, weight in named if name in masks}


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise UsageError(f"there is no bundle at {folder}; check the path")
    if not is_bundle(folder):
        raise UsageError(f"{folder} is not a bundle ({MANIFEST} is missing); name the output folder of `fineprune compress`")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise RunError(
            f"{folder / MANIFEST} has schema {found}, this version reads {SCHEMA}; compress again or use the version that wrote it"
        )
    require(manifest, _FORM, str(folder / MANIFEST), "it was edited, compress again")
    return manifest


def _load_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {path}: {error}; compress again") from error


def _unpack(packed: Tensor | None, shape: list[int], where: str) -> Tensor:
    size = math.prod(shape)
    if packed is None or packed.dtype != torch.uint8 or packed.numel() != -(-size // 8) or min(shape, default=0) < 0:
        raise RunError(f"{where} does not hold a mask of shape {shape}; the bundle is damaged, compress again")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=size).astype(bool)).view(*shape)


def _on_cpu(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mask.cpu() for name, mask in masks.items()}
