"""Calibration in two processes: the counts of one, and its other sums up to the order of addition."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fineprune.calibrate.collect import CalibrationConfig, collect
from fineprune.calibrate.measures import Frequencies, Measure, WeightSums
from fineprune.calibrate.statistics import Statistics
from support.fakes import fake_data, small_network
from support.processes import in_two

MEASURES: dict[str, Measure] = {"blocks": Frequencies(norm="l2", keep={"0": 20}), "weights": WeightSums()}
BATCH = 8


def measured(measure: Measure, samples: int = 5 * BATCH + 3, wanted: int | None = None, checkpoint: Path | None = None) -> Statistics:
    config = CalibrationConfig(batch_size=BATCH, samples=wanted)
    source = fake_data(samples, 0).train
    return collect(small_network(), source, measure, input_shape=(3, 6, 6), config=config, checkpoint=checkpoint)


def several(rank: int, folder: Path) -> dict[str, Any]:
    found = {name: measured(measure, checkpoint=folder / name) for name, measure in MEASURES.items()}
    found["one batch"] = measured(MEASURES["weights"], BATCH)
    found["resumed"] = measured(MEASURES["blocks"], checkpoint=folder / "started")
    return {name: {"samples": statistics.samples, "layers": statistics.layers} for name, statistics in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    begun(folder / "started")
    return in_two(several, folder)


def begun(folder: Path) -> None:
    """What a pass of one process leaves that was killed after three of its six batches."""

    class KilledError(Exception):
        pass

    source = fake_data(5 * BATCH + 3, 0).train
    original = source.batches

    def three(*args: Any, **kwargs: Any) -> Any:
        for number, batch in enumerate(original(*args, **kwargs)):
            if number == 3:
                raise KilledError
            yield batch

    source.batches = three  # type: ignore[method-assign]
    config = CalibrationConfig(batch_size=BATCH, checkpoint_every_s=-1.0)
    with pytest.raises(KilledError):
        collect(small_network(), source, MEASURES["blocks"], input_shape=(3, 6, 6), config=config, checkpoint=folder)
    assert Statistics.load(folder).samples == 3 * BATCH


@pytest.mark.parametrize("name", ["blocks", "weights", "one batch", "resumed"])
def test_two_processes_count_as_one(both: list[dict[str, Any]], name: str) -> None:
    expected = measured(MEASURES["weights"], BATCH) if name == "one batch" else measured(MEASURES.get(name, MEASURES["blocks"]))
    for found in both:
        assert found[name]["samples"] == expected.samples
        assert found[name]["layers"].keys() == expected.layers.keys()
        for layer, fields in expected.layers.items():
            assert found[name]["layers"][layer].keys() == fields.keys()
            for key, value in fields.items():
                own = found[name]["layers"][layer][key]
                assert own.dtype == value.dtype
                if value.dtype == torch.int64:
                    assert torch.equal(own, value)
                torch.testing.assert_close(own, value, rtol=1e-12, atol=1e-12)


def test_both_have_the_sums_and_the_first_keeps_them(both: list[dict[str, Any]], folder: Path) -> None:
    kept = Statistics.load(folder / "weights").layers
    for found in both:
        assert all(torch.equal(found["weights"]["layers"][a][b], kept[a][b]) for a in kept for b in kept[a])
