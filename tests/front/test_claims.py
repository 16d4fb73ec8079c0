"""What a compression says of itself: the share of all multiply-adds first, and what was no work, was not measured or cannot be."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fineprune
from fineprune.calibrate.convolutions import find_convolutions
from fineprune.claims import beforehand, chance_level, few_samples
from fineprune.common.errors import UsageError
from fineprune.compressor.macs import count_macs
from fineprune.models.data import load_data
from fineprune.report import write_report
from support.command import succeed
from support.fakes import Recorder


class Attentive(nn.Module):
    """A convolution, linear layers and attention, as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.mix = nn.Sequential(nn.Linear(8, 40), nn.GELU(), nn.Linear(40, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return self.head(self.mix(x).mean(1))


def plain(head: nn.Module | None = None) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head or nn.Linear(8, 10)
        )


def said_before(model: nn.Module) -> str:
    sites, _ = find_convolutions(model, (1, 16, 16))
    return beforehand(count_macs(model, (1, 16, 16)), sites)


def test_how_little_can_go_is_said_before_the_work(data: str) -> None:
    line = said_before(Attentive())  # 10,320 and 4,096 and 2,048 multiply-adds
    assert line == (
        "linear layers are 62.7% and products outside layers (attention) are 24.9% of the multiply-adds and are not pruned; "
        "at most 12.4% of all can go"
    )
    assert said_before(plain()) == ""
    transposed = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 6, 3), nn.Flatten(), nn.LazyLinear(10))
    transposed(torch.zeros(1, 1, 16, 16))
    assert re.match(r"linear layers are .* and convolutions that are left dense are 71\.0% of the multiply-adds", said_before(transposed))
    progress = Recorder()
    fineprune.compress(Attentive(), data, prune=0.5, epochs=0, samples=40, progress=progress)
    assert progress.lines[1] == line and progress.lines[0].startswith("no preset is named")


@pytest.mark.parametrize(
    ("accuracy", "classes", "samples", "warned"),
    [
        (0.1, 10, 1000, True),
        (0.14, 10, 1000, True),
        (0.2, 10, 1000, False),
        (0.0014, 1000, 50000, True),
        (0.002, 1000, 50000, False),
        (0.53, 2, 100, True),
        (0.75, 2, 100, False),
        (0.55, 2, 10000, False),
        (0.3, 3, 12, True),
    ],
)
def test_an_accuracy_at_chance_level_is_a_warning(accuracy: float, classes: int, samples: int, warned: bool) -> None:
    line = chance_level(accuracy, torch.arange(samples) % classes)
    assert bool(line) == warned
    if warned:
        assert line.startswith(f"warning: an accuracy of {accuracy:.2%} is chance level (guessing reaches ") and "mean and std" in line


def test_chance_is_that_of_the_most_frequent_class() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[:100] = 1
    assert "guessing reaches 90.00%" in chance_level(0.9, labels)
    assert "pruned on the fly" in chance_level(0.9, labels, on_the_fly=True) and "warning" not in chance_level(0.9, labels, on_the_fly=True)
    assert chance_level(0.95, labels) == chance_level(None, labels) == chance_level(0.1, labels[:0]) == ""


def test_classes_without_a_sample_are_counted() -> None:
    assert few_samples(torch.arange(64), 1000).startswith("warning: 936 of 1000 classes have no sample among the 64 that are calibrated on")
    assert few_samples(torch.arange(20) % 10, 10) == ""


def test_a_compression_warns_before_it_calibrates(data: str) -> None:
    progress = Recorder()
    fineprune.compress(plain(), data, prune=0.3, epochs=0, samples=5, progress=progress)
    chance, few = (
        next(i for i, line in enumerate(progress.lines) if text in line) for text in ("is chance level", "have no sample among the 5")
    )
    assert chance < few < next(i for i, line in enumerate(progress.lines) if line.startswith("masked"))


