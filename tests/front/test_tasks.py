"""A user's task: segmentation, regression and several labels under the user's loss and metric, from samples to ONNX Runtime."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fineprune
from fineprune.common.errors import RunError, UsageError
from fineprune.common.progress import Lines, Silent
from fineprune.models.data.given import given_data
from fineprune.models.objective import Metric, task_of
from fineprune.models.training.config import TrainConfig
from fineprune.models.training.evaluate import evaluate
from fineprune.models.training.trainer import train
from fineprune.report import write_report


class Pixels(nn.Module):
    """Two scores for each pixel, at the images' size."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.head = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(F.relu(self.down(x))))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="nearest")


def vector(outputs: int) -> nn.Module:
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, outputs))


def pixel_loss(scores: Tensor, mask: Tensor) -> Tensor:
    return F.cross_entropy(scores, mask)


def pixel_accuracy(scores: Tensor, mask: Tensor) -> Tensor:
    return (scores.argmax(1) == mask).float().mean((1, 2))


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


def exact(scores: Tensor, targets: dict[str, Tensor]) -> float:
    return float(((scores > 0) == targets["labels"].bool()).float().mean())


def several(scores: Tensor, targets: dict[str, Tensor]) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, targets["labels"])


class Case(NamedTuple):
    """network, targets of images[N,1,12,12], loss, metric, and how its figures read."""

    network: Callable[[], nn.Module]
    targets: Callable[[Tensor], Any]
    loss: Callable[[Any, Any], Any]
    metric: Any
    written: str


CASES = {
    "segmentation": Case(Pixels, lambda x: (x[:, 0] > 0).long(), pixel_loss, fineprune.Metric("pixel accuracy", pixel_accuracy), "0."),
    "regression": Case(
        lambda: vector(2),
        lambda x: torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1),
        squared,
        fineprune.Metric("mSE", squared, higher_is_better=False, unit="mm2"),
        " mm2",
    ),
    "several labels": Case(lambda: vector(3), lambda x: {"labels": (x[:, 0, :3, 0] > 0).float()}, several, exact, "0."),
}
HEADINGS = {"segmentation": "Pixel accuracy", "regression": "mSE", "several labels": "Exact"}


def made(case: Case) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return case.network()


class Pairs(torch.utils.data.Dataset[Any]):
    """Images with the targets of a case, sample by sample."""

    def __init__(self, case: Case) -> None:
        self.x = torch.randn(40, 1, 12, 12, generator=torch.Generator().manual_seed(2))
        self.y = case.targets(self.x)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> Any:
        y = {key: value[place] for key, value in self.y.items()} if isinstance(self.y, dict) else self.y[place]
        return self.x[place], y


