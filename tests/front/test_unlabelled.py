"""A folder of images without classes: what compresses on it, what it says, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fineprune.common.errors import RunError
from fineprune.compressor.bundle import Bundle
from fineprune.models.data import load_data
from fineprune.networks import load_arguments
from fineprune.report import write_report
from support.command import fineprune, succeed

WITHOUT = ["--prune", 0.6, "--fwp-criterion", "magnitude", "--epochs", 0]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 16x16 in one folder."""
    folder, random = tmp_path_factory.mktemp("bare"), np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"photo_{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def options(images: Path, checkpoint: Path, network: str) -> list[object]:
    named = ["--model", network, "--model-arg", "width=6", "--checkpoint", checkpoint]
    return [*named, "--data", f"imagefolder:{images}", "--data-arg", "channels=1", "--data-arg", "mean=0.45", "--data-arg", "std=0.23"]


def test_a_network_is_compressed_and_measured_by_agreement(options: list[object], tmp_path: Path) -> None:
    result = succeed("compress", *options, *WITHOUT, "--output", tmp_path / "b")
    assert "no classes, train 43, validation 5, test 12; the images have no labels" in result.err
    assert "dense: test agreement with the dense network 100.00%" in result.err
    assert "agreement with the dense network on 12 test samples" in " ".join(result.out.split())  # titles are as wide as tables
    assert "warning" not in result.err
    facts: dict[str, Any] = Bundle.load(tmp_path / "b").facts
    assert facts["accuracy"]["measure"] == "agreement with the dense network"
    assert 0 <= facts["accuracy"]["reconstructed"] <= 1 and facts["reconstruction"]["images"] == 43
    assert facts["data"]["classes"] == []
    assert len(load_data(**load_arguments(facts["data"])).test) == 12
    write_report(tmp_path / "b", tmp_path / "page.html")
    assert "agreement with the dense network on 12 test samples" in (tmp_path / "page.html").read_text()
    assert succeed("export", tmp_path / "b", "--model", options[1], "--data", options[7], "--output", tmp_path / "b.onnx")


def test_methods_that_read_labels_are_refused_with_those_that_do_not(options: list[object], tmp_path: Path) -> None:
    result = fineprune("compress", *options, "--prune", 0.6, "--preset", "taylor", "--epochs", 0, "--output", tmp_path / "b")
    assert result.code == 2
    assert "FWP criterion 'taylor' needs labels, and there are none in imagefolder:" in result.err
    assert "these need none: 2:4, asl, fpgm, l1-filters, lamp, magnitude, obc, obs, random, wis, wis-signed" in result.err
    blocks = ["--preset", "taylor", "--ffp", 0.2, "--fwp", 0.2, "--fwp-criterion", "wis", "--fwp-scope", "kernel"]
    result = fineprune("calibrate", *options, *blocks, "--output", tmp_path / "s")
    assert result.code == 2 and "FFP criterion 'taylor' needs labels" in result.err and "these need none: apoz, l1, l2" in result.err


def test_training_is_refused_unless_the_dense_network_alone_teaches(options: list[object], tmp_path: Path) -> None:
    epochs = [*WITHOUT[:-1], 1]
    result = fineprune("compress", *options, *epochs, "--output", tmp_path / "b")
    assert result.code == 2 and "fine-tuning needs labels" in result.err
    succeed("compress", *options, *epochs, "--distill", 1, "--output", tmp_path / "b")
    assert Bundle.load(tmp_path / "b").facts["accuracy"]["finetuned"] is not None


def test_what_needs_labels_says_so(options: list[object], tmp_path: Path) -> None:
    result = fineprune("eval", *options)
    assert result.code == 1 and "images without labels serve" in result.err


def test_folders_may_be_passed_over(images: Path, tmp_path: Path) -> None:
    (tmp_path / "n01440764").mkdir()
    for path in images.iterdir():
        (tmp_path / "n01440764" / path.name).write_bytes(path.read_bytes())
    assert load_data(f"imagefolder:{tmp_path}").labelled
    data = load_data(f"imagefolder:{tmp_path}", labels="none", classes=7)
    assert not data.labelled and len(data.classes) == 7
    assert torch.equal(data.train.labels, torch.full((len(data.train),), -1))
    with pytest.raises(RunError, match="holds no images"):
        (tmp_path / "empty").mkdir()
        load_data(f"imagefolder:{tmp_path / 'empty'}", labels="none")


def test_a_split_gets_other_labels_and_the_first_keeps_its_own(images: Path) -> None:
    data = load_data(f"imagefolder:{images}")
    wanted = torch.arange(len(data.test))
    other = data.test.relabelled(wanted)
    assert torch.equal(other.labels, wanted) and torch.equal(next(iter(other.batches(12))).labels, wanted)
    assert bool((data.test.labels == -1).all()) and bool((data.train.labels == -1).all())
