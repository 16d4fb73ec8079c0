"""Exports networks for a machine without torch: python files.py FOLDER, where torch is.

NAME.onnx lies beside NAME.npz, inputs and what ONNX Runtime made of them here, which parity.py compares with; the networks of tests/export
beside facts.json, what their fixtures say of them.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fineprune.export.exporter import export_onnx
from fineprune.models.zoo.registry import build
from support import tiny
from support.masked_networks import mask_randomly
from support.onnx_graphs import run_onnxruntime

NETWORKS = {
    "lenet": ("lenet", {}, (3, 32, 32)),
    "resnet20": ("resnet20", {"width": 16}, (3, 32, 32)),
    "shortcut-a": ("resnet20", {"width": 7, "shortcut": "A"}, (3, 18, 14)),
    "bottlenecks": ("resnet50-3stage", {"width": 5}, (3, 15, 13)),
    "depthwise": ("torchvision:mobilenet_v2", {"width_mult": 0.25}, (3, 33, 33)),
    "gates": ("torchvision:mobilenet_v3_small", {"width_mult": 0.25}, (3, 33, 40)),
    "shuffles": ("torchvision:shufflenet_v2_x0_5", {}, (3, 40, 33)),
}
FIXTURES = {"packed": (True, {}), "plain": (True, {"plain": True}), "dense": (False, {})}


def main(folder: Path) -> None:
    (folder / "fixtures").mkdir(parents=True, exist_ok=True)
    for seed, (name, (network, arguments, shape)) in enumerate(NETWORKS.items()):
        path = folder / f"{name}.onnx"
        export_onnx(mask_randomly(build(network, seed=seed, **arguments), shape), shape, path)
        x = np.random.default_rng(seed).standard_normal((3, *shape), np.float32)
        np.savez(path.with_suffix(".npz"), x=x, y=run_onnxruntime(path.read_bytes(), x))
    facts = {}
    for name, (masked, options) in FIXTURES.items():
        report = export_onnx(tiny.build(masked=masked), tiny.INPUT_SHAPE, folder / f"fixtures/{name}.onnx", **options)
        facts[name] = [asdict(layer) for layer in report.layers]
    (folder / "fixtures/facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
