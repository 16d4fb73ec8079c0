"""Masks to look at: a picture of each layer, and its channels one by one, with the statistics that they were chosen by.

Pictures stand in the page as they are. For the channels, masks travel as bits and statistics as bytes, both deflated, and `page.js` draws
them. A page has a budget: the smallest layers are given exactly until it is spent, larger ones as averages over cells.
"""

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.calibrate.statistics import Statistics
from fineprune.common.errors import RunError
from fineprune.compressor.masks import KINDS
from fineprune.compressor.masks.kind import label
from fineprune.ops import mask_bits

from .markup import data, note, section, shares_png, text
from .sources import Sources

BUDGET = 3 * 2**20
"""Letters that exact masks may take in a page, and as many again statistics."""
CELLS = 2**14
"""Of a layer that is given as averages."""
_THUMBNAIL = (48, 96)
"""The most rows and columns of a layer's small picture."""
_SUMS = {
    "frequency": "samples that kept the block",
    "norm": "norm of the block, added up",
    "taylor": "Taylor score",
    "error": "error where the block is dropped",
    "absolute": "accumulated input, without signs",
    "signed": "accumulated input",
    "taylor_channel": "Taylor score of the channel's tap",
}
"""Statistics that have a value for each block or tap, and how they are called here."""

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class _Masks:
    """Of one layer, each None where it has none: blocks bool [C,oh,ow], weights bool [F,C/g,taps]; `taps`: rows and columns of a kernel."""

    name: str
    blocks: Array | None
    weights: Array | None
    taps: tuple[int, int]


def masks(sources: Sources) -> str:
    """Small pictures of all layers, and a browser of channels where scripts run."""
    found = [_Masks(name=name, **_of(sources, name)) for name in _names(sources)]
    if not found:
        return ""
    return section("Masks", _browser(sources, found), _pictures(found), name="masks")


def _names(sources: Sources) -> list[str]:
    """Layers with masks, in the order of the network."""
    masked = dict.fromkeys(name for kind in KINDS for name in sources.bundle.masks[kind.name])
    order = [layer["name"] for layer in sources.facts["macs"]["layers"]]
    return sorted(masked, key=lambda name: order.index(name) if name in order else len(order))