def test_zeros_that_were_there_before_are_no_saving(data: str, tmp_path: Path) -> None:
    model, progress = plain(), Recorder()
    with torch.no_grad():
        model[2].weight[:4] = 0
    bundle = fineprune.compress(model, data, prune=0.4, epochs=0, progress=progress)
    zero = bundle.facts["zero_weights"]
    assert zero["macs_dense"] == 12 * 12 * 4 * 54
    pruned = bundle.facts["macs"]["macs_dense"] - bundle.facts["macs"]["macs"]
    share, before = (part / bundle.facts["macs"]["macs_dense"] for part in (pruned, zero["macs_pruned"]))
    [line] = [line for line in progress.lines if "that are zero in the network given" in line]
    assert line.endswith(f"of the {share:.1%} that are pruned, {before:.1%} are such and saved nothing")
    assert 0.3 < before <= share
    write_report(bundle, tmp_path / "r.html")
    assert "with weights that were zero before" in (tmp_path / "r.html").read_text()


def test_macs_name_zeros_apart_and_what_cannot_be_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(1, 4, 3)\n        torch.nn.init.zeros_(self.conv.weight[:1])\n\n"
        "    def forward(self, x):\n        return torch.fft.rfft2(self.conv(x)).abs()\n"
    )
    out = succeed("macs", "--model", f"{tmp_path / 'net.py'}:Net", "--input", "1x12x12").out
    assert "of the kept ones 0.001 M are with weights that are zero though no mask drops them" in out
    assert "not counted: (functional): _fft_r2c (its products cannot be seen)" in out


def test_the_share_of_all_multiply_adds_comes_first(bundle: Path, trained: list[object], tmp_path: Path) -> None:
    facts = fineprune.Bundle.load(bundle).facts
    kept = facts["macs"]["macs"] / facts["macs"]["macs_dense"]
    out = succeed("compress", *trained, "--prune", 0.3, "--epochs", 0, "--samples", 40, "--output", tmp_path / "b").out
    assert re.match(r"MACs \d\.\d{3} M of \d\.\d{3} M \(\d\d\.\d%\)\n", out)
    succeed("report", bundle, "--output", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert f"{1 - kept:.1%} of the multiply-adds removed</h1>" in page
    assert page.index("all multiply-adds, million") < page.index("convolution multiply-adds, million")


def test_what_was_not_measured_with_these_weights_is_said(data: str, tmp_path: Path) -> None:
    bundle = fineprune.compress(plain(), load_data(data), prune=0.3, epochs=0, samples=40)
    model = bundle.restore(plain())
    with torch.no_grad():
        model[5].weight.mul_(2)  # type: ignore[index, operator, union-attr]
    write_report(fineprune.Bundle.of(model, bundle.facts), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "the compressed network was not measured with these weights" in page
    assert f"{bundle.facts['accuracy']['masked']:.2%}</td></tr>" not in page


def test_whole_taps_are_named_as_the_cause_of_a_shortfall(data: str) -> None:
    progress = Recorder()
    fineprune.compress(plain(), data, preset="thesis", fwp=0.5, epochs=0, samples=40, progress=progress)
    [line] = [line for line in progress.lines if "are pruned, not" in line]
    cause = "each channel or kernel drops whole blocks or taps and keeps at least one"
    assert line == f"44.4% of the convolution multiply-adds are pruned, not 50.0%: {cause}"


def test_the_folder_above_is_named_where_half_of_the_statistics_were(data: str, tmp_path: Path) -> None:
    succeed("calibrate", "--model", "lenet", "--data", data, "--samples", 20, "--ffp", 0.3, "--output", tmp_path / "s")
    with pytest.raises(
        UsageError, match=rf"s/blocks holds no statistics; name the output folder of `fineprune calibrate` \({tmp_path}/s\)"
    ):
        fineprune.compress("lenet", data, ffp=0.3, epochs=0, statistics=tmp_path / "s" / "blocks")
