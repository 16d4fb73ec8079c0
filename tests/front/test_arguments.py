"""The Python API: what is of another type than an argument takes is named in one line, with what it takes, before any work."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fineprune
from fineprune.common.errors import UsageError
from fineprune.models.training.config import TrainConfig

NET = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))
IMAGES = TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4).long())


class Stream(IterableDataset[Any]):
    """One sample after the other."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield torch.zeros(1, 8, 8)


def compress(model: Any = NET, data: Any = "digits", **settings: Any) -> Callable[[], object]:
    return lambda: fineprune.compress(model, data, **{"prune": 0.3, "epochs": 0, **settings})


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "no model": (compress(None), "^model is an nn.Module, or a name such as 'resnet20' or 'file.py:factory'; got None$"),
    "a class": (compress(nn.Sequential), "got the class Sequential; call it to make the network"),
    "a function": (compress(lambda: NET), "got an object of type function; call it"),
    "weights": (compress(NET.state_dict()), "these are weights: build the network and load them"),
    "a path for a model": (compress(Path("x.pt")), "a file of weights is the checkpoint"),
    "weights beside a module": (compress(checkpoint="x.pt"), "checkpoint belongs to a network given by name"),
    "arguments beside a module": (compress(model_args={"width": 3}), "model_args belongs to a network given by name"),
    "weights for a checkpoint": (compress("lenet", checkpoint=NET.state_dict()), "checkpoint is the path of a weights file; got an object"),
    "a list of arguments": (compress("lenet", model_args=["width=3"]), "model_args is a dict of the network's arguments"),
    "a number for data": (compress(data=5), "^data is a data set's spec, .*a Dataset, .inputs, labels.; got 5$"),
    "a list for data": (compress(data=[1]), "^data is a DataLoader, .* or inputs alone; got an object of type list$"),
    "a stream": (compress(data=DataLoader(Stream())), "an iterable data set has none; give a Dataset with a length"),
    "a tensor of no images": (
        compress(data=torch.zeros(3)),
        r"inputs are float32 \[N,C,H,W\] as the network .*, got torch.float32 \[1\]",
    ),
    "bytes": (compress(data=torch.zeros(3, 1, 8, 8, dtype=torch.uint8)), r"got torch.uint8 \[1, 1, 8, 8\]; convert them"),
    "labels of numbers": (
        compress(data=(torch.zeros(3, 1, 8, 8), torch.zeros(3))),
        r"labels .* int64.* got torch.float32 \[1\]",
    ),
    "labels too few": (compress(data=(torch.zeros(3, 1, 8, 8), torch.zeros(2))), "give one for each"),
    "three parts": (compress(data=TensorDataset(*[torch.zeros(4, 1, 8, 8)] * 3)), "has 3 parts; give inputs, or"),
    "a test of a named data set": (compress(test=IMAGES), "test belongs to samples that are given in Python"),
    "a validation of more": (compress(data=IMAGES, validation=1.5), r"validation is samples, or a fraction in \[0,1\)"),
    "a test of another shape": (compress(data=IMAGES, test=torch.zeros(2, 1, 9, 9)), "differ in shape or in having labels"),
    "a path for data": (compress(data=Path("images")), "give 'imagefolder:images', for a file of arrays 'npz:images'"),
    "text for epochs": (compress(epochs="3"), "epochs is a whole number"),
    "fewer epochs than none": (compress(epochs=-1), "epochs is a whole number of at least 1, got -1"),
    "text for a ratio": (compress(prune="0.5"), r"a pruned fraction in \[0, 1\), got '0.5'"),
    "all of it": (compress(prune=1.5), r"a pruned fraction in \[0, 1\), got 1.5"),
    "text for samples": (compress(samples="9"), "samples is a whole number; got '9'"),
    "true for samples": (compress(samples=True), "samples is a whole number; got True"),
    "settings that there are not": (compress(finetune={"epoch": 3}), "finetune has unknown epoch; it takes the settings of TrainConfig"),
    "settings in both": (compress(epochs=1, finetune={"epochs": 3}), "epochs is one of the settings that finetune gives"),
    "settings as text": (compress(finetune="epochs=3"), "finetune is a fineprune.*TrainConfig, or a dict of its settings; got 'epochs=3'"),
    "a number for a folder": (compress(output=5), "output is the path of a folder; got 5"),
    "a number for statistics": (compress(statistics=5), "statistics is the path of a folder"),
    "true for progress": (compress(progress=True), r"progress is an object .*Lines\(\) .*Silent\(\); got True"),
    "lr beside finetune": (
        compress(epochs=None, lr=0.1, finetune=TrainConfig()),
        r"lr is one of the settings that finetune gives",
    ),
    "epochs beside finetune": (compress(epochs=1, finetune=TrainConfig()), r"epochs is one of the settings that finetune gives"),
    "a rate of nothing": (compress(epochs=1, lr=0), "lr is above 0, got 0"),
    "a part of a batch": (compress(epochs=1, batch_size=0.5), "batch_size is a whole number of at least 1, got 0.5"),
    "excluded twice": (
        compress(fwp={"exclude": ["0"]}, exclude="0"),
        "exclude is given for all masks and in fwp",
    ),
    "excluding numbers": (compress(exclude=[1]), r"exclude is a list of globs of layers, got \[1\]"),
    "loading nothing": (lambda: fineprune.load(None), "bundle is a bundle .* or the path of its folder; got None"),  # type: ignore[arg-type]
    "loading into a name": (lambda: fineprune.load("x", "resnet20"), "model is the dense network, an nn.Module; got 'resnet20'"),  # type: ignore[arg-type]
    "exporting a module": (lambda: fineprune.to_onnx(NET, "x.onnx"), "fineprune.compress makes a bundle of it"),  # type: ignore[arg-type]
    "exporting to nowhere": (lambda: fineprune.to_onnx("x", None), "path is the path of the ONNX file to write; got None"),  # type: ignore[arg-type]
    "measuring a number": (lambda: fineprune.bench("x", onnx=5), "onnx is the path of an ONNX file; got 5"),  # type: ignore[arg-type]
    "measuring nothing": (lambda: fineprune.bench("x", onnx=[None]), "onnx is the path of an ONNX file; got None"),  # type: ignore[list-item]
    "exporting with a number": (lambda: fineprune.to_onnx("x", "x.onnx", samples=9), "samples are inputs as the network takes them.*got 9"),
    "exporting with arrays": (lambda: fineprune.to_onnx("x", "x.onnx", samples=[1]), "samples is a DataLoader.*got an object of type list"),  # type: ignore[arg-type]
    "measuring a module": (lambda: fineprune.bench(NET), "network is a bundle .*compress makes a bundle of it"),  # type: ignore[arg-type]
    "measuring by a dict": (lambda: fineprune.bench("x", {"rounds": 3}), "config is a fineprune.export.benchmark.BenchmarkConfig"),  # type: ignore[arg-type]
    "a recipe that is a dict": (lambda: fineprune.run({}), "recipe is the path of a recipe .TOML.; got an object of type dict"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_arguments_are_named(case: str) -> None:
    call, message = CASES[case]
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