def _of(sources: Sources, name: str) -> dict[str, Any]:
    """Fields of `_Masks`; of a convolution over one or three axes, the first ones are put together. RunError for no mask of a layer."""
    blocks = weights = None
    taps = (1, 1)
    for kind in KINDS:
        mask = sources.bundle.masks[kind.name].get(name)
        if mask is None:
            continue
        if mask.ndim < 2 or not mask.numel():
            raise RunError(f"the {label(kind)} mask of {name} has shape {list(mask.shape)}; the bundle was edited, compress again")
        if (shape := kind.as_block_mask(mask)) is not None:
            blocks = shape.numpy().reshape(len(shape), -1, shape.shape[-1])
        if (shape := kind.as_weight_mask(mask)) is not None:
            last = shape.shape[-1] if shape.ndim > 2 else 1
            weights = shape.numpy().reshape(len(shape), shape.shape[1], -1)
            taps = (max(weights.shape[2] // max(last, 1), 1), last)
    return {"blocks": blocks, "weights": weights, "taps": taps}


def _pictures(found: Sequence[_Masks]) -> str:
    """By kind, a picture of each layer."""
    shown = {
        "Blocks: at each output position, the share of channels whose block is kept": [
            (place, layer.blocks.mean(0), layer.blocks.mean()) for place, layer in enumerate(found) if layer.blocks is not None
        ],
        "Weights: a row for each filter, a column for each tap of each channel": [
            (place, layer.weights.reshape(len(layer.weights), -1), layer.weights.mean())
            for place, layer in enumerate(found)
            if layer.weights is not None
        ],
    }
    parts = []
    for title, layers in shown.items():
        pictures = "".join(
            f'<a href="#layer={place}"><img alt="" src="{shares_png(averaged(values, _THUMBNAIL))}">'
            f"<span>{text(found[place].name)}<br>{share:.0%} kept</span></a>"
            for place, values, share in layers
        )
        if pictures:
            parts.append(f'<h3>{text(title)}</h3><div class="pictures">{pictures}</div>')
    return "".join(parts) + note("White: dropped, dark: kept; grey blue: kept in part, where a dot of the picture stands for several.")


def averaged(values: Array, most: tuple[int, int]) -> Array:
    """values[rows,columns] as means over cells, so that there are at most `most` of either; float64."""
    out = values.astype(float)
    for axis, limit in enumerate(most):
        cell = -(-out.shape[axis] // limit)
        if cell > 1:
            starts = np.arange(0, out.shape[axis], cell)
            counts = np.diff([*starts, out.shape[axis]])
            out = np.add.reduceat(out, starts, axis=axis) / counts.reshape((-1, 1) if axis == 0 else (1, -1))
    return out


def _browser(sources: Sources, found: list[_Masks]) -> str:
    """What `page.js` makes controls and drawings of; hidden without it."""
    layers: dict[str, dict[str, Any]] = {layer.name: {"name": layer.name, "taps": layer.taps, "maps": []} for layer in found}
    exact, coarse = _fitting(sorted(_packed_masks(found), key=lambda one: len(one[2]["data"])))
    for name, kind, packed in (*exact, *(_coarse(found, name, kind) for name, kind, _ in coarse)):
        layers[name][kind] = packed
    maps, left_out = _fitting(sorted(_packed_maps(sources.statistics, set(layers)), key=lambda one: len(one[2]["data"])))
    for name, _, packed in sorted(maps, key=lambda one: tuple(_SUMS).index(one[1])):
        layers[name]["maps"].append(packed)
    return (
        '<div class="browser" id="browser" hidden></div>'
        + data("masks-data", list(layers.values()))
        + note(_about(sources.statistics, {name for name, _, _ in left_out}))
    )


def _about(statistics: Mapping[str, Statistics], left_out: set[str]) -> str:
    if not statistics:
        return (
            "Bundles keep masks, not the statistics that masks were chosen by. `fineprune calibrate --output FOLDER` collects them, given "
            "the options of the compression; `fineprune report --statistics FOLDER` then shows frequency and score maps beside the masks."
        )
    samples = "; ".join(f"{kind}: {part.samples} samples" for kind, part in statistics.items())
    size = f" Maps of {len(left_out)} layers are left out, for they are too large for one page." if left_out else ""
    return f"Maps show the statistics given ({samples}), white: least, dark: most in the layer.{size}"


Packed = tuple[str, str, dict[str, Any]]
"""A layer's name, what it is of, and what the script reads."""


def _fitting(packed: list[Packed]) -> tuple[list[Packed], list[Packed]]:
    """Those that fit into the budget, smallest first, and the others."""
    spent = np.cumsum([len(one[2]["data"]) for one in packed])
    count = int(np.searchsorted(spent, BUDGET, side="right"))
    return packed[:count], packed[count:]


def _packed_masks(found: Iterable[_Masks]) -> Iterator[Packed]:
    for layer in found:
        for kind, mask in (("blocks", layer.blocks), ("weights", layer.weights)):
            if mask is not None:
                bits = mask_bits.pack(np.ascontiguousarray(mask), mask_bits.BUNDLE)
                yield layer.name, kind, {"shape": mask.shape, "bits": True, "data": _deflated(bits.tobytes())}


def _coarse(found: Iterable[_Masks], name: str, kind: str) -> Packed:
    """The layer's mask as one picture of averages."""
    layer = next(one for one in found if one.name == name)
    mask = layer.blocks if kind == "blocks" else layer.weights
    if mask is None:
        raise ValueError(f"{name} has no mask of {kind}")
    flat = mask.mean(0) if kind == "blocks" else mask.reshape(len(mask), -1)
    side = int(CELLS**0.5)
    return name, kind, {"whole": mask.shape, **_bytes(averaged(flat, (side, side)), 1.0), "kept": float(mask.mean())}


def _packed_maps(statistics: Mapping[str, Statistics], names: set[str]) -> Iterator[Packed]:
    for part in statistics.values():
        for name in names & part.layers.keys():
            for key, called in _SUMS.items():
                sums = part.layers[name].get(key)
                if sums is None or sums.ndim not in (3, 4):
                    continue
                values = sums.double().numpy()
                most = float(part.samples) if key == "frequency" else None
                yield name, key, {"what": called, **_bytes(values, most)}


def _bytes(values: Array, most: float | None) -> dict[str, Any]:
    """values, not negative where `most` is given, as 0 to 255 from the least (or 0) to the most of them."""
    least = 0.0 if most is not None or values.min() >= 0 else float(values.min())
    most = float(values.max()) if most is None else most
    levels = np.rint((values - least) / ((most - least) or 1.0) * 255).clip(0, 255).astype(np.uint8)
    return {"shape": values.shape, "bits": False, "least": least, "most": most, "data": _deflated(levels.tobytes())}


def _deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()
