"""What benchmarks/engine.py measured, judged by the goals, as Markdown tables and as a chart."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune.common.errors import UsageError
from fineprune.common.figures import setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {
    "Ranked by Taylor scores over the whole network": ("blocks", "channel", "group", "both", "weights"),
    "The same shares of every layer (preset `thesis`)": ("thesis-channel", "thesis-group", "thesis-kernel"),
}
"""Kinds of masks by how they share what is pruned among the layers. Goals for layers are meant for the second, about 28 % of each layer."""
UNSTRUCTURED = ("both", "weights", "thesis-kernel")
MASKED = tuple(kind for kinds in GROUPS.values() for kind in kinds)
GOALS = {
    "layer, shared taps": 0.85,
    "median layer, shared taps": 0.9,
    "layer, unstructured": 0.65,
    "network, shared taps": 3.0,
    "network, unstructured": 2.3,
    "dense network": 0.9,
    "stock ONNX Runtime": 1.0,
}
"""Fractions of the ideal speed-up for layers, speed-ups over dense ONNX Runtime for networks; taps shared by all filters or a vector's."""
FLOAT32_PEERS = ("onnxruntime dense", "openvino dense", "MNN dense", "ncnn dense")
BEGIN, END = "<!-- benchmarks/engine.py: begin -->", "<!-- benchmarks/engine.py: end -->"


def judge(results: dict[str, Any]) -> list[str]:
    """One line for each goal and network: met or missed, and by how much."""
    return [
        line for name, network in results["networks"].items() for line in (*_judge_layers(name, network), *_judge_network(name, network))
    ]


def _verdict(met: bool, what: str) -> str:
    return f"{'met   ' if met else 'MISSED'}  {what}"


def _judge_layers(name: str, network: dict[str, Any]) -> Iterator[str]:
    for kind, layers in network["layers"].items():
        if not layers["summary"] or not kind.startswith("thesis"):
            continue
        reached, count = _reached(kind, layers["rows"])
        yield _verdict(reached == count, f"{name} {kind}: {reached} of {count} pruned layers reach {_layer_goal(kind)} of the ideal")
        if _has_median(kind):
            found, median = layers["summary"]["median_fraction"], GOALS["median layer, shared taps"]
            yield _verdict(found >= median, f"{name} {kind}: median layer {found:.2f}, goal {median}")


def _layer_goal(kind: str) -> float:
    if kind == "dense":
        return GOALS["dense network"]
    return GOALS["layer, unstructured" if kind in UNSTRUCTURED else "layer, shared taps"]


