"""The page of a bundle: what its sections say of what they are given, and that files of another form are named."""

import html
import json
import re
import zlib
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fineprune.common.errors import RunError, UsageError
from fineprune.common.figures import size
from fineprune.compressor.bundle import Bundle
from fineprune.pareto.picture import front_figure
from fineprune.recipe import job_of, read_recipe
from fineprune.report import masks as mask_section
from fineprune.report import write_report
from fineprune.report.accuracy import training_figure
from fineprune.report.headline import EXPLAINED
from fineprune.report.intervals import interval, wilson
from fineprune.report.masks import averaged
from fineprune.report.recipe_of import recipe_of
from fineprune.report.sensitivity import by_layer
from support.command import fineprune, succeed

TIMES = {"threads": 1, "batch_size": 2, "p25_ms": 1.0, "p75_ms": 9.0}
ROWS = [
    {**TIMES, "runtime": name, "median_ms": ms}
    for name, ms in (("onnxruntime dense", 8.0), ("engine compressed", 3.2), ("engine compressed int8", 1.6), ("onnxruntime int8", 4.0))
]
LAYER = {"name": "stem", "kernel": "positions NCHW", "reason": "under 6 us", "kept": 0.5, "dense_us": 812.0, "engine_us": 203.0}
BENCH = {
    "rows": ROWS,
    "config": {"rounds": 3},
    "machine": {"cpu": "Some CPU", "usable_cores": 2},
    "layers": [LAYER],
    "file_bytes": {"dense": 2_340_000, "compressed": 1_230_000},
}


def page(bundle: Bundle | Path, folder: Path, **sources: Any) -> str:
    write_report(bundle, folder / "r.html", **sources)
    return (folder / "r.html").read_text()


def words(markup: str) -> str:
    """The text of a page without its tags."""
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", markup).split()))


def test_the_interval_is_wilsons() -> None:
    assert wilson(0.9, 100) == pytest.approx((0.82563, 0.94477), abs=1e-5)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)


def test_only_shares_of_samples_have_an_interval() -> None:
    assert interval({"samples": 100}, 0.9) == wilson(0.9, 100)
    assert interval({"samples": 0}, 0.9) is None
    assert interval({"samples": 100, "unit": None}, 0.9) is None, "a metric of the user's that is written as a share"
    assert interval({"samples": 100, "unit": "mm"}, 0.9) is None


def test_latency_and_accuracy_come_first(bundle: Path, tmp_path: Path) -> None:
    shown = words(page(bundle, tmp_path, bench=BENCH))
    assert "2.50 times as fast" in shown
    assert (
        "Latency 1.60 ms 4.00 ms dense in ONNX Runtime 0.800 ms in int8 2.00 ms dense in int8 an image; batch 2, 1 thread, Some CPU"
        in shown
    )
    accuracy = Bundle.load(bundle).facts["accuracy"]
    low, high = wilson(accuracy["finetuned"], 80)
    assert f"Accuracy {accuracy['finetuned']:.2%} 95 % interval {100 * low:.1f} - {100 * high:.1f}%" in shown
    assert "80 test samples Multiply-adds kept" in shown
    assert "File size 1.23 MB 2.34 MB dense" in shown
    order = [
        shown.index(text)
        for text in ("Latency 1.60", "Accuracy ", "Multiply-adds kept", "File size", EXPLAINED, "batch 2, 1 thread runtime")
    ]
    assert order == sorted(order)


def test_layers_have_their_times_and_reasons(bundle: Path, tmp_path: Path) -> None:
    assert "0.812 0.203 x4.00 positions NCHW under 6 us" in words(page(bundle, tmp_path, bench=BENCH))
    without = words(page(bundle, tmp_path))
    assert "ms masked speed-up kernel" not in without and "--bench FILE adds each layer's time" in without


def test_files_are_named_or_given(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(BENCH))
    assert page(bundle, tmp_path, bench=tmp_path / "b.json") == page(bundle, tmp_path, bench=BENCH)
    with pytest.raises(RunError, match=r"layers\[0\].kernel is 3 and not text; .*bench --json"):
        page(bundle, tmp_path, bench={**BENCH, "layers": [{**LAYER, "kernel": 3}]})
    for name, form in (("sensitivity", r"rows is missing"), ("front", r"points is missing")):
        with pytest.raises(RunError, match=form):
            page(bundle, tmp_path, **{name: {"other": 1}})
        with pytest.raises(UsageError, match=rf"there is no file /nowhere; write it by `fineprune {name}`"):
            page(bundle, tmp_path, **{name: "/nowhere"})
    with pytest.raises(UsageError, match=r"there is no file /nowhere.onnx; write it by `fineprune export"):
        page(bundle, tmp_path, onnx=["/nowhere.onnx"])


