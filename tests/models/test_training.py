"""The plain trainer on a data set of sixty images: what it learns, keeps, refuses and reports."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import RunError, UsageError
from fineprune.models.training import TrainConfig, evaluate, resolve_device, train
from fineprune.models.training.device import resolve_precision
from fineprune.models.training.layout import memory_format
from fineprune.models.training.step import EpochSums, StepResult
from support.fakes import FakeData, FakeSplit, Recorder, fake_data, small_network


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"epochs": 4, "batch_size": 16, "lr": 0.1, "seed": 3, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adam", "lr": 0.02}, {"optimizer": "adamw", "lr": 0.02, "schedule": "plateau"}])
def test_it_learns(settings: dict[str, object]) -> None:
    data, model = fake_data(120, 60, 300), small_network()
    before = evaluate(model, data.test, device="cpu")
    result = train(model, data, config(epochs=8, **settings), device="cpu")
    after = evaluate(model, data.test, device="cpu")
    assert before.accuracy < 0.6 < 0.9 < after.accuracy
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert [record.epoch for record in result.history] == list(range(1, 9))


def test_one_step_of_sgd_is_the_textbook_one() -> None:
    data = fake_data(train=8, validation=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    weight = model[1].weight.detach().clone().requires_grad_()
    bias = model[1].bias.detach().clone()
    loss = F.cross_entropy(F.linear(data.train.images.flatten(1), weight, bias), data.train.labels)
    (gradient,) = torch.autograd.grad(loss, weight)
    result = train(model, data, config(epochs=1, batch_size=8, augment=False, schedule="constant", weight_decay=0.5), device="cpu")
    torch.testing.assert_close(model[1].weight.detach(), weight.detach() - 0.1 * (gradient + 0.5 * weight.detach()))
    assert result.history[0].train_loss == pytest.approx(loss.item(), rel=1e-5)


def test_the_model_ends_with_the_best_weights_and_ties_go_to_the_later_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from fineprune.models.training import synchronous

    accuracies = iter([0.5, 0.75, 0.75, 0.25])
    snapshots: list[Tensor] = []

    def scripted(model: nn.Module, split: FakeSplit, **options: object) -> synchronous.Evaluation:
        snapshots.append(model[0].weight.detach().clone())
        return synchronous.Evaluation(accuracy=next(accuracies), top5=None, loss=1.0, samples=24)

    monkeypatch.setattr(synchronous, "evaluate", scripted)
    model = small_network()
    result = train(model, fake_data(), config(), device="cpu")
    assert (result.best_epoch, result.best_accuracy) == (3, 0.75)
    assert torch.equal(model[0].weight, snapshots[2]) and not torch.equal(model[0].weight, snapshots[3])
    assert not model.training and model[0].weight.is_contiguous()


def test_without_validation_the_last_weights_stay_and_a_line_says_so() -> None:
    recorder = Recorder()
    result = train(small_network(), fake_data(validation=0), config(epochs=2), device="cpu", progress=recorder)
    assert (result.best_epoch, result.best_accuracy) == (2, None)
    assert recorder.lines[0] == "no validation images: the last weights are kept, the best cannot be told"
    assert "no validation images" in recorder.lines[1]


def test_one_line_an_epoch_and_bars_with_totals() -> None:
    recorder, seen = Recorder(), []
    result = train(small_network(), fake_data(), config(epochs=2), device="cpu", progress=recorder, on_epoch=seen.append)
    assert seen == list(result.history)
    first, second = recorder.lines
    assert first.startswith(f"epoch 1/2: train loss {result.history[0].train_loss:.4f}, train accuracy ")
    assert f"validation accuracy {result.history[0].validation_accuracy:.2%}, lr " in first and first.endswith(" s left")
    assert second.startswith("epoch 2/2") and "left" not in second
    assert recorder.loops[:2] == [("epoch 1/2", 4, 0), ("validation after epoch 1", 2, 0)]


def test_every_epoch_has_its_own_order_and_equal_seeds_have_equal_runs() -> None:
    runs = []
    for seed in (3, 3, 4):
        data, model = fake_data(), small_network()
        train(model, data, config(epochs=2, seed=seed), device="cpu")
        runs.append((torch.cat(data.train.seen), model[7].weight.detach().clone()))
    (order, weight), (same_order, same_weight), (other_order, other_weight) = runs
    assert torch.equal(order, same_order) and torch.equal(weight, same_weight)
    assert not torch.equal(order, other_order) and not torch.equal(weight, other_weight)
    assert not torch.equal(order[:60], order[60:])
    assert torch.equal(order[:60].sort().values, torch.arange(60))


def test_the_callers_random_state_is_untouched_and_does_not_matter() -> None:
    weights = []
    for caller_seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(caller_seed)
            before = torch.get_rng_state()
            model = small_network()
            train(model, fake_data(), config(epochs=1), device="cpu")
            assert torch.equal(torch.get_rng_state(), before)
            weights.append(model[0].weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize(("images", "steps"), [(33, 2), (34, 3), (16, 1), (5, 1)])
def test_a_last_batch_of_one_sample_is_left_out(images: int, steps: int) -> None:
    data = fake_data(train=images, size=1)  # 1x1 images: BatchNorm has no variance at all over one of them
    result = train(small_network(), data, config(epochs=1), device="cpu")
    assert result.history[0].train_loss > 0
    assert [len(part) for part in data.train.seen][:steps] == [16] * (steps - 1) + [{33: 16, 34: 2, 16: 16, 5: 5}[images]]


def test_nan_names_epoch_batch_rate_and_remedy_and_the_last_good_state_stays(tmp_path: Path) -> None:
    data = fake_data()
    data.train.images[7] = float("nan")
    poisoned = next(k for k, part in enumerate(_order(3, 0).split(16)) if 7 in part)
    output = tmp_path / "run"
    model = small_network()
    where = rf"loss is not finite at epoch 1, batch {poisoned + 1} of 4, learning rate 0\.1; train with a lower .* keeps the last good"
    with pytest.raises(RunError, match=where):
        train(model, data, config(schedule="constant", checkpoint_every_s=0), device="cpu", output=output)
    state = torch.load(output / "training.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (0, poisoned)
    assert all(value.isfinite().all() for value in state["model"].values())


def _order(seed: int, epoch: int) -> Tensor:
    from fineprune.models.training.device import derive_seed

    return torch.randperm(60, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))


def test_weights_that_overflow_in_the_last_step_are_found_before_they_are_kept() -> None:
    for weight_decay, what in ((0.0, "the validation loss"), (1e6, r"0\.weight")):
        with pytest.raises(RunError, match=rf"^{what} is not finite at epoch 1, batch 1 of 1, learning rate 3e\+38"):
            settings = config(epochs=2, lr=3e38, schedule="constant", weight_decay=weight_decay)
            train(small_network(), fake_data(train=16), settings, device="cpu")


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(RunError, match="the training split has 0 images; training needs at least 2"):
        train(small_network(), fake_data(train=0), config(), device="cpu")
    with pytest.raises(UsageError, match="plateau schedule follows the validation loss and there are no validation images"):
        train(small_network(), fake_data(validation=0), config(schedule="plateau"), device="cpu")
    with pytest.raises(UsageError, match="batch_size 1 leaves BatchNorm no variance"):
        train(small_network(), fake_data(), config(batch_size=1), device="cpu")
    broken = small_network()
    broken[3].weight.data[0] = math.inf
    with pytest.raises(RunError, match=r"3\.weight of the given model is not finite"):
        train(broken, fake_data(), config(), device="cpu")
    with pytest.raises(RunError, match="no trainable parameter"):
        train(small_network().requires_grad_(False), fake_data(), config(), device="cpu")
    with pytest.raises(RunError, match="the model has 2 outputs but the data hold class 2"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), fake_data(), config(), device="cpu")
    with pytest.raises(RunError, match=r"the model failed on 16 images of 3x6x6: .*build it for such images"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), fake_data(), config(), device="cpu")
    with pytest.raises(RunError, match=r"the model gave \(16, 3, 6, 6\) for 16 images"):
        train(nn.Sequential(nn.BatchNorm2d(3)), fake_data(), config(), device="cpu")


def test_gradient_clipping_bounds_the_step() -> None:
    data, model = fake_data(train=16), nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    train(model, data, config(epochs=1, lr=1.0, schedule="constant", weight_decay=0, max_grad_norm=0.01), device="cpu")
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_on_request_and_float16_only_on_cuda() -> None:
    model = small_network()
    result = train(model, fake_data(), config(epochs=1, precision="bfloat16"), device="cpu")
    assert math.isfinite(result.history[0].train_loss) and model[0].weight.dtype == torch.float32
    with pytest.raises(UsageError, match="float16 training runs on CUDA only, not on cpu"):
        train(model, fake_data(), config(precision="float16"), device="cpu")
    assert resolve_precision("auto", torch.device("cpu")) == torch.float32


def test_memory_format_changes_speed_not_results() -> None:
    weights = []
    for channels_last in (True, False):
        model = small_network()
        train(model, fake_data(), config(epochs=2, channels_last=channels_last), device="cpu")
        weights.append(model[0].weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    three_d = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(216, 3))
    train(three_d, fake_data(), config(epochs=1), device="cpu")


class _Watched(nn.Conv2d):
    """Notes whether its inputs came as NCHW."""

    def forward(self, input: Tensor) -> Tensor:
        self.nchw = input.is_contiguous() and self.weight.stride() == (self.in_channels // self.groups, 1, 1, 1)
        return super().forward(input)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_strided_1x1_convolution_of_few_channels_trains_in_nchw(channels_last: bool) -> None:
    """torch's weight gradient of such a layer writes out of bounds in NHWC; with the layers around it nothing is wrong."""
    many, grouped, few = _Watched(16, 8, 1, stride=2), _Watched(8, 8, 1, stride=2, groups=2), _Watched(8, 16, 1, stride=2)
    up, stem = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(3, 16, 3, padding=1)
    model = nn.Sequential(stem, many, up, grouped, few, nn.Flatten(), nn.Linear(64, 3))
    for layer in (stem, many, up, grouped, few):
        layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)  # as a caller's model may come
    images = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with memory_format(model, torch.device("cpu"), channels_last):
        model(images)
    assert (many.nchw, grouped.nchw, few.nchw) == (False, False, True)
    model(images)
    assert not few.nchw


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match=r"no device 'gpu' on this machine; there are auto, cpu"):
        resolve_device("gpu")
    with pytest.raises(UsageError, match="no device 'cuda:99'"):
        resolve_device("cuda:99")


