"""Training in two processes by DistributedDataParallel: what it shares with training in one."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import FinepruneError, UsageError
from fineprune.compressor.config import prune_config
from fineprune.compressor.prune import CalibrationRun, prunable
from fineprune.masking import MaskUpdates
from fineprune.models.training import TrainConfig, TrainResult, train
from fineprune.models.training.interfaces import Beside
from fineprune.models.training.sampling.time_model import trained_batches
from fineprune.models.training.trainer import opened
from fineprune.schedules import CubicSchedule
from support.fakes import Recorder, fake_data, small_network
from support.processes import in_two

POLICY: dict[str, Any] = {"name": "fine-pruning", "window": 3, "start": 1, "block": 1, "prune_epochs": 1}
AUTO: dict[str, Any] = {"schedule": "auto", "auto_lr": {"interval": 2, "parts": 3, "threshold": 9.0}}


class Half(nn.Module):
    """Without BatchNorm and dropout, masked, with a parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        network = small_network(dropout=0.0)
        network[1] = nn.Identity()
        self.network, self.spare = network, nn.Parameter(torch.ones(2))
        self.register_buffer("mask", torch.arange(3) < 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x * self.mask.view(1, 3, 1, 1))
        return y


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "batch_size": 8, "lr": 0.05, "seed": 3, "augment": False, **changes})


def outcome(model: nn.Module, result: TrainResult) -> dict[str, Any]:
    history = [
        [r.train_loss, r.train_accuracy, r.validation_loss, r.validation_accuracy, r.lr, *r.part_losses, r.visits] for r in result.history
    ]
    return {"weights": dict(model.state_dict()), "history": history, "losses": result.losses, "best": result.best_epoch}


def trained(model: nn.Module, asked: TrainConfig, samples: int = 101, held_out: int = 24, **options: Any) -> dict[str, Any]:
    return outcome(model, train(model, fake_data(samples, held_out), asked, device="cpu", **options))


def masked() -> dict[str, Any]:
    """Masks come in two updates, ranked by what both processes see."""
    model, asked = Half(), config()
    where = CalibrationRun(source=fake_data(32, seed=1).train, input_shape=(3, 6, 6), config=CalibrationConfig(batch_size=8))
    weights = prune_config("taylor", ratio=0.5)
    masking = MaskUpdates(model, weights, CubicSchedule(updates=2, samples=32), where, prunable(model, weights, where))
    with opened(model, fake_data(101, 24), asked, device="cpu", beside=Beside(masking=masking)) as run:
        return outcome(model, run.finish())


def refusal(**changes: Any) -> str:
    try:
        trained(small_network(), config(**changes))
    except FinepruneError as error:
        return str(error)
    return ""


def several(rank: int, folder: Path) -> dict[str, Any]:
    """Everything that the tests below look at: two processes take seconds to start."""
    recorder, interrupted = Recorder(), ""
    found: dict[str, Any] = {"plain": trained(Half(), config(), progress=recorder, output=folder / "plain")}
    found["lines"] = len(recorder.lines)
    found["again"] = trained(Half(), config(), output=folder / "plain")
    found["policy"] = trained(Half(), config(policy=POLICY, record_losses=True))
    found["batchnorm"] = trained(small_network(), config(batch_size=16))
    found["automatic"] = trained(Half(), config(**AUTO), held_out=301)
    found["taught"] = trained(Half(), config(distill=0.7), teacher=small_network(seed=9))
    found["quantised"] = trained(Half(), config(qat_epochs=2))
    found["masked"] = masked()
    found["remainder"] = trained(Half(), config(epochs=1), samples=3 * 8 + 3)

    def stop(record: Any) -> None:
        if rank == 1 and record.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        trained(Half(), config(), output=folder / "stopped", on_epoch=stop)
    except KeyboardInterrupt as error:
        interrupted = str(error)
    found["interrupted"] = interrupted
    found["diverged"] = refusal(lr=1e20)
    found["small batch"] = refusal(batch_size=3)
    found["server"] = refusal(asynchronous={"algorithm": "asgd"})
    if rank == 0:  # the other process ends here
        found["left"] = refusal()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    return in_two(several, folder)


