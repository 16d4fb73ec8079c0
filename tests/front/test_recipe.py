"""A recipe runs the whole job, and again only what changed."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from fineprune.common.errors import UsageError
from fineprune.common.progress import Silent
from fineprune.compressor.bundle import Bundle
from fineprune.pipeline import _Pipeline
from fineprune.recipe import read_recipe
from support.command import fineprune, succeed

STAGES = ("train", "compress", "export", "bench")


def recipe(spec: str, network: str = "resnet20", /, **changes: str) -> str:
    """A small recipe; `changes` replace whole tables."""
    tables = {
        "model": f'name = "{network}"\nargs = {{ width = 6 }}',
        "data": f'spec = "{spec}"',
        "train": "epochs = 1\nbatch_size = 64",
        "compress": "ffp = 0.3\nfwp = 0.5\nsamples = 64",
        "finetune": "epochs = 1",
        "export": "parity_samples = 8",
        "bench": "rounds = 1",
        **changes,
    }
    return "".join(f"[{name}]\n{text}\n" for name, text in tables.items() if text)


def stages(err: str) -> dict[str, bool]:
    """Which stages ran (True) or were kept (False)."""
    return {line.partition(":")[0]: line.endswith("running") for line in err.splitlines() if line.partition(":")[0] in STAGES}


@pytest.fixture(scope="module")
def finished(folder: Path, data: str, network: str, trust: list[object]) -> Path:
    """The run folder of a finished recipe."""
    path = folder / "small.toml"
    path.write_text(recipe(data, network))
    result = succeed("run", path, "--output", folder / "run", *trust)
    assert stages(result.err) == dict.fromkeys(STAGES, True)
    assert "summary" in result.out and "latency" in result.out
    return folder / "run"


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run folder, to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_summary_holds_the_figures(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    manifest = json.loads((finished / "bundle" / "manifest.json").read_text())
    assert summary["onnx_bytes"] == {name: (finished / f"{name}.onnx").stat().st_size for name in ("dense", "compressed")}
    assert summary["conv_macs_kept"] == manifest["conv_macs_kept"] < 0.7
    assert 0 <= summary["parity_max_abs_error"] < 1e-4
    assert {"onnxruntime dense", "torch dense", "engine compressed", "onnxruntime compressed"} <= summary["latency_ms"].keys()
    assert summary["dense_accuracy"] == manifest["accuracy"]["dense"]
    assert summary["compressed_accuracy"] == manifest["accuracy"]["finetuned"]
    assert (finished / "report.html").is_file()
    assert not (finished / "bundle.work").exists()


def test_the_page_shows_files_that_the_recipe_names(again: Path, data: str, network: str, trust: list[object], tmp_path: Path) -> None:
    path, front = tmp_path / "r.toml", tmp_path / "front.json"
    path.write_text(recipe(data, network, report=f'front = "{front}"'))
    missing = fineprune("run", path, "--output", again, *trust)
    assert missing.code == 2 and f"[report] front: there is no {front}" in missing.err
    point = {"name": "point of mine", "point": 0, "network": "dense", "int8": False, "front": True, "milliseconds": 3.0, "accuracy": 0.8}
    written = {"measure": "accuracy", "unit": None, "higher_is_better": True, "points": [{**point, "settings": None}]}
    front.write_text(json.dumps(written))
    untrusted = fineprune("run", path, "--output", again, *trust)
    assert untrusted.code == 2 and f"names {front}: code, files and folders of yours" in untrusted.err
    result = succeed("run", path, "--output", again, *trust, "--trust", front)
    assert not any(stages(result.err).values()), "all were kept"
    page = (again / "report.html").read_text()
    assert "point of mine" in page and "Latency" in page and "as ONNX files" in page


def test_second_run_keeps_every_stage(again: Path, data: str, network: str, trust: list[object], tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe(data, network))
    before = (again / "summary.json").read_text().replace(str(again.parent), "")
    result = fineprune("run", path, "--output", again, *trust, "--json")
    assert stages(result.err) == dict.fromkeys(STAGES, False)
    assert json.loads(before)["latency_ms"] == result.json()["latency_ms"]


def test_changed_finetuning_trains_nothing_again(again: Path, data: str, network: str, trust: list[object], tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe(data, network, finetune="epochs = 0", bench=""))
    result = succeed("run", path, "--output", again, *trust)
    assert stages(result.err) == {"train": False, "compress": True, "export": True}


def test_changed_training_starts_anew(again: Path, data: str, network: str, trust: list[object], tmp_path: Path) -> None:
    """Not from the state of the old settings, which the trainer would refuse; a stranger's file in the folder stays."""
    path = tmp_path / "r.toml"
    (again / "train" / "notes.txt").write_text("mine")
    path.write_text(recipe(data, network, train="epochs = 2\nbatch_size = 64", finetune="epochs = 0", bench=""))
    result = succeed("run", path, "--output", again, *trust)
    assert stages(result.err)["train"]
    assert "epoch 2/2" in result.err
    assert (again / "train" / "notes.txt").read_text() == "mine"