def test_epoch_sums_name_the_first_broken_batch_and_do_not_depend_on_when_they_are_flushed() -> None:
    losses = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    steps = [StepResult(row, row > 0.5, torch.arange(4)) for row in losses]
    often, once = EpochSums(), EpochSums()
    for batch, step in enumerate(steps):
        often.add(batch, step)
        once.add(batch, step)
        assert often.flush() is None
    assert once.flush() is None and once.to_json() == often.to_json()
    assert (once.samples, once.correct) == (24, int((losses > 0.5).sum()))
    steps[4].losses[1] = math.nan
    for batch in (3, 4, 5):
        once.add(batch, steps[batch])
    assert once.flush() == 4


class TestEvaluate:
    def test_against_a_plain_loop(self) -> None:
        data, model = fake_data(test=23), small_network()
        model.train()
        model[1].eval()
        result = evaluate(model, data.test, batch_size=7, device="cpu")
        assert model.training and not model[1].training and model[6].training
        with torch.no_grad():
            logits = model.eval()(data.test.images)
        assert result.accuracy == (logits.argmax(1) == data.test.labels).double().mean().item()
        assert result.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-5)
        assert (result.samples, result.top5) == (23, None)

    def test_top5(self) -> None:
        images = torch.rand(50, 8, 1, 1, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(50) % 8
        result = evaluate(nn.Flatten(), FakeSplit(images, labels), device="cpu")
        assert result.top5 == (images.flatten(1).argsort(1, descending=True)[:, :5] == labels[:, None]).any(1).double().mean().item()

    def test_refusals(self) -> None:
        with pytest.raises(RunError, match="testing: the split has no images"):
            evaluate(small_network(), fake_data(test=0).test, device="cpu", description="testing")
        broken = small_network()
        broken[7].bias.data.fill_(math.nan)
        with pytest.raises(RunError, match="evaluate: the model's loss is nan"):
            evaluate(broken, fake_data().test, device="cpu")


@pytest.mark.parametrize(("size", "largest"), [(6, 70), (64, 70), (128, 64), (224, 20), (2000, 1)])
def test_large_images_are_evaluated_fewer_at_a_time(size: int, largest: int) -> None:
    seen = []

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x.mean((2, 3))

    images = torch.zeros(1, 1, 1, 1).expand(70 if size < 2000 else 2, 3, size, size)
    split = FakeSplit(images, torch.zeros(len(images), dtype=torch.int64))
    assert evaluate(Pooled(), split, device="cpu").samples == len(images) == sum(seen)
    assert max(seen) == largest


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model, data: model.half(), r"0\.weight is float16 and the images are float32: call \.float\(\) on the network first"),
        (lambda model, data: model.double(), r"0\.weight is float64 and the images are float32"),
        (lambda model, data: data.train.labels.sub_(1), "the data hold class -1; classes are numbered from 0"),
        (lambda model, data: setattr(data.train, "labels", data.train.labels.float()), r"the labels are torch\.float32 of shape \(16,\)"),
        (lambda model, data: model.append(_Inplace()), "no gradient can be computed through the model's forward: one of the variables"),
    ],
)
def test_what_cannot_be_trained_is_named(spoil: Callable[[nn.Sequential, FakeData], object], message: str) -> None:
    model, data = small_network(), fake_data()
    spoil(model, data)
    with pytest.raises(RunError, match=message):
        train(model, data, config(), device="cpu")


