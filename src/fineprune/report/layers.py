"""What became of each layer: multiply-adds, what its masks keep, its time dense and masked, by which kernel, and why it is not faster."""

from typing import Any

from fineprune.common.figures import milliseconds
from fineprune.compressor.masks import KINDS

from .markup import bar, details, note, section, table, text
from .sources import Sources


def layers(sources: Sources) -> str:
    """One row a layer that multiplies; times where `fineprune bench --layers --json` measured them."""
    rows = [layer for layer in sources.facts["macs"]["layers"] if layer["macs_dense"]]
    largest = max((layer["macs_dense"] for layer in rows), default=1)
    times = _by_name(sources, "layers")
    dense = {left["name"]: left["reason"] for left in sources.facts.get("left_dense") or ()}
    kinds = [kind for kind in KINDS if any(layer.get(f"{kind.name}_kept") is not None for layer in rows)]
    head = ["layer", "multiply-adds", "million", "kept", *(f"{kind.what} kept" for kind in kinds), *(_TIMES if times else ()), "why"]
    cells = []
    for layer in rows:
        name, time = layer["name"], times.get(layer["name"], {})
        cells.append(
            [
                text(name),
                bar(layer["macs_dense"] / largest, "other", layer["macs"] / layer["macs_dense"]),
                f"{layer['macs_dense'] / 1e6:.2f}",
                f"{layer['macs'] / layer['macs_dense']:.0%}",
                *(_share(layer.get(f"{kind.name}_kept")) for kind in kinds),
                *(_times(time) if times else ()),
                text(time.get("reason") or (f"left dense: {dense[name]}" if name in dense else "")),
            ]
        )
    explained = any(row[-1] for row in cells)
    shown = table(head, cells, kind="layers words") if explained else table(head[:-1], [row[:-1] for row in cells], kind="layers")
    return section("Layers", shown, note(_caption(bool(times))), _integers(sources), name="layers")


def _caption(timed: bool) -> str:
    bars = "Bars: dense multiply-adds light, kept ones dark. "
    if not timed:
        return bars + "--bench FILE adds each layer's time, where FILE is what `fineprune bench --layers --json` printed."
    return (
        bars + "One sample, one thread; dense: in ONNX Runtime, within the dense network, masked: in the engine, within the compressed one."
    )


_TIMES = ("ms dense", "ms masked", "speed-up", "kernel")


def _integers(sources: Sources) -> str:
    """The same layers of the int8 file, folded."""
    times = _by_name(sources, "layers_int8")
    cells = [[text(name), f"{time['kept']:.0%}", *_times(time), text(time["reason"])] for name, time in times.items()]
    head = ["layer", "kept", "ms dense in float32", "ms masked in int8", "speed-up", "kernel", "why"]
    return details("The same layers in int8", table(head, cells, kind="words")) if cells else ""


def _by_name(sources: Sources, key: str) -> dict[str, dict[str, Any]]:
    return {time["name"]: time for time in (sources.bench or {}).get(key) or ()}


def _times(time: dict[str, Any]) -> list[str]:
    """Four cells, empty where a layer was not measured."""
    dense, ours = time.get("dense_us"), time.get("engine_us")
    gained = f"x{dense / ours:.2f}" if dense and ours else ""
    return [_milliseconds(dense), _milliseconds(ours), gained, text(time.get("kernel", ""))]


def _milliseconds(microseconds: float | None) -> str:
    return milliseconds(None if microseconds is None else microseconds / 1e3)


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
