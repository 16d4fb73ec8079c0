"""One range of seeds, wherever one is given."""

import pytest
import torch

from fineprune.calibrate.collect import CalibrationConfig
from fineprune.common.errors import UsageError
from fineprune.common.seeds import LARGEST_SEED, check_seed
from fineprune.export.benchmark import BenchmarkConfig
from fineprune.models.training.config import TrainConfig


@pytest.mark.parametrize("config", [TrainConfig, CalibrationConfig, BenchmarkConfig])
@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 10**30, 1.5, True, "3", None])
def test_what_is_no_seed(config: type, seed: object) -> None:
    with pytest.raises(UsageError, match=r"^seed is a whole number of at least 0 and at most"):
        config(seed=seed)


def test_the_largest_seed_leaves_room_for_those_derived_from_it() -> None:
    for config in (TrainConfig, CalibrationConfig, BenchmarkConfig):
        assert config(seed=LARGEST_SEED).seed == LARGEST_SEED
    check_seed(0)
    assert torch.Generator().manual_seed(LARGEST_SEED * 7919).initial_seed() == LARGEST_SEED * 7919
