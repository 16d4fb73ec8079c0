"""Results for people: tables on stdout, or one JSON object."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from fineprune.common.figures import setting, written
from fineprune.common.text import printable

from ..manifest import masked_meanwhile, measured, on_grids, taught, zeros_pruned

if TYPE_CHECKING:
    from rich.table import Table

    from fineprune.compressor.macs import MacReport

    from ..search.times import LayerTimes


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2))


def say(line: str) -> None:
    """One line of a result on stdout."""
    click.echo(printable(line))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; the first column is text, the others are figures."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title), "bold"), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _print(table)


def _print(table: "Table") -> None:
    from rich.console import Console

    # Piped output has no width: take what the table needs, instead of cutting at 80 columns.
    Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False).print(table)


def print_macs(report: "MacReport", name: str) -> None:
    """Per layer and in total, in both conventions."""
    from fineprune.compressor.masks import KINDS

    rows = []
    for layer in report.layers:
        if not layer.macs_dense:
            continue
        kept = [f"{layer.kept[kind.name]:.1%}" if kind.name in layer.kept else "" for kind in KINDS]
        shape = "x".join(map(str, layer.output_shape))
        rows.append([layer.name, layer.kind, shape, *_counts(layer.macs_dense, layer.macs), *kept])
    rows.append(["total", "", "", *_counts(report.macs_dense, report.macs), *([""] * len(KINDS))])
    title = f"{name}: multiply-adds of one {'x'.join(map(str, report.input_shape))} sample"
    print_table(title, ["layer", "kind", "output", "dense", "kept", "kept %", *(kind.what for kind in KINDS)], rows)
    if report.macs_zero:
        say(f"of the kept ones {report.macs_zero / 1e6:.3f} M are with weights that are zero though no mask drops them")
    say(
        f"MACs {report.macs / 1e6:.3f} M of {report.macs_dense / 1e6:.3f} M, FLOPs {2 * report.macs / 1e6:.3f} M, "
        f"thesis_ops {report.thesis_ops / 1e6:.3f} M of {report.thesis_ops_dense / 1e6:.3f} M, parameters {report.parameters / 1e6:.3f} M"
    )
    for place in report.uncounted:
        say(f"not counted: {place} (its products cannot be seen)")


def _counts(dense: int, kept: int) -> list[str]:
    return [f"{dense / 1e6:.3f} M", f"{kept / 1e6:.3f} M", f"{kept / dense:.1%}" if dense else ""]


def print_compression(facts: dict[str, Any]) -> None:
    """What a compression saved and what it cost, from a bundle's manifest."""
    from fineprune.compressor.masks import in_order
    from fineprune.compressor.masks.kind import label

    macs, accuracy, ratios = facts["macs"], facts["accuracy"], facts["ratios"]
    click.echo(f"MACs {macs['macs'] / 1e6:.3f} M of {macs['macs_dense'] / 1e6:.3f} M ({macs['macs'] / max(macs['macs_dense'], 1):.1%})")
    steps = {
        "dense": "dense network",
        "masked": "masked",
        "reconstructed": "reconstructed",
        "batchnorm_recalibrated": "BatchNorm chosen",
        "finetuned": f"fine-tuned{masked_meanwhile(facts)}{taught(facts)}{on_grids(facts)}",
        "dense_finetuned": "dense network, fine-tuned alike",
    }
    rows = [[text, written(accuracy[key], accuracy.get("unit"))] for key, text in steps.items() if accuracy.get(key) is not None]
    if rows:
        print_table(
            f"{measured(accuracy)} on {accuracy['samples']} {accuracy['split']} samples",
            ["", measured(accuracy)],
            rows,
        )
    asked, achieved, common = ratios["asked"], ratios["achieved"], ratios["asked"].get("common")
    kept = facts.get("search", {}).get("target", {}).get("macs")
    whole = common if kept is None else 1 - kept
    rows = [
        *(
            [
                f"{kind.what} ({label(kind)}){', of what is left' if place else ''}",
                "by layer" if "search" in facts else "" if common else f"{asked[kind.name]:.1%}",
                f"{achieved[kind.name]:.1%}",
            ]
            for place, kind in enumerate(in_order(achieved))
        ),
        ["convolution multiply-adds", f"{whole:.1%}" if whole else "", f"{1 - facts['conv_macs_kept']:.1%}"],
    ]
    rows += [[f"- {text}", "", f"{share:.1%}"] for text, share in zeros_pruned(facts)]
    print_table("pruned", ["", "asked", "achieved"], rows)


