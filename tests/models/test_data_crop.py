"""The crop of images that are evaluated: whole pixels, torchvision's convention, and the part that is kept by choice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fineprune.common.errors import UsageError
from fineprune.models.data import ImageData, load_data
from fineprune.models.data.augment import central_crop
from fineprune.models.vision import import_torchvision
from fineprune.networks import load_arguments
from support.image_files import write_images

PLAIN = {"mean": [0], "std": [1]}


@pytest.mark.parametrize("size", [(256, 256), (256, 341), (341, 256), (300, 257), (640, 480), (100, 999), (37, 50), (225, 224)])
@pytest.mark.parametrize(("resized", "kept"), [(256, 224), (224, 224), (235, 224), (36, 32)])
def test_the_crop_is_torchvisions(size: tuple[int, int], resized: int, kept: int) -> None:
    """Resize(resized), CenterCrop(kept), to within one level of a pixel: only the rounding of positions differs."""
    transforms = import_torchvision().transforms
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = np.asarray(transforms.Compose([transforms.Resize(resized), transforms.CenterCrop(kept)])(image))
    found = np.asarray(central_crop(image, (kept, kept), keep=kept / resized))
    assert found.shape == expected.shape
    assert int(np.abs(found.astype(int) - expected.astype(int)).max()) <= 1


@pytest.mark.parametrize("size", [(256, 341), (257, 256), (301, 256)])
def test_an_image_of_the_right_height_is_cut_and_not_blurred(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    y, x = (round((side - 224) / 2) for side in size)
    assert (np.asarray(central_crop(Image.fromarray(pixels), (224, 224), keep=0.875)) == pixels[y : y + 224, x : x + 224]).all()


def last(data: ImageData) -> torch.Tensor:
    return next(data.test.batches(9)).images[-1]


def test_crop_is_a_choice_that_the_facts_keep(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_images(tmp_path / part, {"a": 2, "b": 2}, size=(100, 100))
    usual, whole = (load_data(f"imagefolder:{tmp_path}", image_size=100, crop=crop, validation=0, **PLAIN) for crop in (None, 1.0))
    assert (usual.to_json()["crop"], whole.to_json()["crop"]) == (0.875, 1.0)
    with Image.open(tmp_path / "test" / "b" / "001.png") as image:
        original = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(last(whole), original) and torch.equal(last(load_data(**load_arguments(whole.to_json()))), original)
    assert not torch.equal(last(usual), original)
    without = {key: value for key, value in usual.to_json().items() if key != "crop"}  # a manifest of before
    assert torch.equal(last(load_data(**load_arguments(without))), last(usual))


def test_small_images_are_kept_whole(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 2, "b": 2})
    assert "crop" not in load_data(f"imagefolder:{tmp_path}", crop=1.0).to_json()
    with pytest.raises(UsageError, match=r"images of at most 96 pixels are kept whole; leave crop=0.5 out"):
        load_data(f"imagefolder:{tmp_path}", crop=0.5)
