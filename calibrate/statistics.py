"""What a calibration pass leaves: additive sums per layer, on disk as safetensors beside JSON."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fineprune.common.digests import state_digest
from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import atomic_path, own_file, read_json, write_json
from fineprune.common.files import sha256 as file_digest
from fineprune.common.form import Maybe, Within, require
from fineprune.common.processes import Group
from fineprune.common.tensors import read_tensors
from fineprune.ops.mask_facts import MASKS, is_mask

from .fisher import fisher_shape
from .moments import moments_shape

if TYPE_CHECKING:
    from .convolutions import ConvSite

SCHEMA = 2
TENSORS, FACTS = "statistics.safetensors", "statistics.json"
_FORM = {
    "kind": str,
    "samples": Within(int, 0, 2**62),
    "settings": {"keep": Maybe({str: int}), "fisher": Maybe(Within(int, 4, 50)), "moments": Maybe(Within(int, 1, 2**31))},
    "layers": [str],
    "sha256": str,
}

_NO_SUM = ("groups",)
"""Fields that are the same in every part."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Sums over `samples` samples: layers[name][field] is a float64 or int64 tensor.

    `kind` is "blocks" (fields frequency, norm [C,oh,ow] or taylor [C,oh,ow], or error [C,oh,ow], outputs [1]) or "weights" (fields
    absolute, signed [C,kh,kw], taylor [F,C/g,kh,kw], taylor_group [Q,C/g,kh,kw], taylor_channel [C,kh,kw], groups [F], or fisher
    [F,blocks,size,size], or moments [g,blocks,size,size], outputs [1]). Parts that are added must agree in `settings`.
    """

    kind: str
    settings: dict[str, Any]
    samples: int = 0
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of both parts of a data set together; UsageError names the setting in which they differ."""
        if not isinstance(other, Statistics):
            return NotImplemented
        mine, theirs = {"kind": self.kind, **self.settings}, {"kind": other.kind, **other.settings}
        for key in ["kind", *sorted(self.settings.keys() | other.settings.keys())]:
            if mine.get(key) != theirs.get(key):
                raise UsageError(
                    f"statistics differ in {key}: {mine.get(key)!r} and {theirs.get(key)!r}; only parts of one calibration add up"
                )
        layers = {name: _sum(fields, other.layers[name]) for name, fields in self.layers.items()}
        return replace(self, samples=self.samples + other.samples, layers=layers)

    def total(self, group: Group) -> "Statistics":
        """The sums of all processes of a group, each of which calls this with its own part and the `samples` of the whole."""
        if group.size == 1:
            return self
        kinds = {(name, key): (value.shape, value.dtype) for name, fields in self.layers.items() for key, value in fields.items()}
        everywhere = {place: kind for part in group.gather(kinds) for place, kind in part.items()}
        layers: dict[str, dict[str, Tensor]] = {name: {} for name in self.layers}
        for (name, key), (shape, dtype) in everywhere.items():
            own = self.layers[name].get(key, torch.zeros(shape, dtype=dtype))  # a part that no gradient reached has no Taylor scores
            layers[name][key] = own if key in _NO_SUM else group.total(own)
        return replace(self, layers=layers)

    def save(self, folder: Path | str) -> None:
        """Write the folder whole or not at all; older statistics there are replaced, any other folder is refused (UsageError)."""
        from safetensors.torch import save

        check_target(folder)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            content = save({f"{name}/{key}": v.contiguous() for name, fields in self.layers.items() for key, v in fields.items()})
            (temporary / TENSORS).write_bytes(content)
            facts = {"kind": self.kind, "samples": self.samples, "settings": self.settings, "layers": list(self.layers)}
            write_json(temporary / FACTS, {"schema": SCHEMA, **facts, "sha256": sha256(content).hexdigest()})

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what `save` wrote; UsageError for a folder without statistics, RunError for a broken one."""
        folder, remedy = Path(folder), f"delete {folder} and calibrate again"
        if not (folder / FACTS).is_file():
            raise UsageError(f"{folder} holds no statistics ({FACTS} is missing); run `fineprune calibrate` first")
        facts = read_json(own_file(folder, FACTS))
        require(facts, {"schema": int}, str(folder / FACTS), f"it was edited, {remedy}")
        if facts["schema"] != SCHEMA:
            raise RunError(f"{folder / FACTS} has schema {facts['schema']}, this version reads {SCHEMA}; {remedy}")
        require(facts, _FORM, str(folder / FACTS), f"it was edited, {remedy}")
        try:
            digest = file_digest(own_file(folder, TENSORS))
        except OSError as error:
            raise RunError(f"cannot read {folder / TENSORS} ({error.strerror or error}); {remedy}") from error
        if digest != facts["sha256"]:
            raise RunError(f"{folder / TENSORS} does not match the hash in {FACTS}; it was truncated or altered, {remedy}")
        layers: dict[str, dict[str, Tensor]] = {name: {} for name in facts["layers"]}
        for key, value in read_tensors(folder / TENSORS, remedy).items():
            name, _, item = key.rpartition("/")
            if name not in layers or value.dtype not in (torch.float64, torch.int64) or not value.isfinite().all():
                kind = str(value.dtype).removeprefix("torch.")
                raise RunError(f"{folder / TENSORS}: {key} is no sum of a layer in {FACTS} ({kind}, perhaps not finite); {remedy}")
            layers[name][item] = value
        return cls(kind=facts["kind"], settings=facts["settings"], samples=facts["samples"], layers=layers)


def _sum(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """A part that no gradient reached has no Taylor scores, which is a sum of zeros."""
    return {**other, **one, **{key: one[key] + other[key] for key in one.keys() & other.keys() if key not in _NO_SUM}}


def check_fields(statistics: Statistics, sites: Iterable["ConvSite"]) -> None:
    """UsageError names the first sum that is not of its layer's shape: then the file was altered, or the network has changed."""
    for site in sites:
        per_group = site.in_channels // site.groups
        taps = (per_group, *site.kernel)
        shapes: dict[str, tuple[int | None, ...]] = {
            **dict.fromkeys(("absolute", "signed", "taylor_channel"), (site.in_channels, *site.kernel)),
            **{"taylor": (site.out_channels, *taps), "taylor_group": (None, *taps), "groups": (site.out_channels,)},
            "outputs": (1,),
        }
        if "moments" in statistics.settings:
            shapes["moments"] = moments_shape(site, statistics.settings["moments"])
        if "fisher" in statistics.settings:
            shapes["fisher"] = fisher_shape(site, statistics.settings["fisher"])
        if statistics.kind == "blocks":
            shapes = {**dict.fromkeys(("frequency", "norm", "taylor", "error"), (site.in_channels, *site.output_size)), "outputs": (1,)}
        fields = statistics.layers.get(site.name, {})
        for key, shape in shapes.items():
            value = fields.get(key)
            if value is None:
                continue
            rows = len(fields["taylor_group"]) if key == "groups" and "taylor_group" in fields else site.out_channels
            fits = len(shape) == value.ndim and all(a in (None, b) for a, b in zip(shape, value.shape, strict=True))
            if not fits or (key == "groups" and (value.dtype != torch.int64 or value.min() < 0 or value.max() >= rows)):
                raise UsageError(
                    f"the statistics of {site.name} hold {key!r} of shape {tuple(value.shape)}, not this network's; calibrate again"
                )


def check_target(folder: Path | str) -> None:
    """UsageError when saving statistics to `folder` would remove anything but older ones."""
    folder = Path(folder)
    if folder.exists() and not (folder / FACTS).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and holds no statistics; choose another output folder")


def masks_by_layer(model: nn.Module, layers: Iterable[str]) -> dict[str, Tensor]:
    """The masks that these layers carry, for `fingerprint`: those of blocks under the layer's name, others with that of the kind."""
    found: dict[str, Tensor] = {}
    for name in layers:
        for buffer in MASKS:
            if (mask := getattr(model.get_submodule(name), buffer, None)) is not None:
                found[name if buffer == MASKS[0] else f"{name}.{buffer}"] = mask
    return found


def fingerprint(model: nn.Module, masks: dict[str, Tensor] | None = None) -> str:
    """Hex digest of all parameters, buffers and the given masks: statistics belong to exactly this network."""
    state = [(name, value) for name, value in model.state_dict().items() if not is_mask(name)]  # masks are the caller's to give
    return state_digest([*state, *(masks or {}).items()])