def print_sensitivity(facts: dict[str, Any]) -> None:
    """What each layer loses at each level by itself, and its milliseconds where they were measured."""
    from fineprune.compressor.search.levels import Level

    rows = facts["rows"]
    levels = sorted({Level(**row["level"]) for row in rows})
    cells: dict[str, dict[Level, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["layer"], {})[Level(**row["level"])] = row
    known = facts.get("dense") is not None
    title = f"{facts['measure'] if known else 'error'} of {facts['samples']} {facts['split']} samples, one layer pruned at a time"
    title += f"; dense {written(facts['dense'], facts['unit'])}" if known else ""
    key, unit = ("accuracy", facts["unit"]) if known else ("error", "")
    table = [[name, *(written(of[level][key], unit) if level in of else "" for level in levels)] for name, of in cells.items()]
    print_table(title, ["layer", *map(str, levels)], table)
    if any(row.get("milliseconds") is not None for row in rows):
        dense = {name: next(iter(of.values()))["milliseconds_dense"] for name, of in cells.items()}
        table = [
            [name, _figure(dense[name], ".4f"), *(_figure(of[level]["milliseconds"], ".4f") if level in of else "" for level in levels)]
            for name, of in cells.items()
        ]
        print_table("milliseconds of the layer in the engine, one thread, one sample", ["layer", "dense", *map(str, levels)], table)


def print_profile(times: "LayerTimes") -> None:
    """Microseconds of each layer at each level, and the whole network."""
    levels = sorted(times.whole)
    rows = [
        [name, *(_figure(None if level not in of else of[level] * 1e6, ".1f") for level in levels)] for name, of in times.layers.items()
    ]
    rows.append(["whole network", *(f"{times.whole[level] * 1e6:.1f}" for level in levels)])
    kind = "int8" if times.int8 else "float32"
    title = f"microseconds in the engine, {kind}; the whole on {times.threads} threads, {times.batch} samples; {times.machine['cpu']}"
    print_table(title, ["layer", *map(str, levels)], rows)
    say(f"the dense network in ONNX Runtime, float32: {times.reference * 1e6:.1f}")


def print_front(facts: dict[str, Any]) -> None:
    """Points of a front by their numbers, those that no other beats marked."""
    [batch], [threads], unit = facts["timed"]["batch_sizes"], facts["timed"]["threads"], facts["unit"]
    rows = [
        [
            point["name"],
            f"{point['point']}{' *' if point['front'] else '  '}",
            _figure(point["milliseconds"], ".3f") + ("" if point["reliable"] in (True, None) else " (worthless)"),
            *("" if value is None else written(value, unit) for value in (point["accuracy"], point["accuracy_before"])),
            f"{point['pruned']:.1%}",
            f"{point['macs'] / 1e6:.3f} M",
            f"{point['bytes'] / 1e3:.1f}",
        ]
        for point in facts["points"]
    ]
    where = f"{facts['samples']} {facts['split']} samples; {setting(batch, threads)}; {facts['machine']['cpu']}"
    columns = ["", "point", "ms", facts["measure"], "before fine-tuning", "pruned", "MACs", "kB"]
    print_table(f"{facts['measure']} by latency, * where no other point is as fast and as good: {where}", columns, rows)


def print_parity(parity: dict[str, Any], expected: str = "PyTorch") -> None:
    """How far each runtime is from the one whose outputs are expected."""
    rows = [
        [r["runtime"], str(r["samples"]), f"{r['max_abs_error']:.2e}", f"{r['relative_error']:.2e}", f"{r['argmax_agreement']:.2%}"]
        for r in parity["runtimes"]
    ]
    title = f"parity with {expected} (allowed: {parity['tolerance']:.0e} of the largest logit)"
    print_table(title, ["runtime", "samples", "max |error|", "relative", "same class"], rows)


def print_bench(report: dict[str, Any]) -> None:
    """Latency by runtime, batch size and thread count."""
    rival = report.get("rival")
    rows = [
        [
            row["runtime"],
            str(row["batch_size"]),
            str(row["threads"]),
            f"{row['median_ms']:.3f}",
            f"{row['p25_ms']:.3f} - {row['p75_ms']:.3f}",
            f"x{row['speedup']:.2f}" if row.get("reliable", True) else f"(x{row['speedup']:.2f}, worthless)",
            *([_figure(row["speedup_rival"], ".2f", "x")] if rival else []),
        ]
        for row in report["rows"]
    ]
    title = f"latency over {report['config']['rounds']} interleaved rounds; {report['machine']['cpu']}; speed-up over {report['baseline']}"
    columns = ["runtime", "batch", "threads", "median ms", "quartiles ms", "speed-up", *([f"over {rival}"] if rival else [])]
    print_table(title, columns, rows)


def print_costs(report: dict[str, Any]) -> None:
    """What parts of operations cost on this machine, beside what is assumed of such registers."""
    rows = [
        [f"{row['name']}: {row['what']}", f"{row['ns']:.3f}", f"{row['assumed_ns']:.3f}", f"x{row['ns'] / row['assumed_ns']:.2f}"]
        for row in report["costs"]
    ]
    kind = "measured" if report["measured"] else "assumed"
    title = f"nanoseconds, {kind}; {report['machine']['cpu']} ({report['registers']})"
    print_table(title, ["cost of", kind, f"assumed of {report['registers']}", "ratio"], rows)


def print_layers(layers: list[dict[str, Any]], name: str = "compressed") -> None:
    """Convolutions of a file: times in dense ONNX Runtime and in the engine, fraction of the ideal speed-up; below, why it is not more."""
    times = ["dense_us", *(["int8_us"] if any(row.get("int8_us") for row in layers) else []), "engine_us", "expected_us"]
    rows = [
        [
            row["name"],
            row["shape"],
            f"{row['kept']:.1%}",
            *(_figure(row[key], ".1f") for key in times),
            _figure(row["speedup"], ".2f", "x"),
            _figure(row["fraction"], ".2f"),
            row["kernel"],
        ]
        for row in layers
    ]
    dense = f"dense in ONNX Runtime{', and in its int8' if 'int8_us' in times else ''}"
    title = f"convolutions, {name}: one sample, one thread, microseconds; {dense}, kept in the engine, and what the engine expected"
    columns = ["layer", "shape", "MACs kept", *(key.removesuffix("_us") for key in times), "speed-up", "of ideal", "kernel"]
    print_table(title, columns, rows)
    reasons = [f"- {row['name']}: {row['reason']}" for row in layers if row["reason"]]
    for line in ["why not more", *reasons] if reasons else []:
        say(line)


def _figure(value: float | None, form: str, sign: str = "") -> str:
    return "" if value is None else f"{sign}{value:{form}}"
