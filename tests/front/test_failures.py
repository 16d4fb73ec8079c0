"""What goes wrong, goes wrong in one clear line, with the right exit code, and leaves nothing behind."""

import errno
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.command import fineprune

TRAINING_ONCE = ["--epochs", 1, "--batch-size", 64]
COMPRESS = ["--ffp", 0.3, "--fwp", 0.3, "--samples", 40, "--epochs", 0]


def assert_fails(code: int, message: str, *arguments: object) -> None:
    """The command fails with one line of its own on stderr that matches `message`."""
    result = fineprune(*arguments)
    complaints = [line for line in result.err.splitlines() if line.startswith("fineprune: ")]
    assert result.code == code, result.err
    assert len(complaints) == 1 and result.err.endswith(f"{complaints[0]}\n"), result.err
    assert re.search(message, complaints[0]), complaints[0]
    assert "Traceback" not in result.err and "--debug and report" not in complaints[0]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """An output folder that a failed command must not have made, nor anything beside it."""
    place = tmp_path / "out" / "bundle"
    place.parent.mkdir()
    yield place
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ffp", 1.0], r"FFP ratio must be a pruned fraction in \[0, 1\), got 1.0"),
        (["--fwp", -0.1], r"FWP ratio must be a pruned fraction in \[0, 1\), got -0.1"),
        (["--ffp", "nan"], r"FFP ratio must be a pruned fraction in \[0, 1\), got nan"),
        (["--ffp", "much"], r"Invalid value for '--ffp': 'much' is no fraction such as 0.3.*compress --help"),
        (["--ffp-layer", "conv1=2"], r"FFP ratio of 'conv1' must be a pruned fraction in \[0, 1\), got 2.0"),
        (["--ffp-layer", "conv1"], "--ffp-layer is GLOB=RATIO such as layer3.*=0.2, got 'conv1'"),
        (["--ffp", 0.3, "--exclude", "layer9*"], "layer9"),
        (["--ffp", 0.3, "--preset", "best"], "unknown preset 'best'; choose one of obs, taylor, thesis"),
        (
            ["--ffp", 0.3, "--ffp-criterion", "l3"],
            "unknown FFP criterion 'l3'; choose one of apoz, l1, l2, obs, random, taylor, taylor-top",
        ),
        (
            ["--fwp", 0.3, "--fwp-criterion", "size"],
            "unknown FWP criterion 'size'; choose one of 2:4, asl, fisher, fpgm, l1-filters, lamp, "
            "magnitude, obc, obs, random, taylor, wis, wis-signed",
        ),
        (["--ffp", 0.3, "--samples", 0], "samples must be at least 1, got 0"),
        (["--ffp", 0.3, "--epochs", -1], "epochs is a whole number of at least 1, got -1"),
        (["--ffp", 0.3, "--lr", 0], "lr is above 0, got 0.0"),
        (["--ffp", 0.3, "--milestones", "a"], "--milestones are epochs such as 10,15, got 'a'"),
        (["--ffp", 0.3, "--device", "tpu"], "tpu"),
        (["--ffp", 0.3, "--statistics", "/nowhere"], "/nowhere holds no statistics; name the output folder of `fineprune calibrate`"),
        (["--ffp", 0.3, "--data-arg", "size=3"], "--data-arg takes validation, seed, image_size, crop, channels, mean, .* got 'size=3'"),
        (["--ffp", 0.3, "--data-arg", "crop=most"], "--data-arg crop has a value that is no number: 'most'"),
        (["--ffp", 0.3, "--data-arg", "classes=names.txt"], "classes: the file names.txt does not exist; give a file of names"),
        (["--nothing"], "No such option.*--nothing"),
        ([], "nothing to prune; give --prune, or --ffp and --fwp"),
        (["--prune", 0.5, "--fwp", 0.3], "prune 0.5 of the multiply-adds, or give the ratios of FFP and FWP, not both"),
        (["--prune", 1.2], r"prune ratio must be a pruned fraction in \[0, 1\), got 1.2"),
    ],
)
def test_settings_out_of_range(trained: list[object], output: Path, options: list[object], message: str) -> None:
    assert_fails(2, message, "compress", *trained, *options, "--output", output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnet21"], "unknown model 'resnet21': did you mean .*resnet20"),
        (["--model", "torchvision:resnet19"], "torchvision has no classifier 'resnet19': did you mean .*resnet18"),
        (["--model", "nofile.py:net"], "nofile.py does not exist; give the path of a Python file"),
        (["--model", "no_such_module:net"], "no Python module named 'no_such_module'"),
        (["--model", "resnet20", "--model-arg", "depth=20"], "resnet20 takes no argument 'depth'; it takes width, shortcut"),
        (["--model", "resnet20", "--model-arg", "width"], "a model argument is KEY=VALUE, got 'width'"),
        (["--model", "resnet20", "--checkpoint", "/nowhere/w.pt"], "checkpoint /nowhere/w.pt does not exist"),
        (["--model", "resnet20", "--checkpoint", "/"], "checkpoint / is a folder"),
        ([], "no network; name a bundle, or give --model"),
    ],
)
def test_unknown_networks(data: str, output: Path, options: list[object], message: str) -> None:
    assert_fails(2, message, "compress", *options, "--data", data, *COMPRESS, "--output", output)


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ("cifar11", 2, "unknown data 'cifar11': did you mean .*cifar10"),
        ("npz:/nowhere.npz", 2, "/nowhere.npz"),
        ("imagefolder:/nowhere", 2, "/nowhere"),
        ("nofile.py:data", 2, "nofile.py does not exist"),
        ("digits:here", 2, "digits takes nothing after a colon"),
    ],
)
def test_unknown_data(spec: str, code: int, message: str, output: Path) -> None:
    assert_fails(code, message, "compress", "--model", "lenet", "--data", spec, *COMPRESS, "--output", output)
    assert_fails(code, message, "train", "--model", "lenet", "--data", spec, "--output", output)