def test_a_process_that_is_left_says_so(both: list[dict[str, Any]]) -> None:
    assert both[0]["left"].startswith("another process of this run has ended or cannot be reached; ")


def test_a_group_for_gpus_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"is_initialized": True, "get_rank": 1, "get_world_size": 2, "get_backend_config": "cuda:nccl"}
    for name, value in facts.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    with pytest.raises(UsageError, match=r"\(cuda:nccl\) moves no tensors of the CPU; initialise it with cpu:gloo,cuda:nccl"):
        trained(Half(), config())


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["best"] == other["best"]
    torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(one["history"], other["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("run", ["plain", "policy", "batchnorm", "automatic", "taught", "quantised", "masked", "remainder"])
def test_both_processes_end_with_the_same_bits(both: list[dict[str, Any]], run: str) -> None:
    one, other = (found[run] for found in both)
    assert one["history"] == other["history"]
    assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())


def test_two_processes_with_half_a_batch_each_are_one_with_a_whole_one(both: list[dict[str, Any]]) -> None:
    assert_close(both[0]["plain"], trained(Half(), config()))
    assert both[0]["plain"]["history"][0][-1] == 101


def test_each_process_learns_from_the_teacher_on_its_share(both: list[dict[str, Any]]) -> None:
    assert_close(both[0]["taught"], trained(Half(), config(distill=0.7), teacher=small_network(seed=9)))


def test_masks_come_alike_in_both(both: list[dict[str, Any]]) -> None:
    alone, found = masked(), both[0]["masked"]
    masks = [name for name in alone["weights"] if name.endswith("_mask")]
    assert masks and all(torch.equal(found["weights"][name], alone["weights"][name]) for name in masks)
    assert_close(found, alone)


def test_policies_and_recorded_losses_see_the_samples_of_both(both: list[dict[str, Any]]) -> None:
    alone = trained(Half(), config(policy=POLICY, record_losses=True))
    assert_close(both[0]["policy"], alone)
    torch.testing.assert_close(both[1]["policy"]["losses"], alone["losses"], equal_nan=True, rtol=1e-3, atol=1e-3)
    assert both[0]["policy"]["history"][1][-1] == 76


def test_losses_of_parts_of_an_epoch_are_of_the_images_of_both(both: list[dict[str, Any]]) -> None:
    alone = trained(Half(), config(**AUTO), held_out=301)
    assert_close(both[0]["automatic"], alone)
    assert [len(record) for record in alone["history"]] == [9, 9, 9] and len({record[4] for record in alone["history"]}) > 1


def test_the_remainder_that_leaves_a_process_one_sample_is_left_out(both: list[dict[str, Any]]) -> None:
    assert both[0]["remainder"]["history"][0][-1] == 24
    batches = [trained_batches(samples, 8, 2) for samples in (3, 8, 24, 25, 27, 28, 32)]
    assert batches == [1, 1, 3, 3, 3, 4, 4]
    assert [trained_batches(samples, 3, 3) for samples in (3, 4, 5, 6)] == [1, 1, 1, 2]


def test_the_first_process_alone_speaks_and_writes(both: list[dict[str, Any]], folder: Path) -> None:
    assert both[0]["lines"] == 3 and both[1]["lines"] == 0
    assert [path.name for path in (folder / "plain").iterdir()] == ["training.pt"]


def test_a_finished_run_comes_back_in_both(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["again"]["history"] == found["plain"]["history"]
        assert all(torch.equal(value, found["plain"]["weights"][name]) for name, value in found["again"]["weights"].items())


def test_a_signal_to_one_stops_both_and_one_process_goes_on(both: list[dict[str, Any]], folder: Path) -> None:
    assert [found["interrupted"] for found in both] == ["interrupted at epoch 2, batch 1; run the same command to resume"] * 2
    assert_close(trained(Half(), config(), output=folder / "stopped"), trained(Half(), config()))


def test_what_two_processes_cannot_train_is_refused_by_both(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert "not finite" in found["diverged"] and "lower learning rate" in found["diverged"]
        assert found["small batch"] == "batch_size 3 is too small for 2 processes (BatchNorm needs two images in each); use at least 4"
        assert found["server"].startswith("a parameter server starts its own workers")
