"""The picture of accuracy at equal latency: which points stand in front, and that every one is drawn."""

from pathlib import Path
from typing import Any

import front
import pytest

from fineprune.pareto.points import front_of


def points() -> list[dict[str, Any]]:
    rows: list[tuple[Any, ...]] = [
        ("dense, ONNX Runtime", "dense", 1.0, 0.9),
        ("dense, engine", "dense", 1.1, 0.9),
        ("int8, ONNX Runtime", "dense", 0.6, 0.89),
        ("int8, engine", "dense", 0.55, 0.885),
        ("obs+rounds 50%", "obs+rounds", 0.7, 0.88),
        ("obs+rounds 80%", "obs+rounds", 0.4, 0.8),
        ("obs-blocks+rounds 50%", "obs-blocks+rounds", 0.65, 0.7),
        ("obs+rounds 50% int8", "obs+rounds", 0.3, 0.878),
        ("obs+rounds 80% int8", "obs+rounds", 0.18, 0.79),
    ]
    made = [{"name": name, "recipe": recipe, "milliseconds": ms, "accuracy": value, "pruned": 0.5} for name, recipe, ms, value in rows]
    return [{**point, "int8": True} if point["name"].endswith(" int8") else point for point in made]


def test_what_nothing_beats_is_in_front() -> None:
    made = points()
    assert [made[place]["name"] for place in front_of(made)] == [
        "dense, ONNX Runtime",
        "int8, ONNX Runtime",
        "int8, engine",
        "obs+rounds 50% int8",
        "obs+rounds 80% int8",
    ]


@pytest.mark.parametrize(
    ("recipe", "kind"), [("obs+rounds", "weights"), ("taylor", "weights"), ("obs-blocks+rounds", "blocks"), ("obs-quad+rounds", "quad")]
)
def test_a_recipe_says_what_it_masks(recipe: str, kind: str) -> None:
    assert front.kind_of(recipe) == kind


def test_the_picture_names_every_recipe(tmp_path: Path) -> None:
    front.draw(tmp_path / "front.svg", {"points": points(), "epochs": 0, "machine": {"cpu": "a CPU"}})
    text = (tmp_path / "front.svg").read_text()
    named = (
        "obs+rounds",
        "obs+rounds, int8",
        "obs-blocks+rounds",
        "dense, engine",
        "int8, engine",
        "int8, ONNX Runtime",
        "nothing faster is as good",
    )
    assert all(f">{name}<" in text for name in named) and "obs-blocks+rounds, int8" not in text and "no fine-tuning; a CPU" in text
