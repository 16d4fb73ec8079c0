"""Splits, order and augmentation: what a trainer relies on, whatever the data set."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fineprune.common.errors import RunError, UsageError
from fineprune.models.data import ImageData, Split, data_from_arrays, load_data
from fineprune.models.data.augment import Augmentation, augment_batch
from fineprune.models.data.splits import stratified


def numbered(count: int, size: tuple[int, int] = (5, 7), channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Images whose every pixel holds their own position, labels 0 1 2 0 1 2 ..."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, *size, channels))
    return images, np.arange(count) % 3


@pytest.fixture
def data() -> ImageData:
    return data_from_arrays("numbered", numbered(90), numbered(30), validation=0.2, mean=[0], std=[1 / 255])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(split: Split, **args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batches = list(split.batches(8, **args))
    images, labels, indices = (torch.cat(part) for part in zip(*batches, strict=True))
    return images, labels, indices


def test_parts_are_disjoint_and_whole(data: ImageData) -> None:
    assert (len(data.train), len(data.validation), len(data.test)) == (72, 18, 30)
    identity = [flat(split)[0][:, 0, 0, 0].round().int() for split in (data.train, data.validation)]
    assert torch.cat(identity).sort().values.tolist() == list(range(90))


def test_batches_in_order_carry_labels_and_positions(data: ImageData) -> None:
    batches = list(data.test.batches(8))
    assert [len(b.labels) for b in batches] == [8, 8, 8, 6] and data.test.number_of_batches(8) == 4
    images, labels, indices = flat(data.test)
    assert images.dtype == torch.float32 and images.shape == (30, 3, 5, 7)
    assert indices.tolist() == list(range(30)) and indices.dtype == torch.int64
    assert labels.dtype == torch.int64 and torch.equal(labels, data.test.labels)
    assert images[:, 1, 2, 3].round().int().tolist() == list(range(30))
    assert len(list(data.test.batches(8, drop_last=True))) == data.test.number_of_batches(8, drop_last=True) == 3


def test_indices_stay_with_their_samples_when_shuffled(data: ImageData) -> None:
    images, labels, indices = flat(data.test, generator=seeded(1))
    assert indices.tolist() != list(range(30)) and sorted(indices.tolist()) == list(range(30))
    assert torch.equal(images[:, 0, 0, 0].round().long(), indices)
    assert torch.equal(labels, data.test.labels[indices])
    assert not torch.equal(indices, flat(data.test, generator=seeded(2))[2])


def test_chosen_indices_only(data: ImageData) -> None:
    chosen = torch.tensor([7, 3, 29, 11])
    assert flat(data.test, indices=chosen)[2].tolist() == [7, 3, 29, 11]
    assert sorted(flat(data.test, indices=chosen, generator=seeded(0))[2].tolist()) == [3, 7, 11, 29]
    assert data.test.number_of_batches(3, chosen) == 2
    assert list(data.test.batches(3, indices=chosen[:0])) == []


@pytest.mark.parametrize("start", [0, 1, 5, 9])
def test_resumed_pass_is_the_rest_of_the_whole_one(data: ImageData, start: int) -> None:
    used = seeded(5)
    torch.rand(3, generator=used)  # the state does not matter, only the initial seed
    whole = list(data.train.batches(8, generator=seeded(5), augment=True))
    rest = list(data.train.batches(8, generator=used, augment=True, start_batch=start))
    assert len(rest) == len(whole) - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_leave_global_randomness_alone(data: ImageData) -> None:
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - observed, not used
    list(data.train.batches(8, generator=seeded(5), augment=True))
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_augmentation_differs_between_batches_and_epochs() -> None:
    same = (np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3)).repeat(16, 0).astype(np.uint8), np.zeros(16, int))
    train = data_from_arrays("same", same, same, validation=0).train
    first, second = (b.images for b in train.batches(8, generator=seeded(1), augment=True))
    other = next(train.batches(8, generator=seeded(2), augment=True)).images
    assert not torch.equal(first, second) and not torch.equal(first, other)


def test_bad_requests(data: ImageData) -> None:
    with pytest.raises(UsageError, match="augment=True draws at random and needs a generator"):
        data.train.batches(8, augment=True)
    with pytest.raises(UsageError, match="indices are 0 to 29 in this split, got 3 to 30"):
        data.test.batches(8, indices=torch.tensor([3, 30]))
    with pytest.raises(UsageError, match="batch_size is at least 1"):
        data.test.batches(0)
    with pytest.raises(UsageError, match=r"validation is a fraction in \[0,1\), got 1"):
        load_data("digits", validation=1)
    with pytest.raises(UsageError, match="image_size is at least 1 pixel and at most 8192, got 0"):
        load_data("digits", image_size=0)


def naive_augment(x: np.ndarray, row: int, column: int, mirror: bool, padding: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    crop = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
    return crop[:, :, ::-1] if mirror else crop


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True)])
def test_augmented_images_are_padded_crops(padding: int, flip: bool) -> None:
    x = torch.from_numpy(np.random.default_rng(3).integers(1, 255, (40, 2, 5, 7)).astype(np.uint8))
    y = augment_batch(x, Augmentation(padding=padding, flip=flip), seeded(4))
    assert y.dtype == torch.uint8 and y.shape == x.shape
    seen = set()
    for before, after in zip(x.numpy(), y.numpy(), strict=True):
        options = itertools.product(range(2 * padding + 1), range(2 * padding + 1), (False, True))
        found = [o for o in options if (naive_augment(before, *o, padding) == after).all()]
        assert len(found) == 1
        seen.add(found[0])
    assert {o[2] for o in seen} == ({False, True} if flip else {False})
    assert len({o[:2] for o in seen}) > (2 * padding + 1) ** 2 // 2  # rows and columns are drawn independently


@settings(deadline=None, max_examples=200)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=5), fraction=st.floats(0, 0.9), seed=st.integers(0, 2**32))
def test_stratified(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    rest, part = stratified(labels, fraction, seed)
    assert sorted(rest.tolist() + part.tolist()) == list(range(len(labels)))
    wanted = min(round(fraction * len(labels)), len(labels) - 1) or int(fraction > 0)
    kept = [int((labels[rest] == label).sum()) for label in range(len(counts))]
    for count, left in zip(counts, kept, strict=True):
        assert left >= 1
        assert abs(count - left - wanted * count / len(labels)) < 1 + 1e-9 or left == 1
    assert len(part) == wanted or (len(part) < wanted and 1 in kept)
    assert all(torch.equal(a, b) for a, b in zip((rest, part), stratified(labels, fraction, seed), strict=True))


def test_seed_moves_validation_but_never_test() -> None:
    images, labels = numbered(100)
    first, second = (data_from_arrays("x", (images, labels), seed=seed, mean=[0], std=[1 / 255]) for seed in (0, 1))
    assert torch.equal(flat(first.test)[0], flat(second.test)[0]) and len(first.test) == 20
    assert not torch.equal(flat(first.validation)[0], flat(second.validation)[0]) and len(first.validation) == 8


def test_no_validation_asked_for() -> None:
    data = data_from_arrays("x", numbered(9), numbered(9), validation=0)
    assert (len(data.train), len(data.validation)) == (9, 0) and list(data.validation.batches(4)) == []


def test_normalisation() -> None:
    images = np.full((4, 2, 2, 3), 255, np.uint8)
    default = data_from_arrays("x", (images, np.zeros(4, int)), (images, np.zeros(4, int)))
    expected = [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(flat(default.test)[0][0, :, 0, 0], torch.tensor(expected))
    one = data_from_arrays("x", (images, np.zeros(4, int)), (images, np.zeros(4, int)), mean=[0.5], std=[0.25])
    assert one.mean == (0.5,) * 3 and flat(one.test)[0].unique().tolist() == [2.0]
    with pytest.raises(UsageError, match=r"mean has one finite value per channel \(3\)"):
        data_from_arrays("x", (images, np.zeros(4, int)), mean=[0.5, 0.5])
    with pytest.raises(UsageError, match="std is above 0"):
        data_from_arrays("x", (images, np.zeros(4, int)), std=[0])


@pytest.mark.parametrize(
    ("shape", "channels"), [((6, 5, 7), 1), ((6, 5, 7, 1), 1), ((6, 5, 7, 3), 3), ((6, 3, 5, 7), 3), ((6, 1, 5, 7), 1)]
)
def test_array_layouts(shape: tuple[int, ...], channels: int) -> None:
    data = data_from_arrays("x", (np.zeros(shape, np.uint8), np.arange(6) % 2), validation=0)
    assert data.input_shape == (channels, 5, 7)
    assert data.augmentation.flip == (channels == 3)
    assert next(data.train.batches(2)).images.shape == (2, channels, 5, 7)


def test_other_number_types() -> None:
    labels = np.arange(4, dtype=np.uint8)[:, None]
    whole = data_from_arrays(
        "x", (np.full((4, 5, 7), 255, np.int64), labels), (np.full((4, 5, 7), 255, np.int64), labels), mean=[0], std=[1]
    )
    scaled = data_from_arrays("x", (np.full((4, 5, 7), 0.5), labels), (np.full((4, 5, 7), 0.5), labels), mean=[0], std=[1])
    tensors = data_from_arrays(
        "x", (torch.full((4, 5, 7), 0.25), torch.arange(4)), (torch.full((4, 5, 7), 0.25), torch.arange(4)), mean=[0], std=[1]
    )
    assert [flat(d.test)[0].unique().tolist() for d in (whole, scaled, tensors)] == [[1.0], [0.5], [0.25]]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((5, 4, 4, 3), np.uint8), np.zeros(4, int), r"x \(train\): 5 images but 4 labels"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int), r"x \(train\): the data set is empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 1.5]), "labels are whole numbers, one per image; got float64"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array(["cat", "dog"]), "labels are whole numbers"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 10), int), r"got int64 of shape \(2, 10\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([-1, 0]), "labels start at 0, got -1"),
        (np.zeros((2, 4, 4, 5), np.uint8), np.zeros(2, int), r"1 or 3 channels, got shape \(2, 4, 4, 5\)"),
        (np.zeros((2, 4), np.uint8), np.zeros(2, int), r"got shape \(2, 4\)"),
        (np.full((2, 4, 4), 300), np.zeros(2, int), "pixels are integers of 0 to 255 or floating-point, got int64"),
        (np.full((2, 4, 4), np.nan), np.zeros(2, int), "images hold NaN"),
    ],
)
def test_broken_arrays(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(RunError, match=message):
        data_from_arrays("x", (images, labels))


def test_parts_that_disagree() -> None:
    with pytest.raises(RunError, match=r"images of different shapes: train .* test"):
        data_from_arrays("x", numbered(4), numbered(4, (6, 7)))
    with pytest.raises(UsageError, match="2 class names, but labels go up to 2"):
        data_from_arrays("x", numbered(4), classes=["a", "b"])


def test_facts_are_json(data: ImageData) -> None:
    facts = json.loads(json.dumps(data.to_json()))
    assert facts["sizes"] == {"train": 72, "validation": 18, "test": 30} and facts["input_shape"] == [3, 5, 7]
    assert facts["classes"] == ["0", "1", "2"] and facts["augmentation"] == "crop (padding 1) + flip"


def test_digits() -> None:
    digits = load_data("digits")
    assert digits.input_shape == (1, 32, 32) and digits.classes == tuple("0123456789")
    assert len(digits.train) + len(digits.validation) + len(digits.test) == 1797
    images, labels, _ = flat(digits.train)
    assert abs(float(images.mean())) < 0.02 and abs(float(images.std()) - 1) < 0.02
    assert labels.bincount().min() > 100
    assert load_data("digits", image_size=8).input_shape == (1, 8, 8)


def test_images_that_would_fill_the_memory_are_scaled_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_data("digits", image_size=40)
    monkeypatch.setattr("fineprune.models.data.sources.MEMORY_LIMIT_BYTES", 1000)
    lazy = load_data("digits", image_size=40)
    for augment in (False, True):
        batches = (next(d.train.batches(8, generator=seeded(1), augment=augment)).images for d in (whole, lazy))
        assert torch.equal(*batches)


def test_digits_keep_the_scans_pixels() -> None:
    from sklearn.datasets import load_digits

    small = load_data("digits", image_size=8, mean=[0], std=[1], validation=0)
    pixels = torch.cat([flat(small.train)[0], flat(small.test)[0]])[:, 0]
    expected = torch.tensor(load_digits().images / 16, dtype=torch.float32)
    torch.testing.assert_close(pixels.mean(), expected.mean(), rtol=1e-3, atol=1e-3)
    assert any((image - expected[0]).abs().max() < 1 / 255 for image in pixels)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar11", "unknown data 'cifar11': did you mean cifar10"),
        ("", "unknown data '': known are digits, cifar10:ROOT"),
        ("digits:here", "digits takes nothing after a colon"),
        ("imagefolder:", "names no ROOT after its colon"),
        ("imagefolder", "write imagefolder:ROOT"),
        ("imagefolder:/not/there", "the folder '/not/there' does not exist"),
        ("npz:not_there.npz", "the file 'not_there.npz' does not exist"),
        ("not_there.py:make", "not_there.py does not exist"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data(spec)


def test_a_subset_numbers_its_samples_anew() -> None:
    split = load_data("digits").train
    chosen = torch.tensor([7, 3, 100])
    smaller = split.subset(chosen)
    whole = next(split.batches(3, indices=chosen))
    batch = next(smaller.batches(3))
    assert len(smaller) == 3 and torch.equal(smaller.labels, split.labels[chosen])
    assert torch.equal(batch.images, whole.images) and batch.indices.tolist() == [0, 1, 2]