@pytest.mark.parametrize("name", CASES)
def test_a_task_goes_from_samples_to_onnx(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    network, samples = made(case), Pairs(case)
    bundle = fineprune.compress(
        network, samples, loss=case.loss, metric=case.metric, prune=0.4, epochs=2, batch_size=8, preset="taylor", output=tmp_path / "b",
        progress=Lines(),
    )  # fmt: skip
    called = case.metric.name if isinstance(case.metric, fineprune.Metric) else "exact"
    said = capsys.readouterr().err
    assert f"dense: validation {called} " in said and f"validation {called} " in said.split("epoch 1/2")[1] and case.written in said
    accuracy = bundle.facts["accuracy"]
    assert accuracy["measure"] == called and accuracy["unit"] == ("mm2" if name == "regression" else "") and accuracy["dense"] is not None
    assert accuracy["higher_is_better"] == (name != "regression") and 0.4 < bundle.facts["conv_macs_kept"] < 0.75
    write_report(tmp_path / "b", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"<td>{called}</td>" in page and f"<h2>{HEADINGS[name]}</h2>" in page
    assert f">validation {called}" in page and not re.search(
        r"accuracy, %|>Accuracy<|[> ]accuracy[^<]* on \d", page.replace("pixel accuracy", "")
    )
    trained = bundle.facts["training"]["finetune"]
    assert trained["measure"] == called and trained["best_figure"] in [record["validation_figure"] for record in trained["history"]]
    assert not any("accuracy" in key for record in (trained, *trained["history"]) for key in record)
    exported = fineprune.to_onnx(tmp_path / "b", tmp_path / "m.onnx", model=made(case), samples=samples.x[:4], progress=Silent())
    assert exported.parity is not None and exported.parity.passed
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    with torch.no_grad():
        expected = fineprune.load(tmp_path / "b", made(case))(samples.x)
    [found] = session.run(None, {session.get_inputs()[0].name: samples.x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_trainer_minimises_the_loss_that_is_given(name: str) -> None:
    case, objective = CASES[name], task_of(CASES[name].loss, CASES[name].metric)
    data = given_data(Pairs(case), objective=objective, progress=Silent())
    network = made(case)
    before = evaluate(network, data.train)
    result = train(network, data, TrainConfig(epochs=20, lr=0.02, optimizer="adam", batch_size=8))
    after = evaluate(network, data.train)
    assert after.loss < 0.9 * before.loss and result.history[-1].train_loss < result.history[0].train_loss
    assert (after.accuracy < before.accuracy) if name == "regression" else (after.accuracy > before.accuracy)


def test_lower_is_better_where_a_metric_says_so() -> None:
    case = CASES["regression"]
    for higher in (True, False):
        objective = task_of(case.loss, fineprune.Metric("error", squared, higher_is_better=higher))
        data = given_data(Pairs(case), objective=objective, progress=Silent())
        result = train(made(case), data, TrainConfig(epochs=4, lr=0.05, batch_size=8))
        figures = [record.validation_accuracy for record in result.history]
        assert result.best_accuracy == (max if higher else min)(figure for figure in figures if figure is not None)
        assert len(set(figures)) == 4


def test_figures_are_means_over_samples_whatever_the_batches() -> None:
    case = CASES["regression"]
    for loss in (case.loss, lambda outputs, targets: squared(outputs, targets).mean()):
        data = given_data(Pairs(case), objective=task_of(loss, None), progress=Silent())
        whole = next(data.train.batches(36))
        with torch.no_grad():
            mean = float(squared(made(case).eval()(whole.images), whole.labels).mean())
        for size in (5, 36):
            found = evaluate(made(case), data.train, batch_size=size)
            assert found.loss == pytest.approx(mean) and found.accuracy == pytest.approx(mean)


class MeanIoU:
    """Intersection over union of each of two classes, counted over all pixels of a set, and their mean."""

    def __init__(self) -> None:
        self.both, self.either = torch.zeros(2), torch.zeros(2)

    def update(self, scores: Tensor, mask: Tensor) -> None:
        for label in range(2):
            found, wanted = scores.argmax(1) == label, mask == label
            self.both[label] += (found & wanted).sum()
            self.either[label] += (found | wanted).sum()

    def compute(self) -> Tensor:
        return (self.both / self.either.clamp(min=1)).mean()


def test_a_figure_of_a_whole_set_is_no_mean_over_batches(capsys: pytest.CaptureFixture[str]) -> None:
    case, given = CASES["segmentation"], MeanIoU()
    network, samples = made(case), Pairs(case)
    masks = case.targets(samples.x)
    masks[::2] = 0  # intersections and unions add up, their ratios do not
    alone = MeanIoU()
    with torch.no_grad():
        scores = network.eval()(samples.x)
        network.head.bias[1] -= (scores[:, 1] - scores[:, 0]).mean()  # type: ignore[union-attr, index, operator]
        alone.update(network(samples.x), masks)
    data = given_data((samples.x, masks), objective=task_of(case.loss, given), progress=Silent(), validation=0)
    for size in (3, len(masks)):
        assert evaluate(network, data.train, batch_size=size).accuracy == pytest.approx(float(alone.compute()))
    one = Metric("MeanIoU", given)
    means = [
        fineprune.evaluate(network, (x[None], y[None]), loss=case.loss, metric=one).accuracy for x, y in zip(samples.x, masks, strict=True)
    ]
    assert abs(sum(means) / len(means) - float(alone.compute())) > 0.01
    assert not given.either.any(), "what is given stays as it is"
    settings: dict[str, Any] = {"loss": case.loss, "metric": given, "prune": 0.4, "epochs": 1, "batch_size": 8, "preset": "taylor"}
    bundle = fineprune.compress(network, (samples.x, masks), **settings, progress=Lines())
    said = capsys.readouterr().err
    assert "validation MeanIoU " in said.split("epoch 1/1")[1] and "train MeanIoU" not in said
    assert bundle.facts["accuracy"]["measure"] == "MeanIoU" and bundle.facts["accuracy"]["higher_is_better"]
    [record] = bundle.facts["training"]["finetune"]["history"]
    assert record["train_figure"] is None and 0 < record["validation_figure"] < 1


def test_layers_are_judged_by_a_figure_of_a_whole_set() -> None:
    case, samples = CASES["segmentation"], Pairs(CASES["segmentation"])
    network, targets = made(case).eval(), case.targets(samples.x)
    task: dict[str, Any] = {"loss": case.loss, "metric": MeanIoU(), "progress": Silent()}
    settings: dict[str, Any] = {
        "preset": "taylor",
        "levels": [0.5],
        "reconstruct": False,
        "times": False,
        "validation": (samples.x, targets),
    }
    found = fineprune.sensitivity(network, (samples.x, targets), **task, **settings)
    assert found["measure"] == "MeanIoU" and found["dense"] == pytest.approx(
        fineprune.evaluate(network, (samples.x, targets), **task).accuracy
    )
    row = next(row for row in found["rows"] if row["layer"] == "deep")
    masked = fineprune.compress(
        network, (samples.x, targets), **task, preset="taylor", include="deep", fwp=0.5, ffp=0, epochs=0, reconstruct=False
    )
    assert row["accuracy"] == pytest.approx(fineprune.evaluate(masked, (samples.x, targets), **task, model=network).accuracy, abs=1e-6)


def test_calibration_takes_the_loss_of_each_sample() -> None:
    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        """A mean that weighs samples against each other, as pixels to ignore do."""
        return (outputs.square().sum(1) * targets).sum() / targets.sum()

    objective = task_of(weighted, None)
    assert objective is not None
    outputs, targets = torch.randn(5, 3), torch.tensor([1.0, 2, 3, 4, 5])
    torch.testing.assert_close(objective.summed(outputs, targets, 5), outputs.square().sum())


def test_another_loss_is_another_run() -> None:
    losses: list[Any] = [
        squared,
        lambda outputs, targets: 2 * squared(outputs, targets),
        lambda outputs, targets: 3 * squared(outputs, targets),
    ]
    losses += [nn.MSELoss(), nn.SmoothL1Loss()]
    told = [given_data(Pairs(CASES["regression"]), objective=task_of(loss, None), progress=Silent()).to_json() for loss in losses * 2]
    assert told[:5] == told[5:] and all(one != other for i, one in enumerate(told[:5]) for other in told[:i])


SAMPLES = Pairs(CASES["regression"])
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no function": ({"loss": 3}, UsageError, r"loss is a function of \(outputs, targets\), got 3"),
    "a metric alone": ({"metric": squared}, UsageError, "a metric belongs to a task with a loss"),
    "a smoothed task": (
        {"loss": squared, "finetune": TrainConfig(epochs=1, lr=0.1, label_smoothing=0.1), "epochs": None},
        UsageError,
        "label_smoothing belong to classifiers under cross-entropy",
    ),
    "no loss": ({}, UsageError, "labels of a classifier are int64.*; other tasks give loss="),
    "no targets": ({"loss": squared, "data": SAMPLES.x}, UsageError, "a loss needs targets, and data holds inputs alone"),
    "named data": ({"loss": squared, "data": "digits"}, UsageError, "loss belongs to samples that are given in Python"),
    "a loss that fails": ({"loss": lambda outputs, targets: outputs @ targets}, RunError, r"the loss failed on outputs \[.*, 2\] of"),
    "a loss of too many": (
        {"loss": lambda outputs, targets: outputs - targets},
        RunError,
        r"gives \[4, 2\] for 4 samples",
    ),
}


class Several(MeanIoU):
    """As torchmetrics' mean average precision computes."""

    def compute(self) -> Any:
        return {"map": self.both.sum()}

    def update(self, scores: Tensor, mask: Tensor) -> None:
        """Nothing."""


WRONG |= {
    "no metric": ({"loss": squared, "metric": 3}, UsageError, "metric is a function of .*, or an object with update and compute, got 3"),
    "a class": (
        {"loss": squared, "metric": MeanIoU},
        UsageError,
        r"the MeanIoU is the class MeanIoU; give an object of it, such as MeanIoU\(\)",
    ),
    "several figures": ({"loss": squared, "metric": Several()}, RunError, "the metric Several computes a dict of .*; give one number"),
    "another task's metric": (
        {"loss": squared, "metric": MeanIoU()},
        RunError,
        r"the metric MeanIoU failed on outputs \[4, 2\] of 4 samples",
    ),
    "a drop of a whole set": (
        {"loss": squared, "metric": MeanIoU(), "max_drop": 1.0, "prune": None},
        UsageError,
        "max_drop is judged sample by sample, and the metric MeanIoU is one figure of a whole set; give",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_task_is_named(name: str) -> None:
    settings, kind, message = WRONG[name]
    arguments = {"data": SAMPLES, "prune": 0.3, "epochs": 1, "preset": "taylor", "progress": Silent(), **settings}
    with pytest.raises(kind, match=message) as caught:
        fineprune.compress(vector(2), **arguments)
    assert "\n" not in str(caught.value)