class _Inplace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        return y * y.mul_(2)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_weights_without_a_shape_are_named() -> None:
    with pytest.raises(RunError, match=r"1\.weight has no shape yet \(a lazy module\)"):
        train(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), fake_data(), config(), device="cpu")


def test_weights_of_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = small_network()
    with pytest.raises(RunError, match=r"was made under torch\.inference_mode\(\), which training cannot change"):
        train(model, fake_data(), config(), device="cpu")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_the_network_in_a_wrapper_is_trained(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped, log = small_network(), wrap(small_network()), Recorder()
    train(plain, fake_data(), config(), device="cpu")
    train(wrapped, fake_data(), config(), device="cpu", progress=log)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True))
    assert "is taken out of" in log.lines[0]
    with pytest.raises(UsageError, match="ModuleList has no forward pass"):
        train(nn.ModuleList([small_network()]), fake_data(), config(), device="cpu")


def test_doubtful_data_are_said() -> None:
    log, data = Recorder(), fake_data(train=10)
    data.train.labels.fill_(2)
    train(small_network(), data, config(epochs=1), device="cpu", progress=log)
    assert log.lines[0] == "batch_size 16 is more than the 10 training images: every epoch is one step of them all"
    assert log.lines[1] == "warning: all 10 training images are of class 2; the network learns to answer nothing else"
