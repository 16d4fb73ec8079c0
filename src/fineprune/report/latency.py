"""Latency in several runtimes, as `fineprune bench --json` measured it."""

from typing import Any

from fineprune.common.figures import milliseconds, setting

from .markup import bar, note, section, table, text
from .sources import Sources

Rows = list[dict[str, Any]]

_COLOURS = {"engine": "kept", "onnxruntime": "paler"}


def latency(sources: Sources) -> str:
    """A table for each batch size and number of threads."""
    bench = sources.bench
    if bench is None:
        return ""
    parts = [_table(rows, batch, threads) for (batch, threads), rows in settings(bench).items()]
    machine, cores = bench["machine"]["cpu"], bench["machine"]["usable_cores"]
    about = (
        f"Median and quartiles over {bench['config']['rounds']} rounds in which all take turns; {machine}, {cores} core{'s' * (cores > 1)}."
    )
    warning = f'<p class="warning">{text(bench["warning"])}</p>' if bench.get("warning") else ""
    return section("Latency", *parts, note(about), warning, name="latency")


def settings(bench: dict[str, Any]) -> dict[tuple[int, int], Rows]:
    """Rows by batch size and number of threads, as they were measured."""
    groups: dict[tuple[int, int], Rows] = {}
    for row in bench["rows"]:
        groups.setdefault((row["batch_size"], row["threads"]), []).append(row)
    return groups


def gain(bench: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The rows of the first batch size and number of threads that say what was gained: dense in ONNX Runtime, and compressed in the engine,
    or in ONNX Runtime where the engine cannot run it. None where one of them was not measured."""
    if bench is None:
        return None
    rows = {row["runtime"]: row for row in next(iter(settings(bench).values()))}
    ours = next((rows[name] for name in ("engine compressed", "onnxruntime compressed", "engine dense") if name in rows), None)
    return (rows["onnxruntime dense"], ours) if ours is not None and "onnxruntime dense" in rows else None


def _table(rows: Rows, batch: int, threads: int) -> str:
    slowest = max(row["median_ms"] for row in rows) or 1.0
    dense = next((row["median_ms"] for row in rows if row["runtime"] == "onnxruntime dense"), None)
    cells = [
        (
            text(row["runtime"]) + ("" if row.get("reliable", True) else " (busy)"),
            bar(row["median_ms"] / slowest, _kind(row["runtime"])),
            milliseconds(row["median_ms"] / batch),
            f"{milliseconds(row['p25_ms'] / batch)} - {milliseconds(row['p75_ms'] / batch)}",
            f"x{dense / row['median_ms']:.2f}" if dense and row["median_ms"] else "",
        )
        for row in rows
    ]
    title = f"<h3>{setting(batch, threads)}</h3>"
    return title + table(["runtime", "", "ms an image", "quartiles", "speed-up"], cells, kind="bars")


def _kind(runtime: str) -> str:
    """The colour of a bar: the network's own files, in float32 and in int8; other runtimes are grey."""
    own = runtime.split(" ")[0]
    if own not in _COLOURS or runtime == "onnxruntime dense":
        return "other"
    return f"{_COLOURS[own]} int8" if runtime.endswith("int8") else _COLOURS[own]
