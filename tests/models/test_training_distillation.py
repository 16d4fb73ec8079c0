"""Learning from a teacher: the loss against loops, in every engine, exactly resumable, and on the labels' terms for everybody else."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fineprune.common.errors import RunError, UsageError
from fineprune.models.training import TrainConfig, TrainResult, train
from fineprune.models.training.distillation import DistillConfig, distillation_loss
from fineprune.models.training.features import feature_loss, stage_ends
from fineprune.models.training.sampling.policies import FinePruning
from fineprune.models.training.teacher import Teacher
from fineprune.models.zoo import build
from support.fakes import fake_data, small_network

CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.1, seed=5, distill=DistillConfig(), checkpoint_every_s=0)
SERVER: dict[str, Any] = {"time": {"distribution": "constant", "state_s": 0.0}}


def teacher() -> nn.Module:
    return small_network(seed=7)


def run(config: TrainConfig = CONFIG, data: Any = None, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, TrainResult]:
    model = model or small_network()
    return model, train(model, data or fake_data(), config, device="cpu", **{"teacher": teacher(), **options})


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.float().reshape(-1) for value in model.state_dict().values()])


def test_the_loss_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, taught = (3 * torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    for temperature in (1.0, 4.0, 0.5):
        found = distillation_loss(scores, taught, temperature)
        for n in range(5):
            p, q = ([math.exp(z / temperature) for z in each[n].tolist()] for each in (taught, scores))
            p, q = [each / sum(p) for each in p], [each / sum(q) for each in q]
            expected = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            assert found[n].item() == pytest.approx(expected, rel=1e-9)
    assert distillation_loss(taught, taught, 3.0).abs().max() < 1e-12


def test_feature_matching_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    own, taught = ([torch.randn(3, *shape, generator=generator) for shape in ((2, 5, 4), (7,))] for _ in range(2))
    expected = [0.0] * 3
    for mine, theirs in zip(own, taught, strict=True):
        for n in range(3):
            a, b = mine[n].flatten().tolist(), theirs[n].flatten().tolist()
            expected[n] += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / sum(y * y for y in b)
    assert feature_loss(own, taught).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_last_layer_of_each_stage() -> None:
    ends = stage_ends(build("resnet20", seed=0).eval(), torch.zeros(1, 3, 32, 32))
    assert ends == ("layer1", "layer2", "layer3")
    assert stage_ends(teacher().eval(), torch.zeros(1, 3, 6, 6)) == ("3",)
    with pytest.raises(UsageError, match="the network gives no maps to match"):
        stage_ends(nn.Sequential(nn.Flatten()), torch.zeros(1, 3, 6, 6))


def test_a_step_follows_the_gradient_of_matched_features() -> None:
    data, taught_by, own = fake_data(train=12), teacher().eval(), small_network(dropout=0.0).train()
    x, labels = data.train.images, data.train.labels
    mine, theirs = own[:4](x), taught_by[:4](x).detach()
    distance = ((mine - theirs) ** 2).sum((1, 2, 3)) / (theirs**2).sum((1, 2, 3))
    log_q, p = (own[4:](mine) / 4).log_softmax(1), (taught_by(x).detach() / 4).softmax(1)
    (0.5 * F.cross_entropy(own[4:](mine), labels) + 8 * (p * (p.log() - log_q)).sum(1).mean() + 3 * distance.mean()).backward()
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 12, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    for layers in ([], ["3"]):
        model = small_network(dropout=0.0)
        run(TrainConfig(**settings, augment=False, distill={"share": 0.5, "features": 3, "layers": layers}), data, model)
        for new, before in zip(model.parameters(), own.parameters(), strict=True):
            assert before.grad is not None
            torch.testing.assert_close(new, before - 0.1 * before.grad, atol=1e-6, rtol=1e-5)
        assert not any(module._forward_hooks for module in model.modules())


def test_layers_that_cannot_be_matched() -> None:
    def matching(*layers: str) -> TrainConfig:
        return replace(CONFIG, distill=DistillConfig(features=1.0, layers=layers))

    with pytest.raises(UsageError, match=r"the network has no layer 'layer1' to match; name modules such as 0, 1, 3"):
        run(matching("layer1"))
    wide = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(RunError, match=r"a layer gave \(16, 5, 6, 6\) numbers and \(16, 4, 4, 4\) in the teacher; match other layers"):
        run(matching("0"), teacher=wide)
    mixed = nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (-1, 3)), nn.Flatten(), nn.Linear(108, 3))
    with pytest.raises(RunError, match=r"distill: 0 gave \(48, 6, 6\) for 16 images, so nothing can be matched there; name other layers"):
        run(matching("0"), model=mixed, teacher=mixed)


def test_features_of_one_number_are_those_of_each_sample() -> None:
    own, taught = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, 2.0, 4.0])
    assert feature_loss([own], [taught]).tolist() == pytest.approx([1 / 4, 0, 1 / 16])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_step_follows_the_gradient_of_the_mixed_loss(share: float) -> None:
    """One plain step of SGD on one batch, written out; dropout off, for its draws are the trainer's own."""
    data, model, taught_by = fake_data(train=12), small_network(dropout=0.0), teacher().eval()
    own = small_network(dropout=0.0).train()
    x, labels = data.train.images, data.train.labels
    log_q, p = (own(x) / 2).log_softmax(1), (taught_by(x).detach() / 2).softmax(1)
    loss = (1 - share) * F.cross_entropy(own(x), labels) + share * 4 * (p * (p.log() - log_q)).sum(1).mean()
    loss.backward()
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 12, "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    run(TrainConfig(**settings, augment=False, distill={"share": share, "temperature": 2}), data, model)
    for new, before in zip(model.parameters(), own.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(new, before - 0.5 * before.grad, atol=1e-6, rtol=1e-5)


def test_the_teacher_sees_the_augmented_images_in_eval_mode_and_stays_as_it_is() -> None:
    seen: list[Tensor] = []
    given = teacher().train()
    before = weights(given)
    given.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    student = small_network()
    own: list[Tensor] = []
    student.register_forward_pre_hook(lambda module, inputs: own.append(inputs[0].clone()) if module.training else None)
    run(replace(CONFIG, epochs=1), model=student, teacher=given)
    assert given.training and torch.equal(weights(given), before) and all(p.requires_grad and p.grad is None for p in given.parameters())
    assert all(any(torch.equal(one, other) for one in seen) for other in own[-4:])  # the copy keeps the hook


def test_a_teacher_that_writes_to_its_input_leaves_the_images() -> None:
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5
    before, model = x.clone(), nn.Sequential(nn.ReLU(inplace=True), teacher())
    Teacher(model, DistillConfig(), torch.device("cpu"), torch.float32, torch.contiguous_format).scores(x)
    assert torch.equal(x, before)


def test_records_and_policies_read_the_cross_entropy_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of almost nothing, the losses are those of the run without a teacher."""
    observed: dict[bool, list[Tensor]] = {True: [], False: []}
    distils = True
    monkeypatch.setattr(FinePruning, "_observe", lambda self, samples, losses: observed[distils].append(torch.tensor(losses)))
    policy = {"name": "fine-pruning", "window": 3, "start": 1, "block": 1, "prune_epochs": 1}
    config = replace(CONFIG, lr=1e-9, policy=policy, record_losses=True)  # type: ignore[arg-type]
    _, taught = run(config)
    distils = False
    _, plain = run(replace(config, distill=None), teacher=None)
    assert len(observed[True]) == len(observed[False]) > 6
    for one, other in zip(*observed.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert [r.train_loss for r in taught.history] == pytest.approx([r.train_loss for r in plain.history], abs=1e-5)
    assert [r.visits for r in taught.history] == [60, 45, 45]


@pytest.mark.parametrize(
    "changes",
    [{}, {"policy": {"name": "infobatch"}, "epochs": 8}, {"schedule": "plateau", "patience_epochs": 0}, {"distill": {"features": 1}}],
    ids=str,
)
def test_a_crash_at_any_batch_changes_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    expected, result = run(config)
    for crash_after in (0, 3, 6):
        output, data = tmp_path / str(crash_after), fake_data()
        given = teacher()
        data.train.fail_at = {crash_after + 3}  # the teacher and the layout are tried on one image each, the policy asks for one
        with pytest.raises(ConnectionError):
            run(config, data, output=output, teacher=given)
        model, again = run(config, data, small_network(seed=99), output=output)
        assert torch.equal(weights(model), weights(expected))
        assert [r.train_loss for r in again.history] == [r.train_loss for r in result.history]


def test_the_teacher_is_not_saved_but_must_be_the_same(tmp_path: Path) -> None:
    run(output=tmp_path / "taught")
    run(replace(CONFIG, distill=None), teacher=None, output=tmp_path / "plain")
    sizes = [(tmp_path / name / "training.pt").stat().st_size for name in ("taught", "plain")]
    assert abs(sizes[0] - sizes[1]) < 600  # names of settings, no weights
    with pytest.raises(RunError, match="belongs to another run: teacher "):
        run(output=tmp_path / "taught", teacher=small_network(seed=8))
    with pytest.raises(RunError, match=r"config\.distill"):
        run(replace(CONFIG, distill=DistillConfig(temperature=3)), output=tmp_path / "taught")


@pytest.mark.parametrize("algorithm", ["sgd", "ssgd"])
def test_one_worker_of_a_server_is_the_plain_trainer_to_the_bit(algorithm: str) -> None:
    config = replace(CONFIG, distill=DistillConfig(features=0.5))
    plain, expected = run(config)
    model, result = run(replace(config, asynchronous={"algorithm": algorithm, "workers": 1, **SERVER}))  # type: ignore[arg-type]
    parameters = [torch.cat([p.detach().reshape(-1) for p in each.parameters()]) for each in (plain, model)]
    assert torch.equal(*parameters)
    assert [r.train_loss for r in result.history] == pytest.approx([r.train_loss for r in expected.history], rel=1e-6)


def test_lc_asgd_predicts_and_compensates_what_is_minimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """`literal` compensates by nothing, and its server sees the objective, which is no cross-entropy where the labels have no part."""
    from fineprune.models.training.distributed.predictors import LossPredictor

    seen: list[float] = []
    observe = LossPredictor.observe
    monkeypatch.setattr(LossPredictor, "observe", lambda self, loss: (seen.append(loss), observe(self, loss))[1])
    config = replace(CONFIG, epochs=1, lr=1e-9, distill=DistillConfig(share=1.0), asynchronous={"algorithm": "lc-asgd", "workers": 2})  # type: ignore[arg-type]
    _, result = run(config, model=teacher(), teacher=teacher())
    assert len(seen) == 4 and max(seen) < 0.2 < result.history[0].train_loss


def test_with_a_share_of_one_labels_have_no_part() -> None:
    one, other = fake_data(validation=0), fake_data(validation=0)
    other.train.labels = (other.train.labels + 1) % 3
    alone = replace(CONFIG, distill=DistillConfig(share=1.0))
    assert torch.equal(*(weights(run(alone, data)[0]) for data in (one, other)))
    assert not torch.equal(*(weights(run(CONFIG, data)[0]) for data in (one, other)))


@pytest.mark.parametrize("server", [None, {"algorithm": "ssgd", "workers": 1, **SERVER}], ids=["plain", "server"])
def test_without_labels_the_best_class_of_the_teacher_stands_for_them(server: Any) -> None:
    """So the records say how often the network agrees with its teacher, and policies how far it is from it."""
    labelled, unlabelled = fake_data(validation=0), fake_data(validation=0)
    with torch.no_grad():
        labelled.train.labels = teacher().eval()(labelled.train.images).argmax(1)
    unlabelled.train.labels = torch.full_like(labelled.train.labels, -1)
    config = replace(CONFIG, augment=False, distill=DistillConfig(share=1.0), asynchronous=server)
    results = [run(config, data) for data in (labelled, unlabelled)]
    assert torch.equal(*(weights(model) for model, _ in results))
    one, other = ([(r.train_loss, r.train_accuracy) for r in result.history] for _, result in results)
    assert one == other
    with pytest.raises(UsageError, match=r"of samples without a label \(below 0\) the teacher alone can tell; share is 1, got 0.9"):
        run(replace(config, distill=DistillConfig()), unlabelled)
    with pytest.raises(RunError, match="the data hold class -1; classes are numbered from 0"):
        run(replace(config, distill=None), unlabelled, teacher=None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, r"distill: share is in \(0,1\], got 0.0"),
        (1.5, "share is in"),
        (True, "share is in"),
        ("much", "share is in"),
        ({"temperature": 0}, "temperature is above 0, got 0"),
        ({"heat": 3}, "distill has unknown heat; it takes share, temperature, features, layers"),
        ({"layers": ["0"]}, "layers are matched by a weight; give features, too"),
        ({"features": 1, "layers": "0"}, "layers is a list of names, got '0'"),
        ({"features": 1, "layers": 5}, "layers is a list of names, got 5"),
        ({"features": -1}, "features is at least 0, got -1"),
    ],
)
def test_bad_settings(value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainConfig(distill=value)


def test_bad_teachers() -> None:
    with pytest.raises(UsageError, match="distill is given, but no teacher"):
        run(teacher=None)
    with pytest.raises(UsageError, match="a teacher is given, but no config's distill"):
        run(replace(CONFIG, distill=None))
    broken = teacher()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match=r"0.weight of the teacher is not finite"):
        run(teacher=broken)
    with pytest.raises(RunError, match=r"the teacher gave \(16, 5\) class scores, the network \(16, 3\)"):
        run(teacher=nn.Sequential(nn.Flatten(), nn.Linear(108, 5)))


def test_a_teacher_that_finds_no_memory_is_one_line() -> None:
    class Large(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("allocation failed")
            return super().forward(x)

    with pytest.raises(RunError, match="cpu has too little memory for 16 images at a time; use a smaller batch size"):
        run(teacher=Large(*teacher().children()))


def test_states_and_manifests_of_before_keep_their_settings() -> None:
    assert "distill" not in TrainConfig().identity()
    assert TrainConfig(distill=0.5).identity()["distill"] == {"share": 0.5, "temperature": 4.0}  # type: ignore[arg-type]