def test_missing_data(checkpoint: Path, network: str, output: Path) -> None:
    assert_fails(2, "no data set; give --data", "compress", "--model", network, *COMPRESS, "--output", output)
    assert_fails(2, "no data set; give --data", "eval", "--model", network)
    assert_fails(2, "input size of .* is not known; give --input CxHxW, such as --input 3x224x224, or --data", "macs", "--model", network)
    assert_fails(2, "--data-arg belongs to --data", "macs", "--model", network, "--data-arg", "seed=1")


def test_empty_data_sets(network: str, tmp_path: Path, output: Path) -> None:
    np.savez(tmp_path / "empty.npz", images=np.zeros((0, 16, 16), np.uint8), labels=np.zeros(0, np.int64))
    for command in (["compress", *COMPRESS], ["train"]):
        assert_fails(
            1, r"empty\.npz.*(empty|no images|no samples)", command[0], "--model", network, "--data", f"npz:{tmp_path / 'empty.npz'}",
            *command[1:], "--output", output,
        )  # fmt: skip
    (tmp_path / "folder" / "train" / "cat").mkdir(parents=True)
    assert_fails(1, "folder", "compress", "--model", network, "--data", f"imagefolder:{tmp_path / 'folder'}", *COMPRESS, "--output", output)


def test_broken_checkpoints(named: list[object], checkpoint: Path, tmp_path: Path, output: Path) -> None:
    whole = checkpoint.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(load_file(checkpoint), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    (tmp_path / "text.pt").write_text("not weights")
    for name in ("cut.safetensors", "cut.pt", "text.pt"):
        assert_fails(1, f"{name} is truncated or not a", "compress", *named, "--checkpoint", tmp_path / name, *COMPRESS, "--output", output)


def test_checkpoints_of_another_network(named: list[object], data: str, checkpoint: Path, tmp_path: Path, output: Path) -> None:
    wrong = ["--model", "resnet20", "--data", data, "--checkpoint", checkpoint]
    assert_fails(
        1, "does not fit this network: .*missing.*unexpected.*build the model with the arguments", "compress", *wrong, *COMPRESS,
        "--output", output,
    )  # fmt: skip
    wider = [*named, "--model-arg", "num_classes=7", "--checkpoint", checkpoint]
    assert_fails(1, r"head.weight \(10, 6\) instead of \(7, 6\)", "eval", *wider)
    colour = tmp_path / "colour.npz"
    np.savez(colour, images=np.zeros((30, 16, 16, 3), np.uint8), labels=np.arange(30) % 3)
    grey = ["--model", "lenet", "--model-arg", "in_channels=1", "--data", f"npz:{colour}"]
    assert_fails(
        2,
        "first convolution takes images with 1 channel, not with 3; give --model-arg in_channels=3",
        "compress",
        *grey,
        *COMPRESS,
        "--output",
        output,
    )


def test_weights_that_are_not_finite(named: list[object], checkpoint: Path, tmp_path: Path, output: Path) -> None:
    weights = load_file(checkpoint)
    weights["grouped.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, tmp_path / "nan.safetensors")
    named = [*named, "--checkpoint", tmp_path / "nan.safetensors"]
    assert_fails(1, "nan.safetensors: grouped.weight holds 1 NaN or infinite values", "compress", *named, *COMPRESS, "--output", output)
    assert_fails(1, "grouped.weight holds 1 NaN", "eval", *named)


def test_a_loss_that_is_not_finite(named: list[object], trained: list[object], tmp_path: Path) -> None:
    hot = ["--lr", 1e30, "--epochs", 3, "--schedule", "constant", "--output", tmp_path / "o"]
    assert_fails(1, r"not finite at epoch \d+, batch \d+ .*lower learning rate", "train", *named, *hot)
    assert not (tmp_path / "o" / "model.safetensors").exists()
    hot[-1] = tmp_path / "b"
    assert_fails(1, r"not finite at epoch \d+, batch \d+ .*lower learning rate", "compress", *trained, "--ffp", 0.3, *hot)
    assert not (tmp_path / "b").exists()


def test_masks_are_fixed_to_their_input_size(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    message = "the masks of .*bundle were made for inputs of 1x16x16, not 1x32x32; compress the network at 1x32x32"
    for command in (["macs"], ["bench"], ["export", "--output", tmp_path / "m.onnx"]):
        assert_fails(2, message, command[0], bundle, *trust, "--input", "1x32x32", *command[1:])
    assert_fails(2, r"--input is CxHxW such as 3x32x32, got '32'", "macs", bundle, *trust, "--input", "32")
    network = ["eval", bundle, *trust, "--data", "digits"]
    assert_fails(2, "the network takes inputs of 1x16x16, digits has 1x32x32; give --data-arg image_size=16", *network)
    colour = ["--data-arg", "channels=3", "--data-arg", "image_size=16"]
    assert_fails(2, "inputs of 1x16x16, digits has 3x16x16; give --data-arg channels=1 or other data", *network, *colour)


def test_bundles_that_are_none(bundle: Path, trained: list[object], tmp_path: Path) -> None:
    assert_fails(2, "there is no bundle at /nowhere", "eval", "/nowhere")
    assert_fails(2, "is not a bundle .*manifest.json is missing", "export", tmp_path, "--output", tmp_path / "m.onnx")
    assert_fails(2, "a bundle has its weights itself; leave --checkpoint or the bundle out", "eval", bundle, *trained)


def test_bundles_whose_sources_are_gone(bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    text = (bundle / "manifest.json").read_text()
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "manifest.json").write_text(text.replace("net.py:small", "gone.py:small"))
    gone = [str(part).replace("net.py", "gone.py") for part in trust]
    assert_fails(2, "needs the network .*gone.py:small: .* does not exist; .*file names are relative", "eval", tmp_path, *gone)
    (tmp_path / "manifest.json").write_text(text.replace("digits.npz", "gone.npz"))
    gone = [str(part).replace("digits.npz", "gone.npz") for part in trust]
    assert_fails(2, "the manifest names the data npz:.*gone.npz: .*; or give --data", "eval", tmp_path, *gone)
    assert fineprune("macs", tmp_path, *trust).code == 0


def test_a_truncated_bundle(bundle: Path, tmp_path: Path) -> None:
    for path in bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "weights.safetensors").write_bytes(b"cut")
    assert_fails(1, "weights.safetensors does not match the hash in manifest.json; it was truncated or altered", "eval", tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert_fails(1, "manifest.json is not valid JSON", "macs", tmp_path)


@pytest.mark.parametrize("place", ["/proc/nowhere/b", "file/b"])
def test_folders_that_cannot_be_written(
    named: list[object], trained: list[object], bundle: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the data are read: `load_data` is never reached."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr("fineprune.models.data.load_data", _unreachable)
        assert_fails(1, f"cannot write {place}", "compress", *trained, *COMPRESS, "--output", place)
        assert_fails(1, f"cannot write {place}", "calibrate", *trained, "--ffp", 0.3, "--output", place)
        assert_fails(1, f"cannot write {place}", "train", *named, "--output", place)
        assert_fails(1, f"cannot write {place}.onnx", "export", bundle, "--output", f"{place}.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _unreachable(*_arguments: object, **_settings: object) -> NoReturn:
    raise AssertionError("data were read before the output was checked")


def test_outputs_that_are_something_else(named: list[object], trained: list[object], bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "toy.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert_fails(2, "exists and is not a bundle; choose another output folder", "compress", *trained, *COMPRESS, "--output", tmp_path)
    assert_fails(2, "model.safetensors exists and is not of a training", "train", *named, "--output", tmp_path)
    assert_fails(2, "notes.txt is a file; give a folder", "train", *named, "--output", tmp_path / "notes.txt")
    assert_fails(2, "blocks exists and holds no statistics", "calibrate", *trained, "--ffp", 0.3, "--output", tmp_path)
    assert_fails(2, "is a folder; give a file name such as", "export", bundle, "--output", tmp_path)
    assert_fails(2, "notes.txt exists and is not named as an ONNX file", "export", bundle, "--output", tmp_path / "notes.txt")
    assert_fails(2, "notes.txt exists and is not named as an HTML file", "report", bundle, "--output", tmp_path / "notes.txt")
    assert_fails(2, "there is no peer 'tvm'; peers are all, none or some of openvino,MNN,", "bench", bundle, "--peers", "tvm")
    assert_fails(2, "--plot writes .png or .svg", "bench", bundle, "--plot", tmp_path / "latency.jpg")
    (tmp_path / "blocks" / "toy.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    no_latencies = ["report", bundle, "--bench", tmp_path / "blocks" / "toy.json", "--output", tmp_path / "r.html"]
    assert_fails(1, "toy.json: rows is missing; it holds no latencies, or was edited; write it by `fineprune bench", *no_latencies)
    assert_fails(2, "there is no file /nowhere.json", "report", bundle, "--bench", "/nowhere.json", "--output", tmp_path / "r.html")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "notes.txt").read_text() == "mine"


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 KiB: writing fails as on a full disk, in whatever library does it.

    Not a fixture: pytest reports a test before its fixtures are torn down, and its own output may be a file that is longer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disks_that_fill_up(named: list[object], trained: list[object], bundle: Path, tmp_path: Path, trust: list[object]) -> None:
    remedy = "check its folder's permissions and free space"
    with small_files():
        assert_fails(1, f"cannot write .*: File too large; {remedy}", "train", *named, *TRAINING_ONCE, "--output", tmp_path / "t")
        assert_fails(1, f"cannot write .*{remedy}", "compress", *trained, *COMPRESS, "--output", tmp_path / "b")
        assert_fails(1, f"cannot write {tmp_path}/m.onnx: .*{remedy}", "export", bundle, *trust, "--output", tmp_path / "m.onnx")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("job.json", "statistics.json")]
    assert not (tmp_path / "b").exists()


def test_a_full_disk_keeps_the_old_bundle(trained: list[object], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    for path in bundle.iterdir():
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    write = Path.write_bytes

    def full(self: Path, content: Any) -> int:
        if self.name == "masks.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert_fails(1, "cannot write .*b: No space left on device", "compress", *trained, *COMPRESS, "--output", tmp_path / "b")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_statistics_of_other_settings(trained: list[object], tmp_path: Path, output: Path) -> None:
    assert fineprune("calibrate", *trained, "--ffp", 0.3, "--fwp", 0.3, "--samples", 40, "--output", tmp_path / "s").code == 0
    given = ["--statistics", tmp_path / "s", "--epochs", 0, "--output", output]
    assert_fails(2, "were collected .*; calibrate again with the same options", "compress", *trained, "--ffp", 0.4, "--fwp", 0.3, *given)
    assert_fails(2, "calibrate", "compress", *trained, "--preset", "thesis", "--ffp", 0.3, *given)
    assert_fails(2, "nothing to prune", "calibrate", *trained, "--output", output)


def test_a_request_that_does_not_fit_the_network_fails_before_it_is_measured(trained: list[object], tmp_path: Path, output: Path) -> None:
    result = fineprune("compress", *trained, "--prune", 0.3, "--include", "layer9*", "--epochs", 0, "--output", output)
    assert result.code == 2
    assert "the pattern 'layer9*' matches no convolution; they are: stem, depthwise, grouped" in result.err
    assert "dense: test accuracy" not in result.err


def test_statistics_of_one_kind_are_not_taken_for_both(trained: list[object], tmp_path: Path) -> None:
    assert fineprune("calibrate", *trained, "--fwp", 0.3, "--samples", 40, "--output", tmp_path / "s").code == 0
    result = fineprune("compress", *trained, "--ffp", 0.3, "--epochs", 0, "--statistics", tmp_path / "s", "--output", tmp_path / "b")
    assert "s holds no statistics of blocks: they are collected now" in result.err


def test_another_start_does_not_resume(named: list[object], checkpoint: Path, tmp_path: Path) -> None:
    assert fineprune("train", *named, *TRAINING_ONCE, "--output", tmp_path / "t").code == 0
    other = ["train", *named, *TRAINING_ONCE, "--output", tmp_path / "t"]
    assert_fails(1, "training.pt belongs to another run: checkpoint", *other, "--checkpoint", checkpoint)
    assert_fails(1, "training.pt belongs to another run: config.seed", *other, "--seed", 3)


def test_recipes(tmp_path: Path) -> None:
    assert_fails(2, "cannot read the recipe .*none.toml: No such file", "run", tmp_path / "none.toml")
    (tmp_path / "r.toml").write_text("[model")
    assert_fails(2, "r.toml is not valid TOML", "run", tmp_path / "r.toml")
    checkpoint = "[model]\nname = 'lenet'\ncheckpoint = '/nowhere.pt'\n[data]\nspec = 'digits'\n[compress]\nffp = 0.3\n"
    (tmp_path / "r.toml").write_text(checkpoint)
    assert_fails(
        2,
        "there is no file /nowhere.pt; check the recipe",
        "run",
        tmp_path / "r.toml",
        "--output",
        tmp_path / "o",
        "--trust",
        "/nowhere.pt",
    )
    (tmp_path / "o").write_text("")
    assert_fails(
        2, "o is a file; give another run folder", "run", tmp_path / "r.toml", "--output", tmp_path / "o", "--trust", "/nowhere.pt"
    )


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["eval", "/nowhere"]
    for result in (fineprune("--debug", *arguments), fineprune(*arguments, "--debug")):
        assert result.code == 2
        assert "Traceback (most recent call last)" in result.err and "UsageError" in result.err
        assert result.err.splitlines()[-1].startswith("fineprune: there is no bundle at /nowhere")
    monkeypatch.setenv("FINEPRUNE_DEBUG", "1")
    assert "Traceback" in fineprune(*arguments).err


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_arguments: object) -> NoReturn:
        raise KeyError("a\nb")

    monkeypatch.setattr("fineprune.manifest.read_bundle", bug)
    result = fineprune("eval", "/nowhere")
    assert result.code == 1
    assert result.err == "fineprune: unexpected KeyError: 'a\\nb'; run again with --debug and report it\n"


def test_commands_that_do_not_exist() -> None:
    assert_fails(2, "No such command 'prune'.*see `fineprune --help`", "prune")
    assert_fails(2, "Missing option '--output'.*see `fineprune export --help`", "export", "x")


def test_failures_of_your_own_code(data: str, tmp_path: Path, output: Path) -> None:
    (tmp_path / "mine.py").write_text("def net():\n    return 1 / 0\n\n\ndef text():\n    return 'net'\n")
    options = ["--data", data, *COMPRESS, "--output", output]
    assert_fails(1, r"mine.py:net failed: ZeroDivisionError: .*mine.py, line 2", "compress", "--model", f"{tmp_path}/mine.py:net", *options)
    assert_fails(2, r"mine.py:text", "compress", "--model", f"{tmp_path}/mine.py:text", *options)
    assert_fails(2, "has no callable named 'nett'; it defines net, text", "compress", "--model", f"{tmp_path}/mine.py:nett", *options)


def test_memory_that_torch_does_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_arguments: object) -> NoReturn:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4798848069120 bytes.")

    monkeypatch.setattr("fineprune.cli.options.model_spec", allocate)
    assert fineprune("macs", "--model", "lenet").err == "fineprune: out of memory; use a smaller --batch-size, --samples or image size\n"
