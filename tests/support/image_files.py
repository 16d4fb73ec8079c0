"""Image folders for tests, and what is logged about them."""

from pathlib import Path

import numpy as np
from PIL import Image

from fineprune.common.progress import Silent


class Lines(Silent):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def write_images(folder: Path, counts: dict[str, int], size: tuple[int, int] = (6, 9), seed: int = 0, suffix: str = ".png") -> Path:
    """folder/CLASS/000.png ..., random pixels of size (height, width)."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name / f"{i:03}{suffix}")
    return folder
