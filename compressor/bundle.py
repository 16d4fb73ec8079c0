"""A compressed network on disk: one folder of weights, bit-packed masks and facts. No pickle.

manifest.json        schema, model and data specs, settings, ratios asked and achieved, MACs, accuracies, hashes of the other files;
                     what the state dict holds beside tensors: metadata (versions of modules) and plain values
weights.safetensors  the state dict, dropped weights at zero
masks.safetensors    LAYER/KIND, such as ffp or fwp: uint8, eight mask elements a byte, first element in the highest bit, row-major;
                     LAYER/groups: int16 [F], filters that share taps (scope "group" only)
network.onnx         where the network came from an ONNX file: its graph, without the weights
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fineprune.calibrate.strides import answer_as_nchw
from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import as_stored, atomic_path, own_file, read_json, sha256, write_json
from fineprune.common.form import Maybe, Within, require
from fineprune.common.tensors import read_tensors
from fineprune.common.wrappers import unwrapped, without_wrappers
from fineprune.ops import mask_bits
from fineprune.ops.mask_facts import is_mask

from .bake import Masks, bake, masked_layers, masks_of
from .facts import digest_of, facts_of, measured_on
from .layers import MaskedLayer
from .masks import KINDS
from .masks.kind import label

SCHEMA = 1
MANIFEST, WEIGHTS, MASKS, GRAPH = "manifest.json", "weights.safetensors", "masks.safetensors", "network.onnx"
_SIZE = Within(int, 0, 2**31)
_FORM = {
    "mask_shapes": {str: {kind.name: Maybe([_SIZE]) for kind in KINDS}},
    "sha256": {WEIGHTS: str, MASKS: str, GRAPH: Maybe(str)},
    "measured_on": Maybe({"weights": str, "accuracy": str}),
    "state": Maybe({"metadata": {str: {}}, "values": {}}),
}
_NOT_FACTS = ("schema", "mask_shapes", "sha256", "state")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything needed to rebuild a masked network from its architecture, which is a graph where it came from an ONNX file.

    `facts` is the manifest without schema, shapes, hashes and state. `metadata` and `values` are what the network's state dict holds
    beside tensors: versions of modules, which a module's own loading may ask for (None: not known), and plain extra state.
    """

    facts: dict[str, Any]
    weights: dict[str, Tensor]
    masks: dict[str, dict[str, Tensor]]
    """By kind ("ffp", "fwp") and layer."""
    groups: dict[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None
    """Where it was read from: what such a bundle names is a file's word. None for a bundle made in this process."""

    metadata: dict[str, dict[str, Any]] | None = None
    values: dict[str, Any] = field(default_factory=dict)
    graph: bytes | None = None

    @classmethod
    def of(
        cls, model: nn.Module, facts: Mapping[str, Any], groups: Mapping[str, Tensor] | None = None, *, graph: bytes | None = None
    ) -> Self:
        """Take weights and masks from a baked network. facts: of another bundle, or your own: with an `input_shape` (C,H,W) all commands
        can read the bundle, and what else they need is counted. Accuracies measured on other weights than the network's are left out.

        RunError names a weight that is NaN or infinite, UsageError an entry of the state dict that no bundle can hold.
        """
        model = unwrapped(model)
        state = model.state_dict(keep_vars=True)  # the parameters themselves, to know them under whatever name a hook gives them
        dropped = _dropped_weights(model)
        weights, values = {}, {}
        for name, value in state.items():
            if is_mask(name):
                continue
            if not isinstance(value, Tensor):
                values[name] = _plain(name, value)
                continue
            weights[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            if id(value) in dropped:
                weights[name][dropped[id(value)]] = 0
        if (broken := _nonfinite(model)) is not None:
            raise RunError(f"{broken} has NaN or infinite values; the bundle was not written, lower the learning rate and fine-tune again")
        masks = {kind: {name: mask.cpu() for name, mask in of_kind.items()} for kind, of_kind in masks_of(model).items()}
        metadata = {name: _plain(name, dict(entry)) for name, entry in getattr(state, "_metadata", {}).items()}
        return cls(
            facts=facts_of(model, facts, _digest(weights, masks)),
            weights=weights,
            masks=masks,
            groups=dict(groups or {}),
            metadata=metadata,
            values=values,
            graph=graph,
        )

    def restore(self, model: nn.Module) -> nn.Module:
        """A copy of `model` (the dense architecture) with this bundle's masks and weights, in eval mode. RunError when it does not fit."""
        model = without_wrappers(model)
        try:
            masked = bake(model, self.masks, input_shape=self.facts.get("input_shape"))
            if "inputs" in self.facts:  # no shape to try it on: the order that every forward can read
                answer_as_nchw(layer for _, layer in masked_layers(masked) if layer.block_mask is not None)
            for name, parameter in masked.named_parameters():
                if name in self.weights and parameter.dtype != self.weights[name].dtype:
                    masked.to(self.weights[name].dtype)  # a half network comes back in float32, in which it was compressed
                    break
            state: OrderedDict[str, Any] = OrderedDict({**self.weights, **self.values})
            metadata = getattr(model.state_dict(), "_metadata", {}) if self.metadata is None else self.metadata
            state._metadata = {name: dict(entry) for name, entry in metadata.items()}  # type: ignore[attr-defined]
            masked.load_state_dict(state)
        except Exception as error:  # the network's own loading may raise anything
            cause = " ".join(str(error).split())
            raise RunError(
                f"the bundle does not fit the network {type(model).__name__}: {cause}; rebuild it with the arguments of its manifest"
            ) from error
        return masked.eval()

    def save(self, folder: Path | str) -> None:
        """Write the folder whole or not at all; an older bundle there is replaced, any other folder is refused (UsageError).

        The files are read back before they take their place: RunError where something in them is not what was written.
        """
        from safetensors.torch import save

        check_target(folder)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            shapes: dict[str, dict[str, list[int]]] = {}
            packed: dict[str, Tensor] = {f"{name}/groups": value.to(torch.int16) for name, value in self.groups.items()}
            for kind, masks in self.masks.items():
                for name, mask in masks.items():
                    shapes.setdefault(name, {})[kind] = list(mask.shape)
                    packed[f"{name}/{kind}"] = torch.from_numpy(mask_bits.pack(mask.cpu().numpy(), mask_bits.BUNDLE))
            # Not by save_file: its failures are no OSError, and only the owner may read what it writes.
            (temporary / WEIGHTS).write_bytes(save(self.weights))
            (temporary / MASKS).write_bytes(save(packed))
            if self.graph is not None:
                (temporary / GRAPH).write_bytes(self.graph)
            hashes = {name: sha256(temporary / name) for name in (WEIGHTS, MASKS, GRAPH) if (temporary / name).is_file()}
            state = {} if self.metadata is None else {"state": {"metadata": self.metadata, "values": self.values}}
            write_json(temporary / MANIFEST, {"schema": SCHEMA, **self.facts, "mask_shapes": shapes, **state, "sha256": hashes})
            if (different := _difference(self, type(self).load(temporary))) is not None:
                raise RunError(f"{different} of the bundle {folder} was read back otherwise than it was written; check the disk")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what `save` wrote. UsageError when `folder` is no bundle, RunError when a file is missing, truncated or altered."""
        folder = Path(folder)
        manifest = _read_manifest(folder)
        hashes = {name: value for name, value in manifest["sha256"].items() if name in (WEIGHTS, MASKS, GRAPH) and value is not None}
        for name in hashes:
            if not (folder / name).is_file():
                raise RunError(f"{folder / name} is missing; the bundle is incomplete, compress again")
            if sha256(own_file(folder, name)) != hashes[name]:
                raise RunError(f"{folder / name} does not match the hash in {MANIFEST}; it was truncated or altered, compress again")
        tensors = {name: read_tensors(folder / name, "compress again") for name in (WEIGHTS, MASKS)}
        graph = (folder / GRAPH).read_bytes() if GRAPH in hashes else None
        masks: dict[str, dict[str, Tensor]] = {kind.name: {} for kind in KINDS}
        for name, kinds in manifest["mask_shapes"].items():
            for kind in masks:
                if (shape := kinds.get(kind)) is not None:
                    masks[kind][name] = _unpack(tensors[MASKS].get(f"{name}/{kind}"), shape, f"{folder / MASKS}: {name}/{kind}")
        groups = {key.rpartition("/")[0]: value.long() for key, value in tensors[MASKS].items() if key.endswith("/groups")}
        facts = {key: value for key, value in manifest.items() if key not in _NOT_FACTS}
        state = manifest.get("state") or {"metadata": None, "values": {}}  # a bundle of an earlier version has none
        if "accuracy" in facts:  # an earlier version does not say whose it is
            facts.setdefault("measured_on", measured_on(_digest(tensors[WEIGHTS], masks), facts["accuracy"]))
        return cls(facts=facts, weights=tensors[WEIGHTS], masks=masks, groups=groups, folder=folder, graph=graph, **state)


def is_bundle(folder: Path | str) -> bool:
    """Whether `folder` looks like a bundle (it has a manifest)."""
    return (Path(folder) / MANIFEST).is_file()


def check_target(folder: Path | str) -> None:
    """UsageError when saving a bundle to `folder` would remove anything but an older bundle."""
    folder = Path(folder)
    if not folder.exists():
        return
    others = sorted({path.name for path in folder.iterdir()} - {MANIFEST, WEIGHTS, MASKS, GRAPH}) if folder.is_dir() else []
    if not folder.is_dir() or (others and not is_bundle(folder)):
        raise UsageError(f"{folder} exists and is not a bundle; choose another output folder")
    if others:
        raise UsageError(f"{folder} holds {others[0]!r} beside the old bundle and would be replaced; choose another output folder")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are of one type and shape and equal bit for bit (NaN too)."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _difference(a: Bundle, b: Bundle) -> str | None:
    """The name of a part in which two bundles differ, None where they are the same."""
    for what, mine, theirs in (
        ("", a.weights, b.weights),
        *((f"the {label(kind)} mask of ", a.masks[kind.name], b.masks[kind.name]) for kind in KINDS),
        ("the filter groups of ", a.groups, b.groups),
    ):
        for name in {**mine, **theirs}:
            if name not in mine or name not in theirs or not same_bits(mine[name].cpu(), theirs[name]):
                return f"{what}{name}"
    if a.graph != b.graph:
        return "the graph"
    return None if (a.metadata, a.values) == (b.metadata, b.values) else "the state"


def _digest(weights: Mapping[str, Tensor], masks: Masks) -> str:
    return digest_of({**weights, **{f"{name}/{kind}": mask for kind, of_kind in masks.items() for name, mask in of_kind.items()}})


def check_storable(bundle: Bundle) -> None:
    """UsageError for a weight that the file format cannot hold."""
    from safetensors.torch import load, save

    for name, value in bundle.weights.items():
        try:
            same = same_bits(load(save({"weight": value}))["weight"], value)
        except Exception as error:  # the library's errors have no common kind
            raise UsageError(f"{name} of the network cannot be stored ({error}); a bundle holds dense tensors of numbers") from error
        if not same:
            raise UsageError(f"{name} of the network ({value.dtype}) does not come back from a file as it was; convert it to float32")


def _plain(name: str, value: Any) -> Any:
    """`value`, which is as it was once JSON held it."""
    try:
        kept = as_stored(value)
    except (TypeError, ValueError):
        kept = None
    if kept != value:
        raise UsageError(
            f"the state {name!r} of the network is a {type(value).__name__}, and a bundle holds tensors and plain values; "
            "let the module's get_extra_state return those"
        )
    return kept


def _nonfinite(model: nn.Module) -> str | None:
    """A parameter or BatchNorm statistic with NaN or infinite values (other buffers may hold such on purpose)."""
    statistics = [(name, value) for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    return next((name for name, value in [*model.named_parameters(), *statistics] if not torch.isfinite(value).all()), None)


def _dropped_weights(model: nn.Module) -> dict[int, Tensor]:
    """Where weights are dropped, by the identity of the parameter. One that layers share is dropped only where all of them drop it."""
    layers = ((name, m) for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, MaskedLayer) and not m.computed)
    masks = {f"{name}.weight": layer.own_weight_mask for name, layer in layers}
    dropped: dict[int, Tensor] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        mask = masks.get(name)
        own = torch.zeros(weight.shape, dtype=torch.bool) if mask is None else ~mask.cpu()
        dropped[id(weight)] = own & dropped.get(id(weight), own)
    return dropped


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise UsageError(f"there is no bundle at {folder}; check the path")
    if not is_bundle(folder):
        raise UsageError(f"{folder} is not a bundle ({MANIFEST} is missing); name the output folder of `fineprune compress`")
    manifest = read_json(own_file(folder, MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise RunError(
            f"{folder / MANIFEST} has schema {found}, this version reads {SCHEMA}; compress again or use the version that wrote it"
        )
    require(manifest, _FORM, str(folder / MANIFEST), "it was edited, compress again")
    return manifest


def _unpack(packed: Tensor | None, shape: list[int], where: str) -> Tensor:
    if packed is None or packed.dtype != torch.uint8 or packed.numel() != mask_bits.size(math.prod(shape)) or len(shape) > 4:
        raise RunError(f"{where} does not hold a mask of shape {shape!r:.80}; the bundle is damaged, compress again")
    return torch.from_numpy(mask_bits.unpack(packed.numpy(), shape, mask_bits.BUNDLE))