def test_exported_files_show_their_sizes_and_what_int8_cost(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    for name, options in (("a.onnx", ()), ("b.onnx", ("--int8",))):
        succeed("export", bundle, *trust, *options, "--parity-samples", 0, "--output", tmp_path / name)
    shown = words(page(bundle, tmp_path, onnx=[tmp_path / "a.onnx", tmp_path / "b.onnx"]))
    dense, int8 = (size((tmp_path / name).stat().st_size) for name in ("a.onnx", "b.onnx"))
    assert f"File size {dense} {int8} in int8" in shown
    cost = json.loads((tmp_path / "b.onnx.int8.json").read_text())["accuracy"]["int8"]
    assert f"{cost:.2%} in int8 (" in shown
    with pytest.raises(UsageError, match="is a second float32 file of the network"):
        page(bundle, tmp_path, onnx=[tmp_path / "a.onnx"] * 2)


def unpacked(item: dict[str, Any]) -> np.ndarray:
    content = np.frombuffer(zlib.decompress(b64decode(item["data"])), np.uint8)
    return np.unpackbits(content)[: np.prod(item["shape"])].reshape(item["shape"]) if item["bits"] else content.reshape(item["shape"])


def carried(markup: str) -> dict[str, dict[str, Any]]:
    """What the page's script reads, by layer."""
    (found,) = re.findall(r'<script type="application/json" id="masks-data">(.*?)</script>', markup)
    return {layer["name"]: layer for layer in json.loads(found)}


def test_the_page_carries_the_masks(bundle: Path, tmp_path: Path) -> None:
    layers, masks = carried(page(bundle, tmp_path)), Bundle.load(bundle).masks
    assert list(layers) == ["stem", "depthwise", "grouped"]
    for name, mask in masks["fwp"].items():
        assert unpacked(layers[name]["weights"]).ravel().tolist() == mask.int().ravel().tolist()
        assert layers[name]["taps"] == [3, 3] and layers[name]["maps"] == []
    for name, mask in masks["ffp"].items():
        assert unpacked(layers[name]["blocks"]).ravel().tolist() == mask.int().ravel().tolist()


def test_large_masks_are_averaged(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_section, "BUDGET", 0)
    monkeypatch.setattr(mask_section, "CELLS", 16)
    weights = carried(page(bundle, tmp_path))["grouped"]["weights"]
    mask = Bundle.load(bundle).masks["fwp"]["grouped"]
    assert weights["whole"] == [12, 3, 9] and weights["shape"] == [4, 4]
    assert unpacked(weights)[0, 0] == round(255 * mask.reshape(12, 27)[:3, :7].float().mean().item())


@pytest.mark.parametrize("shape", [(6,), (0, 3), (2, 0, 4)])
def test_masks_of_no_layer_are_named(bundle: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    whole = Bundle.load(bundle)
    masks = {**whole.masks, "fwp": {"stem": torch.ones(shape, dtype=torch.bool)}}
    with pytest.raises(RunError, match=r"the FWP mask of stem has shape \["):
        page(replace(whole, masks=masks), tmp_path)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 2, 3, 5)])