def test_deleted_output_is_made_again(again: Path, data: str, network: str, trust: list[object], tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe(data, network, bench=""))
    (again / "dense.onnx").unlink()
    result = succeed("run", path, "--output", again, *trust)
    assert stages(result.err) == {"train": False, "compress": False, "export": True}
    assert (again / "dense.onnx").is_file()


def test_an_int8_file_is_one_more_export(again: Path, data: str, network: str, trust: list[object], tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(recipe(data, network, export="parity_samples = 8\nint8 = { images = 20 }"))
    result = succeed("run", path, "--output", again, *trust)
    assert stages(result.err) == {"train": False, "compress": False, "export": True, "bench": True}
    summary = json.loads((again / "summary.json").read_text())
    found = json.loads((again / "int8.onnx.int8.json").read_text())
    assert summary["int8"] == found and found["images"] == 20 and (again / "int8.onnx").exists()
    accuracy, latency = [row for row in summary["table"] if "int8" in row[0]]
    assert accuracy == ["test accuracy, compressed in int8", f"{found['accuracy']['dense']:.2%}", f"{found['accuracy']['int8']:.2%}"]
    measured = [next(iter(summary["latency_ms"][name].values())) for name in ("onnxruntime int8", "engine compressed int8")]
    assert latency == ["the same in int8, ms", *(f"{value:.3f}" for value in measured)] and summary["table"][-1] == latency
    assert f"accuracy in int8</td><td></td><td>{found['accuracy']['int8']:.2%}<" in (again / "report.html").read_text()
    path.write_text(path.read_text().replace("rounds = 1", "rounds = 1\nint8 = false"))
    table = json.loads(succeed("run", path, "--output", again, *trust, "--json").out)["table"]
    assert [row[0] for row in table if "int8" in row[0]] == ["test accuracy, compressed in int8"]


@pytest.mark.parametrize(
    ("export", "bench", "measured"),
    [
        ({}, {}, False),
        ({"int8": True}, {}, True),
        ({"int8": {"images": 8}}, {"int8": True}, True),
        ({"int8": True}, {"int8": False}, False),
    ],
)
def test_an_int8_file_is_measured_unless_eight_bits_are_left_out(
    export: dict[str, object], bench: dict[str, object], measured: bool, tmp_path: Path
) -> None:
    pipeline = _Pipeline({"export": export, "bench": bench}, tmp_path, False, (), "cpu", Silent())
    assert ("int8.onnx" in pipeline._measured()) == measured


def test_a_benchmark_of_layers_without_peers(again: Path, trust: list[object]) -> None:
    settings = {"bench": {"rounds": 1, "peers": "none", "layers": True, "int8": False}, "export": {}}
    report, _ = _Pipeline(settings, again, False, tuple(map(str, trust[1::2])), "cpu", Silent())._bench()
    assert {row["runtime"] for row in report["rows"]} == {
        *("onnxruntime dense", "torch dense", "engine compressed", "onnxruntime compressed"),
    }
    assert {row["name"] for row in report["layers"]} >= {"stem", "depthwise", "grouped"} and "layers_int8" not in report


def test_a_recipe_says_where_to_compute(data: str, network: str, trust: list[object], checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    model = f'name = "{network}"\nargs = {{ width = 6 }}\ncheckpoint = "{checkpoint}"'
    path.write_text('device = "cuda:9"\n' + recipe(data, network, model=model, train="", finetune="epochs = 0", bench=""))
    result = fineprune("run", path, "--output", tmp_path / "run", *trust, "--trust", checkpoint)
    assert result.code and "cuda:9" in result.err
    succeed("run", path, "--output", tmp_path / "run", *trust, "--trust", checkpoint, "--device", "cpu")


def test_checkpoint_in_place_of_training(data: str, network: str, trust: list[object], checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    model = f'name = "{network}"\nargs = {{ width = 6 }}\ncheckpoint = "{checkpoint}"'
    tables = {"train": "", "finetune": "epochs = 0", "bench": "", "export": "parity_samples = 0"}
    path.write_text(recipe(data, network, model=model, **tables))
    summary = fineprune("run", path, "--output", tmp_path / "run", *trust, "--trust", checkpoint, "--json").json()
    assert summary["parity"] is None
    assert summary["latency_ms"] == {}


@pytest.mark.parametrize(("criterion", "ratio"), [("fpgm", 0.3), ("2:4", 0.5)])
def test_any_method_by_its_name(criterion: str, ratio: float, data: str, network: str, trust: list[object], tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    tables = {"finetune": "epochs = 0", "bench": "", "export": "parity_samples = 4"}
    method = f'fwp = {{ criterion = "{criterion}", scope = "layer", ratio = {ratio}, include = ["grouped"] }}'
    path.write_text(recipe(data, network, model=f'name = "{network}"\nargs = {{ width = 8 }}', compress=method, **tables))
    summary = fineprune("run", path, "--output", tmp_path / "run", *trust, "--json").json()
    bundle = Bundle.load(tmp_path / "run" / "bundle")
    assert summary["conv_macs_kept"] == bundle.facts["conv_macs_kept"] < 1 and summary["parity_max_abs_error"] < 1e-4
    (mask,) = bundle.masks["fwp"].values()
    if criterion == "fpgm":
        whole, none = mask.flatten(1).all(1), ~mask.flatten(1).any(1)
        assert (whole | none).all() and int(none.sum()) == int(0.3 * len(mask))
    else:
        assert (mask.unflatten(1, (-1, 4)).sum(2) == 2).all()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": ""}, r"\[model\] must say its name"),
        ({"data": ""}, r"\[data\] must say its spec"),
        ({"train": ""}, r"give either \[train\] or a checkpoint in \[model\]"),
        ({"trian": "epochs = 1"}, "unknown entry 'trian'; a recipe has output, device and the tables model, data, train"),
        ({"train": "epoch = 1"}, r"\[train\] has unknown epoch; it takes epochs, batch_size"),
        ({"train": "epochs = '3'"}, r"\[train\] epochs is a whole number of at least 1, got '3'"),
        ({"train": "milestones = 3"}, r"\[train\] milestones is a list, got 3"),
        ({"model": "name = 3"}, r"\[model\] name is text, got 3"),
        ({"model": "name = 'lenet'\nargs = 3"}, r"\[model\] args is a table, got 3"),
        ({"data": "spec = 'digits'\nvalidation = 'x'"}, r"\[data\] validation is a number, got 'x'"),
        ({"compress": ""}, "nothing to prune; give prune, or ffp and fwp"),
        ({"compress": "prune = 0.5\nffp = 0.2"}, r"\[compress\] prune 0.5 of the multiply-adds, or give the ratios"),
        ({"compress": "ffp = 1.5"}, r"\[compress\] FFP ratio must be a pruned fraction in \[0, 1\), got 1.5"),
        ({"compress": "ffp = true"}, r"\[compress\] ffp is a number or a table, got True"),
        ({"compress": "ffp = { ratio = '0.3' }"}, r"FFP ratio must be a pruned fraction in \[0, 1\), got '0.3'"),
        ({"compress": "fwp = { rato = 0.3 }"}, "unknown FWP setting 'rato'; known are ratio, per_layer"),
        ({"compress": "ffp = 0.3\npreset = 'best'"}, "unknown preset 'best'; choose one of obs, taylor, thesis"),
        ({"compress": "ffp = 0.3\nsamples = 0"}, r"\[compress\] samples must be at least 1, got 0"),
        ({"bench": "threads = ['all']"}, r"\[bench\] threads is a list of whole numbers"),
        ({"bench": "peers = ['tvm']"}, r"\[bench\] there is no peer 'tvm'; peers are all, none or some of openvino"),
        ({"compress": "point = 3\nprune = 0.5"}, r"\[compress\] front and point belong together"),
        (
            {"model": "name = 'lenet'\nargs = { width = [1] }"},
            r"\[model\] a model's name is text and its arguments are numbers, true/false or",
        ),
        ({"data": "spec = 'digits'\nmean = ['x']"}, r"\[data\] mean is a list of numbers, got \['x'\]"),
        (
            {"data": "spec = 'digits'\nclasses = [1]"},
            r"\[data\] classes is a list of names, their number, or the path of a file, got \[1\]",
        ),
        ({"data": "spec = 'digits'\nclasses = true"}, r"\[data\] classes is a list or a whole number or text, got True"),
        ({"data": "spec = 'digits'\ncrop = 'all'"}, r"\[data\] crop is a number, got 'all'"),
        ({"compress": "ffp = { per_layer = 'conv1' }"}, "FFP per_layer is a table of pruned fractions by glob of layers, got 'conv1'"),
        ({"finetune": "epochs = '3'"}, r"\[finetune\] epochs is a whole number of at least 1, got '3'"),
        ({"export": "parity_samples = -1"}, r"\[export\] parity_samples is at least 0, got -1"),
        ({"export": "plain = 'yes'"}, r"\[export\] plain is true or false, got 'yes'"),
    ],
)
def test_a_wrong_entry_is_named_before_anything_runs(tables: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe("digits", **tables))
    with pytest.raises(UsageError, match=message) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_a_fine_tuning_that_needs_ray_fails_before_the_training(
    data: str, network: str, trust: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    path = tmp_path / "r.toml"
    path.write_text(recipe(data, network, finetune="epochs = 1\nasynchronous = { algorithm = 'asgd', engine = 'ray' }"))
    result = fineprune("run", path, "--output", tmp_path / "run", *trust)
    assert result.code == 2
    assert (
        result.err == "train: running\nfineprune: the ray engine needs Ray, which is not installed: pip install 'fineprune[ray]', "
        "or use the simulated engine\n"
    )
    assert not (tmp_path / "run" / "train").exists()


def test_unreadable_recipes(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    with pytest.raises(UsageError, match=f"cannot read the recipe {path}: No such file"):
        read_recipe(path)
    path.write_text("[model\n")
    with pytest.raises(UsageError, match=f"{path} is not valid TOML: .*line 1"):
        read_recipe(path)
    path.write_text("model = 3\n")
    with pytest.raises(UsageError, match=r"model is a table, written \[model\], got 3"):
        read_recipe(path)
    path.write_text("output = 3\n")
    with pytest.raises(UsageError, match="output is the path of the run folder, got 3"):
        read_recipe(path)
