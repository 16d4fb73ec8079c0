"""Each command on real data, through the command line."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import load_file

from fineprune.cli.render import print_layers
from fineprune.compressor.bundle import Bundle
from fineprune.latency_figure import latency_figure
from support.command import TRAINING, fineprune, succeed


def test_train_writes_weights_and_facts(checkpoint: Path, network: str, data: str) -> None:
    facts = json.loads((checkpoint.parent / "training.json").read_text())
    assert facts["model"] == {"name": network, "args": {"num_classes": 10, "width": 6}}
    assert len(facts["history"]) == 8
    assert facts["data"]["spec"] == data
    assert facts["accuracy"]["samples"] == 80
    assert facts["accuracy"]["value"] > 0.3
    assert load_file(checkpoint)["stem.weight"].shape == (6, 1, 3, 3)
    assert checkpoint.stat().st_mode & 0o077 == (checkpoint.parent / "training.json").stat().st_mode & 0o077


def test_train_twice_is_done_at_once(checkpoint: Path, named: list[object]) -> None:
    arguments = ["train", *named, *TRAINING, "--output", checkpoint.parent]
    before = load_file(checkpoint)
    result = fineprune(*arguments, "--json")
    assert len(result.json()["history"]) == 8
    assert "epoch 1" not in result.err
    assert all((before[name] == value).all() for name, value in load_file(checkpoint).items())


def test_compress_leaves_a_bundle_and_no_work_folder(bundle: Path) -> None:
    facts = json.loads((bundle / "manifest.json").read_text())
    assert facts["ratios"]["achieved"]["ffp"] == pytest.approx(0.3, abs=0.01)
    assert facts["ratios"]["achieved"]["fwp"] == pytest.approx(0.5, abs=0.01)
    convolutions = [layer for layer in facts["macs"]["layers"] if layer["kind"] == "conv2d"]
    kept = sum(layer["macs"] for layer in convolutions) / sum(layer["macs_dense"] for layer in convolutions)
    assert kept == pytest.approx(0.35, abs=0.01)
    assert kept < facts["conv_macs_kept"] < 1, "the transposed convolution stays dense and counts"
    assert {"dense", "masked", "finetuned"} <= facts["accuracy"].keys()
    assert {path.name for path in bundle.parent.iterdir() if path.name.startswith("bundle")} == {"bundle"}
    masks = Bundle.load(bundle).masks["ffp"]
    assert masks and not all(mask.all() for mask in masks.values())


def test_thesis_preset_with_layers_of_their_own(trained: list[object], network: str, data: str, tmp_path: Path) -> None:
    arguments = ["--preset", "thesis", "--ffp", 0.3, "--ffp-layer", "group*=0", "--fwp", 0.5, "--exclude", "stem", "--epochs", 0]
    result = succeed("compress", *trained, *arguments, "--samples", 100, "--output", tmp_path / "b")
    assert f"next: fineprune export {tmp_path / 'b'} --model {network} --data {data} --output" in result.out
    written = Bundle.load(tmp_path / "b")
    assert written.masks["ffp"].keys() == {"depthwise"}
    assert written.masks["fwp"].keys() == {"depthwise", "grouped"}
    assert written.facts["training"] == {}
    assert "finetuned" not in written.facts["accuracy"]
    assert written.facts["settings"]["ffp"]["criterion"] == "l2"


def test_compare_dense_trains_the_dense_network_alike(trained: list[object], tmp_path: Path) -> None:
    facts = fineprune(
        "compress", *trained, "--ffp", 0.2, "--epochs", 1, "--samples", 60, "--compare-dense", "--json", "--output", tmp_path / "b"
    ).json()
    assert facts["accuracy"]["dense_finetuned"] is not None
    assert len(facts["training"]["dense_finetune"]["history"]) == 1


def test_statistics_of_calibrate_give_the_masks_of_compress(trained: list[object], tmp_path: Path) -> None:
    ratios = ["--ffp", 0.3, "--fwp", 0.5]
    assert "216 samples" in succeed("calibrate", *trained, *ratios, "--output", tmp_path / "s").out
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"blocks", "weights"}
    result = succeed("compress", *trained, *ratios, "--statistics", tmp_path / "s", "--epochs", 0, "--output", tmp_path / "b")
    assert "wrote" in result.out
    succeed("compress", *trained, *ratios, "--prune-schedule", "one-shot", "--epochs", 0, "--samples", 216, "--output", tmp_path / "own")
    own, given = Bundle.load(tmp_path / "own"), Bundle.load(tmp_path / "b")
    assert own.masks["ffp"].keys() == given.masks["ffp"].keys()
    assert all((own.masks["ffp"][name] == mask).all() for name, mask in given.masks["ffp"].items())
    assert all((own.masks["fwp"][name] == mask).all() for name, mask in given.masks["fwp"].items())


def test_eval_reproduces_the_manifest(bundle: Path, trained: list[object], checkpoint: Path, trust: list[object]) -> None:
    facts = json.loads((bundle / "manifest.json").read_text())
    result = fineprune("eval", bundle, *trust, "--json").json()
    assert result["accuracy"] == facts["accuracy"]["finetuned"]
    assert result["samples"] == 80
    dense = fineprune("eval", *trained, "--split", "test", "--json").json()
    assert dense["accuracy"] == facts["accuracy"]["dense"]
    assert "validation accuracy" in succeed("eval", bundle, *trust, "--split", "validation").out


def test_eval_on_other_data_keeps_the_normalisation_of_the_training(
    trained: list[object], data: str, tmp_path: Path, trust: list[object]
) -> None:
    ratios = ["--ffp", 0.1, "--samples", 50, "--epochs", 0]
    own = ["--data-arg", "mean=0.4", "--data-arg", "std=0.2"]
    succeed("compress", *trained, *own, *ratios, "--output", tmp_path / "b")
    losses = [fineprune("eval", tmp_path / "b", *trust, *options, "--json").json()["loss"] for options in ([], ["--data", data])]
    assert losses[0] == losses[1]
    other = fineprune("eval", tmp_path / "b", *trust, "--data", data, "--data-arg", "mean=0.1", "--json").json()["loss"]
    assert other != losses[0]
    succeed("export", tmp_path / "b", *trust, "--data", data, "--parity-samples", 4, "--output", tmp_path / "m.onnx")
    properties = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(properties["fineprune.normalisation"]) == {"mean": [0.4], "std": [0.2]}


def test_macs_of_a_bundle_are_exact_under_its_masks(bundle: Path, trust: list[object]) -> None:
    report = fineprune("macs", bundle, *trust, "--json").json()
    written = Bundle.load(bundle)
    rows = {layer["name"]: layer for layer in report["layers"]}
    total = 0
    for name, row in rows.items():
        blocks, taps = written.masks["ffp"].get(name), written.masks["fwp"].get(name)
        if row["kind"] != "conv2d" or blocks is None or taps is None:
            total += row["macs"]
            continue
        per_group = taps.shape[1]
        filters = len(taps) * per_group // len(blocks)
        by_hand = sum(
            int(blocks[c].sum()) * int(taps[c // per_group * filters :][:filters, c % per_group].sum()) for c in range(len(blocks))
        )
        assert row["macs"] == by_hand, name
        total += by_hand
    assert report["macs"] == total < report["macs_dense"]
    assert report["thesis_ops"] < report["thesis_ops_dense"]
    assert "conv2d" in succeed("macs", bundle, *trust).out


@pytest.mark.parametrize("arguments", [["resnet20"], ["lenet"], ["torchvision:squeezenet1_1"], ["torchvision:regnet_y_400mf"]])
def test_macs_without_weights_counts_as_with_them(arguments: list[str]) -> None:
    """Shapes are enough: networks are built on the meta device where they can be."""
    from fineprune.compressor.macs import count_macs
    from fineprune.models.zoo import build

    shape = (3, 224, 224) if arguments[0].startswith("torchvision") else (3, 32, 32)
    expected = count_macs(build(arguments[0], seed=0), shape)
    assert fineprune("macs", "--model", *arguments, "--json").json()["macs"] == expected.macs


def test_macs_by_input_and_by_data(data: str, network: str) -> None:
    given = fineprune("macs", "--model", network, "--input", "1x16x16", "--json").json()
    assert given["macs"] == fineprune("macs", "--model", network, "--data", data, "--json").json()["macs"]
    assert given["macs"] == 4 * 9 * 256 + 4 * 9 * 64 + 8 * 2 * 9 * 64 + 8 * 4 * 4 * 64 + 40


def test_export_agrees_with_pytorch(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    result = fineprune("export", bundle, *trust, "--output", tmp_path / "m.onnx", "--json").json()
    assert result["parity"]["passed"] and result["parity"]["runtimes"][0]["samples"] == 80
    assert json.loads((tmp_path / "m.onnx.parity.json").read_text())["max_abs_error"] < 1e-4
    written = onnx.load(tmp_path / "m.onnx")
    assert "MaskedConv" in {function.name for function in written.functions}
    properties = {p.key: p.value for p in written.metadata_props}
    assert json.loads(properties["fineprune.macs"])["macs"] == fineprune("macs", bundle, *trust, "--json").json()["macs"]
    batch = np.zeros((3, 1, 16, 16), np.float32)
    assert onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {written.graph.input[0].name: batch})[0].shape == (3, 10)


def test_export_plain_and_without_samples(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    result = succeed("export", bundle, *trust, "--plain", "--parity-samples", 0, "--output", tmp_path / "m.onnx")
    assert "parity was not checked" in result.err
    assert not (tmp_path / "m.onnx.parity.json").exists()
    assert not onnx.load(tmp_path / "m.onnx").functions


def test_export_of_a_dense_network(trained: list[object], tmp_path: Path) -> None:
    assert "parity with PyTorch" in succeed("export", *trained, "--parity-samples", 8, "--output", tmp_path / "d.onnx").out


def test_bench_compares_dense_and_compressed(bundle: Path, trust: list[object]) -> None:
    report = fineprune("bench", bundle, *trust, "--rounds", 1, "--batch", 1, "--batch", 2, "--peers", "none", "--json").json()
    runtimes = ["onnxruntime dense", "torch dense", "engine compressed", "onnxruntime compressed"]
    runtimes += ["engine compressed int8", "onnxruntime compressed int8"]
    assert list(dict.fromkeys(row["runtime"] for row in report["rows"])) == runtimes
    assert report["rival"] == runtimes[-1]
    assert {row["batch_size"] for row in report["rows"]} == {1, 2}
    assert all(row["median_ms"] > 0 for row in report["rows"])


def test_bench_shows_peers_and_layers_and_draws(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    plot = tmp_path / "latency.svg"
    report = succeed("bench", bundle, *trust, "--rounds", 2, "--peers", "int8", "--layers", "--plot", plot, "--json").json()
    assert "onnxruntime int8" in {row["runtime"] for row in report["rows"]}
    assert report["rival"] == "onnxruntime int8" and all(row["speedup_rival"] > 0 for row in report["rows"])
    assert len(report["layers"]) > 1 and all(row["engine_us"] > 0 and row["dense_us"] > 0 for row in report["layers"])
    assert [row["name"] for row in report["layers_int8"]] == [row["name"] for row in report["layers"]]
    assert any(row["kernel"].startswith("quad_") for row in report["layers_int8"])
    assert "onnxruntime int8" in plot.read_text()


def test_bench_measures_files_of_both_kinds(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    succeed("export", bundle, *trust, "--int8", "--int8-images", 8, "--output", tmp_path / "int8.onnx")
    options = [bundle, *trust, "--rounds", 1, "--peers", "none"]
    result = succeed("bench", *options, "--no-int8", "--onnx", tmp_path / "int8.onnx")  # what is named is measured
    assert "engine compressed int8" in result.out and "over onnxruntime compressed int8" in result.out
    alone = succeed("bench", *options, "--no-int8", "--json").json()
    assert {row["runtime"].rpartition(" ")[2] for row in alone["rows"]} == {"dense", "compressed"}
    assert alone["rival"] is None and all(row["speedup_rival"] is None for row in alone["rows"])
    twice = ["--onnx", tmp_path / "int8.onnx", "--onnx", tmp_path / "int8.onnx"]
    assert "are both in int8; measure one of them at a time" in " ".join(fineprune("bench", *options, *twice).err.split())


def test_a_layer_that_the_engine_does_not_compute_has_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "conv1", "shape": "3->16 3x3 32x32", "kept": 1.0, "dense_us": 8.13, "engine_us": None, "expected_us": None}
    row |= {"speedup": None, "fraction": None, "kernel": "onnxruntime", "reason": "not in the engine: " + "ONNX Runtime is faster, " * 6}
    print_layers([row, {**row, "name": "conv2", "engine_us": 4.0, "speedup": 2.0325, "reason": ""}])
    out = capsys.readouterr().out
    assert "│ conv1 │ 3->16 3x3 32x32 │    100.0% │   8.1 │        │          │          │          │ onnxruntime │" in out
    assert "│   8.1 │    4.0 │          │    x2.03 │" in out
    assert f"why not more\n- conv1: {row['reason']}\n" in out and "- conv2" not in out


def test_bench_prints_the_costs_of_the_machine() -> None:
    report = succeed("bench", "--machine", "--json").json()
    assert report["machine"]["cpu"] and not report["measured"]  # tests assume costs
    assert all(row["what"] and row["ns"] == row["assumed_ns"] > 0 for row in report["costs"])
    assert "filters.entry.1: an entry at a slot of a whole tile, one vector" in succeed("bench", "--machine").out


def test_no_names_and_no_figures_of_the_latencies_overlap() -> None:
    ours = [f"{runtime} compressed{kind}" for kind in ("", " int8") for runtime in ("engine", "onnxruntime")]
    names = ["onnxruntime dense", "torch dense", "openvino", "MNN", "ncnn", "onnxruntime int8", "openvino int8", *ours]
    times = {"threads": 1, "batch_size": 1, "median_ms": 0.296, "p25_ms": 0.2, "p75_ms": 0.4}
    figure = latency_figure({"rows": [{**times, "runtime": name, "threads": threads} for threads in (1, 2) for name in names]})
    figure.draw_without_rendering()
    written = [text for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]
    assert [text.get_text() for text in written] == 2 * (["0.296"] * len(names) + names[::-1])
    boxes = [text.get_window_extent() for text in written]
    assert not [(one, other) for k, one in enumerate(boxes) for other in boxes[:k] if one.overlaps(other)]


def test_report_draws_the_bundle(bundle: Path, tmp_path: Path) -> None:
    succeed("report", bundle, "--output", tmp_path / "r.html")
    assert "depthwise" in (tmp_path / "r.html").read_text()


def test_layers_that_share_weights_and_take_arguments_by_name(data: str, tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n\n\nclass Tied(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.stem, self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)\n"
        "        self.b.weight, self.head = self.a.weight, nn.Linear(4, 10)\n\n"
        "    def forward(self, x):\n        return self.head(self.b(self.a(self.stem(input=x)).relu()).amax((2, 3)))\n"
    )
    named = ["--model", f"{tmp_path}/tied.py:Tied", "--data", data]
    succeed("train", *named, "--epochs", 1, "--output", tmp_path / "dense")
    trained = [*named, "--checkpoint", tmp_path / "dense" / "model.safetensors"]
    succeed("compress", *trained, "--prune", 0.5, "--epochs", 1, "--output", tmp_path / "b")
    accuracy = Bundle.load(tmp_path / "b").facts["accuracy"]["finetuned"]
    assert fineprune("eval", tmp_path / "b", *named, "--json").json()["accuracy"] == accuracy
    assert "3 masked convolutions" in succeed("export", tmp_path / "b", *named, "--output", tmp_path / "b.onnx").out


def test_models_lists_names_and_arguments() -> None:
    lines = succeed("models").out.splitlines()
    assert any(line.startswith("resnet20 ") and "width" in line for line in lines)


def test_image_folder_and_torchvision(tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("light", "dark"):
            place = tmp_path / "images" / part / label
            place.mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 128, (20, 24, 3)) + (100 if label == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    named = ["--model", "torchvision:squeezenet1_1", "--data", f"imagefolder:{tmp_path / 'images'}", "--data-arg", "image_size=32"]
    result = fineprune("compress", *named, "--ffp", 0.2, "--fwp", 0.2, "--epochs", 0, "--json", "--output", tmp_path / "b")
    assert result.json()["data"]["classes"] == ["dark", "light"]
    assert "the weights are random" in result.err
    assert fineprune("eval", tmp_path / "b", *named, "--json").json()["samples"] == 12


def test_a_bundle_is_compressed_again_on_the_command_line(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    more = ["--preset", "thesis", "--ffp", 0.5, "--samples", 40, "--epochs", 0]
    facts = fineprune("compress", bundle, *trust, *more, "--output", tmp_path / "more", "--json").json()
    before, after = Bundle.load(bundle), Bundle.load(tmp_path / "more")
    for kind, masks in before.masks.items():
        for name, mask in masks.items():
            assert not (after.masks[kind][name] & ~mask).any(), (kind, name)
    assert facts["conv_macs_kept"] < before.facts["conv_macs_kept"]
    assert facts["pruned_before"] == [{"ratios": before.facts["ratios"], "settings": before.facts["settings"]}]
    assert fineprune("eval", tmp_path / "more", *trust, "--json").json()["samples"] == 80
