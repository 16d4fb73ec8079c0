"""benchmarks/engine.py --int8: masks of whole quads, and how its figures are judged and written."""

from typing import Any

import pytest
import torch
from engine_int8 import FILES, judge_int8, quad_masks
from engine_report import markdown
from torch import nn


def test_masks_drop_whole_quads_of_every_layer_without_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.Conv2d(10, 24, 1), nn.Conv2d(24, 24, 3, groups=24))
    masks = quad_masks(model, 0.7)
    assert masks.keys() == {"0", "1"} and all(mask.shape == model[int(name)].weight.shape for name, mask in masks.items())
    assert torch.equal(masks["0"].all(1), masks["0"].any(1))  # three channels are one quad
    for quad in masks["1"].split(4, 1):
        assert torch.equal(quad.all(1), quad.any(1))
    kept = [quad[:, 0].sum() for quad in masks["1"].split(4, 1)]
    assert sum(kept) == 3 * 24 - round(0.7 * 3 * 24)


def network(products: str, masked: tuple[float, float], dense: float, same: float) -> dict[str, Any]:
    """masked: speed-ups over float32 and over int8."""
    figures = {
        "onnxruntime dense": (1.0, 0.5),
        "onnxruntime int8": (2.0, 1.0),
        "onnxruntime quads-int8": (2.0 * same, same),
        "fineprune dense-int8": (2.0, dense),
        "fineprune quads-int8": masked,
    }
    times = {"batch_size": 1, "threads": 2, "median_ms": 1.0, "p25_ms": 0.9, "p75_ms": 1.1}
    rows = [
        {"runtime": name, **times, "speedup": first, "speedup_rival": second, "reliable": True} for name, (first, second) in figures.items()
    ]
    facts = {"images": 8, "equal": 7, "difference": 0.01}
    return {
        "dropped": 0.72,
        "products": products,
        "files": {kind: {"pruned": dropped} for kind, (dropped, _) in FILES.items()},
        "latency": rows,
        "same": {"dense-int8": {**facts, "equal": 8, "difference": 0.0}, "quads-int8": facts},
    }


@pytest.mark.parametrize(
    ("products", "masked", "same", "said"),
    [
        ("avx2", (4.1, 2.1), 1.0, ["met", "met", "met"]),
        ("avx2", (4.1, 2.1), 1.2, ["MISSED", "met", "MISSED"]),  # the same file is faster than the one that its own quantiser wrote
        ("avx2", (3.9, 2.1), 0.7, ["met", "MISSED", "met"]),
        ("avx512vnni", (3.0, 1.6), 1.0, ["met", "met"]),
        ("avxvnni", (3.0, 1.4), 1.0, ["MISSED", "met"]),
    ],
)
def test_goals_depend_on_what_the_cpu_can_do(products: str, masked: tuple[float, float], same: float, said: list[str]) -> None:
    lines = judge_int8({"net": network(products, masked, 1.0, same)})
    assert [line.split()[0] for line in lines] == said and all("net, 2 threads" in line for line in lines)


def test_nothing_is_judged_where_the_machine_was_busy() -> None:
    found = network("avx2", (6.0, 3.0), 1.0, 1.0)
    found["latency"][0]["reliable"] = False
    assert [line.split()[0] for line in judge_int8({"net": found})] == ["busy"] * 3


def test_the_table_has_both_ratios_and_says_what_is_equal() -> None:
    machine = {"cpu": "a CPU", "usable_cores": 2, "system": "Linux", "python": "3", "packages": {}, "commit": "abc"}
    text = markdown({"machine": machine, "command": "x", "networks": {}, "int8": {"net": network("avx2", (6.0, 3.0), 1.0, 1.0)}})
    assert "dense-int8: 8 of 8 images; quads-int8: 7 of 8 images (else within 1.0e-02)" in text
    assert "| fineprune quads-int8 | 72.0% | 1.000 (0.900-1.100) | x6.00 | x3.00 |" in text
