"""Seeded, stratified division of a labelled set."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .classes import listed
from .raw import RawData

TEST_FRACTION = 0.2
TEST_SEED = 0
"""The test part of a source without one never depends on the user's seed: no test image may become a training image."""


@dataclass(frozen=True)
class Division:
    """Positions int64 of the splits in their sources (the training source where they have no other); notes on what was not possible."""

    train: Tensor
    validation: Tensor
    test: Tensor
    notes: tuple[str, ...]


def divide(raw: RawData, validation: float, seed: int) -> Division:
    """What a source does not divide itself is divided: a fixed fifth for testing, `validation` of the rest by `seed`."""
    notes: list[str] = []
    empty: list[str] = []

    def held_out(positions: Tensor, fraction: float, seed: int, part: str) -> tuple[Tensor, Tensor]:
        rest, taken = stratified(labels[positions], fraction, seed)
        if not len(taken) and fraction and len(positions) > 1:
            empty.append(part)
        elif len(taken) < round(fraction * len(positions)):
            notes.append(f"{part} is smaller than asked, for classes of a single image keep it to train on")
        return positions[rest], positions[taken]

    labels = raw.train.labels
    train = torch.arange(len(labels))
    if raw.test is None:
        train, test = held_out(train, TEST_FRACTION, TEST_SEED, "test")
    else:
        test = torch.arange(len(raw.test.labels))
    if raw.validation is None:
        train, checking = held_out(train, validation, seed, "validation")
    else:
        checking = torch.arange(len(raw.validation.labels))
    if empty:
        notes.append(
            f"no image is left for {' and '.join(empty)}: classes have a single one, to train on (eval --split train measures there)"
        )
    lacking = sorted(set(range(len(raw.classes))) - set(labels[train].unique().tolist()))
    if lacking:
        notes.append(f"no image to train on for {len(lacking)} of {len(raw.classes)} classes: {listed(raw.classes[i] for i in lacking)}")
    return Division(train, checking, test, tuple(notes))


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (rest, part): `part` holds round(fraction * N) samples, every class in proportion to within one sample.

    A class's last sample always stays in `rest`, so `part` is smaller where classes have a single one. labels: int64 [N]; fraction in
    [0,1). At least one sample is wanted where fraction > 0. Both results are in ascending order.
    """
    count = len(labels)
    wanted = min(max(round(fraction * count), int(fraction > 0)), max(count - 1, 0))
    generator = np.random.default_rng(seed)
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    share = sizes * (wanted / max(count, 1))
    quota = np.floor(share).astype(int)
    # The samples that rounding down left over go to the classes with the largest remainders (Hamilton's rule), ties at random.
    leftover = wanted - quota.sum()
    quota[np.lexsort((generator.random(len(classes)), quota - share))[:leftover]] += 1
    quota = np.minimum(quota, sizes - 1)
    taken = np.zeros(count, bool)
    for label, number in zip(classes, quota, strict=True):
        taken[generator.permutation(np.flatnonzero(labels.numpy() == label))[:number]] = True
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))
