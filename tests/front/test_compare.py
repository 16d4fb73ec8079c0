"""Bundles side by side, on the terminal, as JSON and as a page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fineprune.common.errors import UsageError
from fineprune.compressor.bundle import Bundle
from fineprune.report import compare, write_comparison
from fineprune.report.comparison import about, figures, names
from fineprune.report.intervals import wilson
from support.command import fineprune, succeed

TIMES = {"threads": 1, "batch_size": 2, "p25_ms": 1.0, "p75_ms": 9.0}


def latencies(ours: float) -> dict[str, Any]:
    rows = [{**TIMES, "runtime": name, "median_ms": ms} for name, ms in (("onnxruntime dense", 8.0), ("engine compressed", ours))]
    return {
        "rows": rows,
        "config": {"rounds": 3},
        "machine": {"cpu": "Some CPU", "usable_cores": 2},
        "file_bytes": {"compressed": 1_230_000},
    }


@pytest.fixture(scope="module")
def lighter(folder: Path, trained: list[object]) -> Path:
    """The same network with other masks."""
    masks = ["--preset", "taylor", "--fwp", 0.7, "--samples", 40, "--epochs", 0, "--no-reconstruct"]
    succeed("compress", *trained, *masks, "--output", folder / "lighter")
    return folder / "lighter"


def test_the_table_has_a_column_for_each(bundle: Path, lighter: Path) -> None:
    shown = " ".join(succeed("compare", bundle, lighter).out.split())
    facts = [Bundle.load(one).facts for one in (bundle, lighter)]
    kept = [f"{one['macs']['macs'] / one['macs']['macs_dense']:.1%}" for one in facts]
    assert "┃ bundle ┃ lighter ┃" in shown and f"multiply-adds kept │ {kept[0]} │ {kept[1]} │" in shown
    assert f"accuracy │ {facts[0]['accuracy']['finetuned']:.2%} │" in shown
    assert "blocks pruned │ 30.0% │ 0.0% │" in shown and "accuracy on 80 test samples of npz:" in shown
    assert "ms an image" not in shown, "nobody measured it"


def test_json_has_plain_values(bundle: Path, lighter: Path, tmp_path: Path) -> None:
    options: list[object] = []
    for number, ms in enumerate((4.0, 3.0)):
        (tmp_path / f"{number}.json").write_text(json.dumps(latencies(ms)))
        options += ["--bench", tmp_path / f"{number}.json"]
    rows = fineprune("compare", bundle, lighter, *options, "--json").json()["bundles"]
    assert [(row["milliseconds"], row["milliseconds_dense"]) for row in rows] == [(2.0, 4.0), (1.5, 4.0)]
    final = Bundle.load(bundle).facts["accuracy"]["finetuned"]
    assert rows[0]["accuracy"] == final and rows[0]["interval"] == list(wilson(final, 80)) and rows[0]["file_bytes"] == 1_230_000
    assert rows[0]["bundle"] == str(bundle) and rows[0]["weights_kept"] < rows[0]["weights"]


def test_the_page_has_every_layer(bundle: Path, lighter: Path, tmp_path: Path) -> None:
    succeed("compare", bundle, lighter, "--output", tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    layer = next(one for one in Bundle.load(lighter).facts["macs"]["layers"] if one["name"] == "grouped")
    assert f">{layer['macs'] / layer['macs_dense']:.0%}<span" in page.split("<td>grouped</td>")[1].split("</tr>")[0]
    assert "At a glance" in page and "accuracy by multiply-adds" in page
    write_comparison([bundle, lighter], tmp_path / "c.html", bench=[latencies(4.0), latencies(3.0)])
    assert "accuracy by latency" in (tmp_path / "c.html").read_text()


def test_accuracies_of_other_samples_are_not_put_side_by_side_in_silence(bundle: Path, tmp_path: Path) -> None:
    one = Bundle.load(bundle)
    other = replace(one, facts={**one.facts, "accuracy": {**one.facts["accuracy"], "measure": "mean error", "unit": "mm"}}, folder=None)
    rows = compare([one, other])
    assert about(rows).startswith("The accuracies are not of the same samples") and "bundle 2: mean error on 80 test samples" in about(rows)
    lines = {line[0]: line[1:] for line in figures(rows)}
    assert lines["mean error"][0] == "" and lines["mean error"][1].endswith(" mm") and lines["95 % interval"][1] == ""
    write_comparison([one, other], tmp_path / "c.html")
    assert "At a glance" not in (tmp_path / "c.html").read_text(), "one axis cannot stand for both"


def test_bundles_called_alike_have_their_paths(bundle: Path) -> None:
    rows = compare([bundle, bundle])
    assert names(rows) == [str(bundle)] * 2


def test_what_cannot_be_compared(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="from two on, got 1; `fineprune report` shows one"):
        compare([bundle])
    with pytest.raises(UsageError, match="there are 2 bundles and 1 files of latencies; give one for each"):
        compare([bundle, bundle], bench=[latencies(1.0)])
    result = fineprune("compare", bundle, tmp_path)
    assert result.code == 2 and "is not a bundle (manifest.json is missing)" in result.err
    result = fineprune("compare", bundle, "x.onnx")
    assert result.code == 2 and "x.onnx is an ONNX file and no bundle" in result.err