def test_layers_of_other_ranks_are_drawn(bundle: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    whole = Bundle.load(bundle)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    weights = carried(page(replace(whole, masks={"ffp": {}, "fwp": {"stem": mask}}), tmp_path))["stem"]
    assert unpacked(weights["weights"]).tolist() == mask.int().reshape(4, 3, -1).tolist()
    assert weights["taps"] == {2: [1, 1], 3: [1, 5], 5: [6, 5]}[len(shape)]


def test_averages_keep_the_mean_of_every_cell() -> None:
    values = np.arange(35).reshape(5, 7)
    assert averaged(values, (5, 7)).tolist() == values.tolist()
    assert averaged(values, (2, 3))[0, 0] == values[:3, :3].mean() and averaged(values, (2, 3))[1, 2] == values[3:, 6:].mean()


def test_statistics_become_maps(bundle: Path, tmp_path: Path, trained: list[object]) -> None:
    assert "fineprune report --statistics FOLDER" in page(bundle, tmp_path)
    settings = ["--preset", "thesis", "--ffp", 0.3, "--fwp", 0.5, "--samples", 40]
    succeed("calibrate", *trained, *settings, "--output", tmp_path / "s")
    markup = page(bundle, tmp_path, statistics=tmp_path / "s")
    (frequency,) = [item for item in carried(markup)["stem"]["maps"] if item["what"] == "samples that kept the block"]
    assert frequency["shape"] == [1, 16, 16] and frequency["most"] == 40 and "blocks: 40 samples" in words(markup)


def test_the_recipe_on_the_page_has_the_settings_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    facts = Bundle.load(bundle).facts
    recipe = recipe_of(facts)
    assert recipe is not None and recipe.splitlines()[-1] in page(bundle, tmp_path)
    (tmp_path / "r.toml").write_text(recipe)
    assert json.loads(json.dumps(job_of(read_recipe(tmp_path / "r.toml")).to_json())) == facts["settings"]
    assert recipe_of({**facts, "settings": {**facts["settings"], "preset": "mine"}}) is None
    assert recipe_of({**facts, "model": None}) is None


def test_the_axis_of_accuracies_ends_at_what_there_can_be() -> None:
    def top(unit: dict[str, Any], value: float) -> float:
        axes = training_figure({"finetune": {"history": [{"epoch": 1, "validation_accuracy": value}]}}, unit).axes[0]
        return float(axes.get_ylim()[1])

    point = {"name": "a", "point": 0, "milliseconds": 1.0, "accuracy": 1.0}
    assert 100 < float(front_figure({"points": [point]}).axes[0].get_ylim()[1]) <= 101
    assert 100 < top({}, 1.0) <= 101
    assert top({}, 1.5) > 150, "a metric of the user's that is written as a share"
    assert top({"unit": "mm"}, 100.0) > 101


def sensitivity_row(layer: str, kept: float, **figures: Any) -> dict[str, Any]:
    return {"layer": layer, "level": {"ffp": 0.0, "fwp": 1 - kept}, "kept": kept, "error": 0.1, "accuracy": None, "loss": 1.0, **figures}


def test_sensitivity_is_drawn_by_layer(bundle: Path, tmp_path: Path) -> None:
    rows = [
        sensitivity_row("stem", 0.4, accuracy=0.5, milliseconds=0.123, milliseconds_dense=0.3),
        sensitivity_row("stem", 0.9, accuracy=0.75),
    ]
    assert [row["kept"] for row in by_layer({"rows": rows})["stem"]] == [0.9, 0.4]
    assert "stem FWP 60% 40% 50.00% 0.300 0.123" in words(page(bundle, tmp_path, sensitivity={"rows": rows}))
    errors = {"measure": "mean error", "unit": "mm", "higher_is_better": False, "rows": rows}
    assert "stem FWP 60% 40% 0.5 mm" in words(page(bundle, tmp_path, sensitivity=errors))
    losses = words(page(bundle, tmp_path, sensitivity={"rows": [sensitivity_row("stem", 0.4)]}))
    assert "loss of the network while one layer alone is pruned" in losses


def front_of_three() -> dict[str, Any]:
    """As `fineprune front` writes it: two points in front, and one that was not timed."""
    dense = {"name": "dense, engine", "point": 0, "network": "dense", "int8": False, "front": True, "settings": None}
    return {
        **{"measure": "accuracy", "unit": None, "higher_is_better": True, "machine": {"cpu": "Some $x$ CPU"}},
        "points": [
            {**dense, "milliseconds": 3.0, "accuracy": 0.8},
            {
                **{
                    **dense,
                    "name": "50 %",
                    "point": 1,
                    "network": "0.5",
                    "settings": {"compress": {"fwp": {"unit": "quad"}}, "finetune": {}},
                },
                **{"milliseconds": 1.0, "accuracy": 0.7, "accuracy_before": 0.6, "pruned": 0.5, "macs": 2e6, "bytes": 1e5},
            },
            {
                **dense,
                "name": "90 % int8",
                "point": 2,
                "network": "0.9",
                "int8": True,
                "front": False,
                "milliseconds": None,
                "accuracy": 0.9,
            },
        ],
    }


def test_the_front_has_its_numbers_and_a_figure(bundle: Path, tmp_path: Path) -> None:
    shown = words(page(bundle, tmp_path, front=front_of_three()))
    assert "1 * 50 % 50.0% 1.00 70.00% 60.00% 2.00 100 kB float32 2 90 % int8" in shown and "0 * dense, engine" in shown
    assert all(text in shown for text in ("quads", "Some $x$ CPU", "nothing faster is as good", "before fine-tuning"))
    errors = {**front_of_three(), "measure": "mean error", "unit": "mm", "higher_is_better": False}
    assert "1 * 50 % 50.0% 1.00 0.7 mm 0.6 mm" in words(page(bundle, tmp_path, front=errors))


def test_a_front_is_named_by_its_folder_too_and_drawn_of_what_it_has(bundle: Path, tmp_path: Path) -> None:
    found = front_of_three()
    (tmp_path / "front.json").write_text(json.dumps(found))
    assert page(bundle, tmp_path, front=tmp_path) == page(bundle, tmp_path, front=found)
    bare = {key: value for key, value in found.items() if key != "machine"} | {"timed": {"batch_sizes": [], "threads": []}}
    assert "nothing faster is as good" in words(page(bundle, tmp_path, front=bare))
    untimed = {**found, "points": found["points"][2:]}
    shown = words(page(bundle, tmp_path, front=untimed))
    assert "2 90 % int8" in shown and "nothing faster is as good" not in shown
    found["points"][1]["settings"]["compress"]["fwp"] = "quad"
    with pytest.raises(RunError, match=r"points\[1\].settings.compress.fwp is 'quad' and not a table"):
        page(bundle, tmp_path, front=found)


def test_the_command_takes_all_of_them(bundle: Path, tmp_path: Path) -> None:
    files = {"bench": BENCH, "sensitivity": {"rows": [sensitivity_row("stem", 0.4)]}, "front": front_of_three()}
    options: list[object] = []
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
        options += [f"--{name}", tmp_path / f"{name}.json"]
    succeed("report", bundle, *options, "--output", tmp_path / "r.html")
    shown = words((tmp_path / "r.html").read_text())
    assert all(text in shown for text in ("2.50 times as fast", "Sensitivity", "Pareto front"))
    assert fineprune("report", bundle, "--front", tmp_path / "bench.json", "--output", tmp_path / "x.html").code == 1
