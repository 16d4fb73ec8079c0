"""The trainer on the embedded scans, with networks of the zoo and with masks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fineprune.common.errors import RunError
from fineprune.compressor.layers import MaskedConv2d
from fineprune.models.data import ImageData, load_data
from fineprune.models.training import TrainConfig, evaluate, recalibrate_batchnorm, train
from fineprune.models.zoo import build
from support.fakes import Recorder


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


def lenet(data: ImageData) -> nn.Module:
    return build("lenet", seed=0, in_channels=data.input_shape[0], num_classes=len(data.classes))


def test_lenet_reads_digits(digits: ImageData) -> None:
    model = lenet(digits)
    result = train(model, digits, TrainConfig(epochs=8, batch_size=64, lr=0.05), device="cpu")
    assert evaluate(model, digits.test, device="cpu").accuracy > 0.9
    assert result.best_accuracy == pytest.approx(evaluate(model, digits.validation, device="cpu").accuracy, abs=0.01)


class CrashError(Exception):
    """Comes from the caller's own code."""


class Crashing(Recorder):
    """Raises at a given batch of the whole run."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __call__(self, items, *, total, description, start=0):
        for item in super().__call__(items, total=total, description=description, start=start):
            if description.startswith("epoch"):
                self.left -= 1
                if self.left < 0:
                    raise CrashError
            yield item


def masked_resnet(data: ImageData) -> nn.Module:
    """ResNet-20 of width 4, some of its convolutions under both masks."""
    model = build("resnet20", seed=1, width=4, in_channels=data.input_shape[0], num_classes=len(data.classes))
    draw = torch.Generator().manual_seed(0)
    for name, size in (("layer1.0.conv1", 32), ("layer2.1.conv2", 16), ("layer3.2.conv1", 8)):
        parent = model.get_submodule(name.rpartition(".")[0])
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        ffp = torch.rand(conv.in_channels, size, size, generator=draw) < 0.6
        fwp = torch.rand(conv.weight.shape, generator=draw) < 0.5
        setattr(parent, name.rpartition(".")[2], MaskedConv2d.wrap(conv, ffp_mask=ffp, fwp_mask=fwp))
    return model


def test_a_masked_network_resumes_to_the_same_bits_and_keeps_its_masks(digits: ImageData, tmp_path: Path) -> None:
    few = replace(digits, train=digits.validation)
    config = TrainConfig(epochs=2, batch_size=40, lr=0.05, checkpoint_every_s=0)
    straight, resumed = masked_resnet(digits), masked_resnet(digits)
    before = {name: m.masked_weight().detach().clone() for name, m in straight.named_modules() if isinstance(m, MaskedConv2d)}
    train(straight, few, config, device="cpu")
    for crash in (1, 2):
        with pytest.raises(CrashError):
            train(masked_resnet(digits), few, config, device="cpu", output=tmp_path, progress=Crashing(crash))
    train(resumed, few, config, device="cpu", output=tmp_path)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for name, weight in before.items():
        layer = straight.get_submodule(name)
        assert isinstance(layer, MaskedConv2d) and layer.fwp_mask is not None
        assert not layer.masked_weight()[~layer.fwp_mask].any() and not torch.equal(layer.masked_weight(), weight)


def test_recalibration_takes_the_datas_batches(digits: ImageData) -> None:
    model = masked_resnet(digits)
    assert recalibrate_batchnorm(model, digits.validation.batches(50), device="cpu") == len(digits.validation)
    bn = model.get_submodule("bn1")
    assert isinstance(bn, nn.BatchNorm2d) and bn.running_mean is not None and bn.running_mean.abs().sum() > 0


def test_a_network_for_colour_images_is_refused_with_the_images_shape(digits: ImageData) -> None:
    model = build("lenet", seed=0, in_channels=3, num_classes=10)
    with pytest.raises(RunError, match=r"the model failed on 128 images of 1x32x32: .*build it for such images"):
        train(model, digits, TrainConfig(epochs=1), device="cpu")
