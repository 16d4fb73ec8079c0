"""Stopped by SIGINT or SIGTERM anywhere in a compression, the same command goes on and ends with the same bundle."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.command import fineprune, succeed

SETTINGS = ["--ffp", 0.3, "--fwp", 0.5, "--epochs", 2, "--batch-size", 32, "--calibration-batch-size", 32]


@pytest.fixture(scope="module")
def whole(folder: Path, trained: list[object]) -> tuple[Path, int]:
    """A bundle made in one go, and how often the network ran for it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FORWARDS", str(folder / "forwards"))
        succeed("compress", *trained, *SETTINGS, "--output", folder / "whole")
    return folder / "whole", (folder / "forwards").stat().st_size


@pytest.fixture(autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """Shells have what they start in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def assert_same(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "masks.safetensors"):
        expected, actual = load_file(one / name), load_file(other / name)
        assert expected.keys() == actual.keys()
        assert all((expected[key] == actual[key]).all() for key in expected), name


@pytest.mark.parametrize(
    ("part", "by"), [(0.02, "SIGTERM"), (0.2, "SIGINT"), (0.4, "SIGTERM"), (0.6, "SIGINT"), (0.8, "SIGTERM"), (0.97, "SIGINT")]
)
def test_an_interrupted_compression_goes_on(
    whole: tuple[Path, int], trained: list[object], by: str, part: float, own_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, forwards = whole
    log = tmp_path / "forwards"
    stop_at = round(part * forwards)
    for name, value in {"FORWARDS": log, "STOP_AT": stop_at, "STOP_BY": by}.items():
        own_environment.setenv(name, str(value))
    output = tmp_path / "b"
    result = fineprune("compress", *trained, *SETTINGS, "--output", output)
    assert result.code == 1
    assert "interrupted" in result.err.splitlines()[-1] and "the same command" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err and not output.exists()
    stopped_after = log.stat().st_size
    succeed("compress", *trained, *SETTINGS, "--output", output)
    assert_same(bundle, output)
    assert not Path(f"{output}.work").exists()
    if part >= 0.6:
        assert log.stat().st_size - stopped_after < 0.9 * forwards  # the trials before any work are made again


CUBIC = ["--prune-schedule", "cubic", "--prune-schedule-arg", "updates=3", "--prune-schedule-arg", "samples=40"]
GRIDS = ["--epochs", 2, "--qat-epochs", 1]
COMPOSED: dict[str, list[object]] = {
    "on the fly": ["--prune", 0.6, *CUBIC, "--epochs", 4, "--batch-size", 32, "--policy", "infobatch", "--policy-arg", "full_share=0.25"],
    "on the fly by a server": ["--prune", 0.6, *CUBIC, "--epochs", 2, "--batch-size", 32, "--trainer", "dc-asgd", "--workers", 3],
    "reconstructed, then a server": ["--prune", 0.6, "--reconstruct", "--epochs", 4, "--batch-size", 32, "--trainer", "lc-asgd"],
    "one list, taught, on grids": ["--prune", 0.6, "--prune-split", "common", *CUBIC, *GRIDS, "--batch-size", 32, "--distill", 0.8],
}


@pytest.mark.parametrize("options", COMPOSED.values(), ids=COMPOSED)
def test_what_is_put_together_goes_on_alike(
    options: list[object], named: list[object], checkpoint: Path, own_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From an untrained network where it is pruned on the fly; stopped in the middle of its training."""
    given = [*named, *options, *([] if options[2:5] == CUBIC[:3] else ["--checkpoint", checkpoint])]
    own_environment.setenv("FORWARDS", str(tmp_path / "forwards"))
    succeed("compress", *given, "--output", tmp_path / "whole")
    forwards = (tmp_path / "forwards").stat().st_size
    for name, value in {"FORWARDS": tmp_path / "log", "STOP_AT": round(0.7 * forwards), "STOP_BY": "SIGINT"}.items():
        own_environment.setenv(name, str(value))
    stopped = fineprune("compress", *given, "--output", tmp_path / "b")
    assert stopped.code == 1 and "interrupted at epoch" in stopped.err.splitlines()[-1]
    assert "resuming at epoch" in succeed("compress", *given, "--output", tmp_path / "b").err
    assert_same(tmp_path / "whole", tmp_path / "b")


def test_other_settings_start_anew(
    whole: tuple[Path, int], trained: list[object], own_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"FORWARDS": tmp_path / "log", "STOP_AT": round(0.8 * whole[1]), "STOP_BY": "SIGINT"}.items():
        own_environment.setenv(name, str(value))
    assert fineprune("compress", *trained, *SETTINGS, "--seed", 1, "--output", tmp_path / "b").code == 1
    assert Path(f"{tmp_path / 'b'}.work").is_dir()
    succeed("compress", *trained, *SETTINGS, "--output", tmp_path / "b")
    assert_same(whole[0], tmp_path / "b")


def test_a_run_killed_before_its_first_file_was_whole(trained: list[object], tmp_path: Path) -> None:
    (tmp_path / "b.work" / ".job.json.x1y2").mkdir(parents=True)
    succeed("compress", *trained, "--ffp", 0.3, "--samples", 40, "--epochs", 0, "--output", tmp_path / "b")


def test_a_strangers_work_folder_is_left_alone(trained: list[object], tmp_path: Path) -> None:
    (tmp_path / "b.work").mkdir()
    (tmp_path / "b.work" / "thesis.tex").write_text("mine")
    result = fineprune("compress", *trained, "--ffp", 0.3, "--epochs", 0, "--output", tmp_path / "b")
    assert result.code == 2
    assert "b.work exists and is not the work folder of an earlier run" in result.err
    assert (tmp_path / "b.work" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_says_one_line(
    whole: tuple[Path, int], trained: list[object], by: signal.Signals, tmp_path: Path
) -> None:
    """The same in a process of its own: the exit code and stderr that a shell sees."""
    arguments = [sys.executable, "-m", "fineprune", "compress", *trained, *SETTINGS, "--output", tmp_path / "b"]
    switches = {"FORWARDS": str(tmp_path / "log"), "STOP_AT": str(round(0.88 * whole[1])), "STOP_BY": by.name, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([str(a) for a in arguments], env={**os.environ, **switches}, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    complaints = [line for line in result.stderr.splitlines() if line.startswith("fineprune: ")]
    assert len(complaints) == 1 and result.stderr.endswith(f"{complaints[0]}\n")
    assert "interrupted at epoch 1, batch" in complaints[0] and "run the same command to resume" in complaints[0]
    assert "Traceback" not in result.stderr
