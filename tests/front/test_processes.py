"""`torchrun` with the commands that several processes share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fineprune.compressor.bundle import Bundle

pytestmark = pytest.mark.slow


def in_two(*arguments: object) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fineprune"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def test_train_and_compress_write_and_speak_once(tmp_path: Path) -> None:
    named = ["--model", "resnet8", "--data", "digits", "--epochs", "1"]
    trained = in_two("train", *named, "--output", tmp_path / "run")
    assert trained.stdout.count("wrote") == 1 and trained.stderr.count("epoch 1/1: train") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"model.safetensors", "training.json", "training.pt"}
    checkpoint = ["--checkpoint", tmp_path / "run" / "model.safetensors"]
    compressed = in_two("compress", *named, *checkpoint, "--prune", "0.5", "--samples", "200", "--output", tmp_path / "bundle")
    assert compressed.stdout.count("wrote") == 1 and compressed.stderr.count("epoch 1/1: train") == 1
    assert Bundle.load(tmp_path / "bundle").facts["training"]["finetune"]["history"][0]["visits"] > 0
    assert not (tmp_path / "bundle.work").exists()