def _reached(kind: str, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """(layers that reach the goal, layers that it is meant for)."""
    rows = [row for row in rows if row["kept"] < 1 or kind == "dense"]
    return sum(row["fraction"] is not None and row["fraction"] >= _layer_goal(kind) for row in rows), len(rows)


def _judge_network(name: str, network: dict[str, Any]) -> Iterator[str]:
    for threads in sorted({row["threads"] for row in network["latency"]}):
        rows = _latency(network, threads)
        fastest = min((row for row in rows.values() if row["runtime"] in FLOAT32_PEERS), key=lambda row: row["median_ms"])
        for runtime, row in rows.items():
            maker, _, kind = runtime.partition(" ")
            where, goal = f"{name} {runtime}, {threads} thread{'s' * (threads > 1)}", None
            if maker == "fineprune" and kind == "dense":
                goal = GOALS["dense network"]
            elif maker == "fineprune":
                # Of the large networks no factor is asked, only that nothing dense is faster.
                asked = "network, unstructured" if kind in UNSTRUCTURED else "network, shared taps"
                goal = None if name.endswith("-224") else GOALS[asked]
                yield _verdict(
                    row["median_ms"] < fastest["median_ms"],
                    f"{where}: {row['median_ms']:.3f} ms, fastest dense float32 {fastest['median_ms']:.3f} ms ({fastest['runtime']})",
                )
            elif maker == "onnxruntime" and kind in MASKED:
                goal = GOALS["stock ONNX Runtime"]
            if goal is not None:
                yield _verdict(row["speedup"] >= goal, f"{where}: x{row['speedup']:.2f} of dense ONNX Runtime, goal {goal}")


def _latency(network: dict[str, Any], threads: int, batch: int = 1) -> dict[str, dict[str, Any]]:
    return {row["runtime"]: row for row in network["latency"] if (row["threads"], row["batch_size"]) == (threads, batch)}


def markdown(results: dict[str, Any]) -> str:
    """The tables, with machine, commit and command."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items() if name in ("onnxruntime", "numba", "torch"))
    parts = [
        f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['system']}, Python {machine['python']}, {packages}; "
        f"commit {machine['commit']}\n\n```\n{results['command']}\n```"
    ]
    for name, network in results.get("int8", {}).items():
        parts.append(f"### {name} in int8\n\nRandom weights; {network['dropped']:.0%} of the quads dropped at random. {_same(network)}")
        parts.append(_latency_table(network))
    for name, network in results["networks"].items():
        parts.append(f"### {name}\n\nWeights: {network['weights']}. Masks: calibrated on {network['images']}.")
        parts.append(_latency_table(network))
        for title, kinds in GROUPS.items():
            kinds = tuple(kind for kind in ("dense", *kinds) if network["layers"].get(kind, {}).get("rows"))
            parts += [f"{title}:\n\n{_layer_table(network, kinds)}"] if kinds not in ((), ("dense",)) else []
    return "\n\n".join(parts) + "\n"


def _same(network: dict[str, Any]) -> str:
    """How the engine's logits compare with ONNX Runtime's."""
    found = [
        f"{kind}: {same['equal']} of {same['images']} images" + (f" (else within {same['difference']:.1e})" if same["difference"] else "")
        for kind, same in network["same"].items()
    ]
    return f"The same logits as in ONNX Runtime, bit by bit: {'; '.join(found)}. Products by {network['products']}."


def _latency_table(network: dict[str, Any]) -> str:
    groups = sorted({(row["batch_size"], row["threads"]) for row in network["latency"]})
    heads = [setting(batch, threads) for batch, threads in groups]
    rival = any(row.get("speedup_rival") for row in network["latency"])
    columns = [column for head in heads for column in (f"{head}: ms (quartiles)", "speed-up", *(["over its int8"] if rival else []))]
    lines = [_line(["runtime", "MACs pruned", *columns]), _line(["---"] * (2 + len(columns)))]
    for runtime in dict.fromkeys(row["runtime"] for row in network["latency"]):
        pruned = network["files"].get(runtime.partition(" ")[2], {}).get("pruned", 0)
        cells = [runtime, f"{pruned:.1%}" if pruned else ""]
        for batch, threads in groups:
            row = _latency(network, threads, batch)[runtime]
            cells += [f"{row['median_ms']:.3f} ({row['p25_ms']:.3f}-{row['p75_ms']:.3f})", f"x{row['speedup']:.2f}"]
            cells[-1] += "" if row.get("reliable", True) else " (worthless)"
            cells += [f"x{row['speedup_rival']:.2f}"] if rival else []
        lines.append(_line(cells))
    return "\n".join(lines)


def _layer_table(network: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """One row a layer, a column a kind of masks; goals, how many layers reach them, and medians last."""
    lines = [_line(["layer", "dense us", "single us", *(f"{kind}: kept / us / of ideal" for kind in kinds)])]
    lines.append(_line(["---"] * (3 + len(kinds))))
    by_kind = {kind: {row["name"]: row for row in network["layers"][kind]["rows"]} for kind in kinds}
    for name, row in by_kind[kinds[0]].items():
        cells = [f"{name} {row['shape']}", f"{row['dense_us']:.1f}", f"{row['single_us']:.1f}"]
        for kind in kinds:
            cells.append(_layer_cell(by_kind[kind][name]) if name in by_kind[kind] else "")
        lines.append(_line(cells))
    summaries = [network["layers"][kind]["summary"] for kind in kinds]
    medians = [f"{s['median_fraction']:.2f} ({s['median_single_fraction']:.2f} against single)" if s else "" for s in summaries]
    lines.append(_line(["median of ideal", "", "", *medians]))
    goals = [f"{_layer_goal(kind)}" + (f", median {GOALS['median layer, shared taps']}" if _has_median(kind) else "") for kind in kinds]
    lines.append(_line(["goal", "", "", *goals]))
    lines.append(
        _line(["layers that reach it", "", "", *("{} of {}".format(*_reached(kind, list(by_kind[kind].values()))) for kind in kinds)])
    )
    return "\n".join(lines)


def _has_median(kind: str) -> bool:
    return kind != "dense" and kind not in UNSTRUCTURED


def _layer_cell(row: dict[str, Any]) -> str:
    """Layers that ONNX Runtime computes have no times in the engine."""
    times = "" if row["engine_us"] is None else f" / {row['engine_us']:.1f} / {row['fraction']:.2f}"
    return f"{row['kept']:.2f}{times} ({row['kernel'][:1]})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figure(networks: dict[str, Any]) -> "Figure":
    """Speed-up over dense ONNX Runtime at batch 1 and the fewest threads, bars by network, whiskers the quartiles.

    Masked files on stock ONNX Runtime are left to the tables.
    """
    from matplotlib.figure import Figure

    threads = min(row["threads"] for network in networks.values() for row in network["latency"])
    rows = {name: _latency(network, threads) for name, network in networks.items()}
    runtimes = list(dict.fromkeys(runtime for latency in rows.values() for runtime in latency if _is_drawn(runtime)))
    chart = Figure(figsize=(max(8.0, 2.4 * len(rows) + 3), 4.2), layout="constrained")
    axes = chart.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    width = 0.86 / len(runtimes)
    for number, runtime in enumerate(runtimes):
        found = [(place, latency[runtime]) for place, latency in enumerate(rows.values()) if runtime in latency]
        places = [place + (number - (len(runtimes) - 1) / 2) * width for place, _ in found]
        values = [row["speedup"] for _, row in found]
        whiskers = [[row["speedup"] - row["speedup_p25"] for _, row in found], [row["speedup_p75"] - row["speedup"] for _, row in found]]
        axes.bar(places, values, width, yerr=whiskers, color=_colour(runtime, number), label=runtime, ecolor="#555", error_kw={"lw": 0.8})
    axes.axhline(1, color="#333", lw=0.8, ls="--")
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_ylabel(f"speed-up over dense ONNX Runtime\n({setting(1, threads)})")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return chart


def _is_drawn(runtime: str) -> bool:
    maker, _, kind = runtime.partition(" ")
    return maker != "onnxruntime" or kind == "int8"


def _colour(runtime: str, number: int) -> str:
    maker, _, kind = runtime.partition(" ")
    return (maker == "fineprune" and _COLOURS.get(kind)) or ("#44546a", "#7a8ca5", "#a9b6c8", "#c4484c")[number % 4]


_COLOURS = dict(
    zip(
        ("dense", *MASKED, "quads", "dense-int8", "quads-int8"),
        (
            "#cfe3d6",
            "#0f4a2d",
            "#1b6e46",
            "#2f9d68",
            "#66c296",
            "#a4dcbd",
            "#6b5227",
            "#b08d57",
            "#e3cfa4",
            "#2f9d68",
            "#e8b98a",
            "#a3123a",
        ),
        strict=True,
    )
)


def replace_section(path: Path, text: str) -> None:
    """Put `text` between the markers of a Markdown file."""
    content = path.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise UsageError(f"{path} has no lines {BEGIN} and {END}; add them where the tables belong")
    head, rest = content.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
