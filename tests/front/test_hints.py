"""A command line that means something else than it says is answered with the one that was meant."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from support.command import fineprune, succeed

NETWORK = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def converts():
    return nn.Sequential(nn.Conv2d(3, 1, 1), net())

class Net(nn.Module):
    pass

def _hidden():
    pass
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind that a user may have at hand."""
    folder = tmp_path_factory.mktemp("hints")
    (folder / "my.py").write_text(NETWORK)
    (folder / "empty.py").write_text("from os import path\n")
    (folder / "broken.py").write_text("def net(:\n")
    for name in ("w.pt", "x.onnx", "r.toml", "notes.txt"):
        (folder / name).write_bytes(b"x")
    for name in ("photos/cat", "bundle", "run/bundle", "training", "nets"):
        (folder / name).mkdir(parents=True)
    (folder / "nets" / "small.py").write_text(NETWORK)
    (folder / "bundle" / "manifest.json").write_text(json.dumps({}))
    (folder / "run" / "bundle" / "manifest.json").write_text("{}")
    (folder / "training" / "model.safetensors").write_bytes(b"x")
    for name, shape in (("rgb", (16, 16, 3)), ("gray", (16, 16))):
        images = np.zeros((20, *shape), np.uint8)
        np.savez(
            folder / f"{name}.npz", train_images=images, train_labels=np.arange(20) % 10, test_images=images, test_labels=np.arange(20) % 10
        )
    return folder


CASES = [
    ("compress resnet20", "resnet20 is a network and no bundle; did you mean `fineprune compress --model resnet20`?"),
    ("compress torchvision:resnet18 w.pt digits", "`fineprune compress --model torchvision:resnet18 --checkpoint w.pt --data digits`?"),
    ("calibrate my.py:net photos", "did you mean `fineprune calibrate --model my.py:net --data imagefolder:photos`?"),
    ("train my.py gray.npz width=3", "`fineprune train --model my.py:net --data npz:gray.npz --model-arg width=3`?"),
    ("calibrate bundle --prune 0.5", "(bundle): a bundle is compressed already; this command takes a network"),
    ("train what", "Got unexpected extra argument (what) (see `fineprune train --help`)"),
    ("macs bundle more", "Got unexpected extra argument (more) (see"),
    ("macs resnet20", "resnet20 is a network and no bundle; did you mean `fineprune macs --model resnet20`?"),
    ("eval my.py:net", "did you mean `fineprune eval --model my.py:net`?"),
    ("macs my.py", "did you mean `fineprune macs --model my.py:net`?"),
    ("bench x.onnx", "x.onnx is an ONNX file and no bundle; did you mean `fineprune bench BUNDLE --onnx x.onnx`?"),
    ("report x.onnx", "x.onnx is an ONNX file and no bundle; name the output folder of `fineprune compress`"),
    ("export w.pt --output y.onnx", "did you mean `fineprune export --model NAME --checkpoint w.pt`?"),
    ("export training --output y.onnx", "did you mean `fineprune export --model NAME --checkpoint training/model.safetensors`?"),
    ("macs run", "run is the folder of a recipe's run and no bundle; did you mean `fineprune macs run/bundle`?"),
    ("report bundle/manifest.json", "did you mean `fineprune report bundle`?"),
    ("bench r.toml", "r.toml is a recipe and no bundle; did you mean `fineprune run r.toml`?"),
    ("macs photos", "photos is not a bundle (manifest.json is missing)"),
    ("macs --model my.py", "name the callable in it that makes the network, as in my.py:net (it defines net, converts, Net)"),
    ("macs --model my.py:", "as in my.py:net (it defines"),
    ("macs --model empty.py", "as in empty.py:factory (the file defines none)"),
    ("macs --model broken.py", "as in broken.py:factory"),
    ("macs --model none.py", "there is no file none.py; give one and the callable in it"),
    ("macs --model nets/small:net", "'nets/small:net' is no network: write nets/small.py:net"),
    ("macs --model w.pt", "name the network, too: --model NAME --checkpoint w.pt"),
    ("macs --model bundle", "that is a bundle, which says its network itself"),
    ("macs --model photos", "that is a folder; give the file and the callable in it"),
    ("macs --model ResNet-18", "unknown model 'ResNet-18': did you mean torchvision:resnet18?"),
    ("macs --model ResNet20", "unknown model 'ResNet20': did you mean resnet20"),
    ("macs --model my.py:net", "give --input CxHxW, such as --input 3x224x224, or --data"),
    ("eval --model lenet --data photos", "for a folder with one folder of images for each class give imagefolder:photos"),
    ("eval --model lenet --data gray.npz", "give npz:gray.npz"),
    ("eval --model lenet --data my.py", "name the callable in it that makes the data set, as in my.py:net"),
    ("eval --model lenet --data notes.txt", "a single file is read only as npz:FILE"),
    ("eval --model lenet --data digits --checkpoint bundle", "checkpoint bundle is a folder: a bundle, which holds network and weights"),
    ("eval --model lenet --data digits --checkpoint training", "give a weights file in it: model.safetensors"),
    (
        "eval --model my.py:net --data npz:rgb.npz",
        "first convolution takes images with 1 channel, not with 3; give a network for them, or other",
    ),
    ("eval --model lenet --model-arg in_channels=1 --data npz:rgb.npz", "give --model-arg in_channels=3, or other data"),
    ("train --model my.py:net --data npz:rgb.npz --epochs 1 --output o", "takes images with 1 channel, not with 3"),
    ("compress --model my.py:converts --data npz:gray.npz --prune 0.5 --output o", "takes images with 3 channels, not with 1"),
    ("compress --model lenet --data digits --prune 50% --output o", "Invalid value for '--prune': 50% is written 0.5."),
    ("compress --model lenet --data digits --fwp half --output o", "Invalid value for '--fwp': 'half' is no fraction such as 0.3."),
    ("train --model lenet --data digits --epochs 1 --output ''", "An argument is empty; perhaps a variable of the shell is not set."),
    ("macs ''", "An argument is empty"),
    (
        "train --model lenet --data digits --seed 99999999999999999999 --output o",
        "Invalid value for '--seed': 99999999999999999999 is not in",
    ),
    ("calibrate --model lenet --data digits --prune 0.3 --seed -1 --output o", "Invalid value for '--seed': -1 is not in"),
    ("macs --model lenet --input 3x999999999x999999999", "--input is CxHxW with numbers up to 65536"),
    ("calibrat x", "No such command 'calibrat'. Did you mean 'calibrate'?"),
    ("compress --modle x", "Did you mean"),
]


@pytest.mark.parametrize(("line", "hint"), CASES, ids=[line for line, _ in CASES])
def test_what_was_meant(line: str, hint: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    result = fineprune(*shlex.split(line))
    assert result.code == 2
    assert hint in result.err
    assert result.err.splitlines()[-1].startswith("fineprune: ") and not Path("o").exists()


def test_the_help_is_shown_whatever_else_the_line_says() -> None:
    assert succeed("compress", "resnet20", "--help") == succeed("compress", "--help")


def test_a_network_that_converts_its_images_is_let_pass(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    Path("gray.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n"
        "    def forward(self, x):\n        return super().forward(x.expand(-1, 3, -1, -1))\n"
        "\ndef net():\n    return Net(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    assert "accuracy" in succeed("eval", "--model", "gray.py:net", "--data", "npz:gray.npz").out
