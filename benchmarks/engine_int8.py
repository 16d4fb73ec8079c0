"""The networks of benchmarks/engine.py in eight bits: random weights, random masks of quads, calibrated on random images.

    files     float32 and int8, each with nothing dropped and with DROPPED of the quads of every convolution without groups
    rows      float32 in ONNX Runtime (the baseline), int8 as its own quantiser makes it (the rival; in OpenVINO, too, where that is
              installed) and of the masked int8 file there, and all four files in the engine

Which integers there are decides no time, only where the zeros are: nothing is trained. Where the engine and ONNX Runtime give the same
logits of random images bit by bit, all integers before them are the same.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_networks import NETWORKS, untrained
from torch import nn

from fineprune.compressor.bake import bake
from fineprune.compressor.macs import count_macs
from fineprune.export.benchmark import BenchmarkConfig, benchmark
from fineprune.export.engine.run.runtime import EngineRuntime
from fineprune.export.exporter import export_onnx
from fineprune.export.int8.quantiser import Quantiser
from fineprune.export.peers import usable_peers
from fineprune.export.peers.int8 import Int8Runtime
from fineprune.export.runtimes import OnnxRuntime, Runtime
from fineprune.ops.simd.quads import HOST, MADD, PLAIN

DROPPED = 0.72
QUAD = 4
IMAGES = 8
"""That calibrate, and that are compared."""
BASELINE, STOCK, SAME = "onnxruntime dense", "onnxruntime int8", "onnxruntime quads-int8"
FILES = {"dense": (0.0, False), "quads": (DROPPED, False), "dense-int8": (0.0, True), "quads-int8": (DROPPED, True)}
"""Name -> (fraction of quads that is dropped, whether it is in int8)."""


def measure_int8(name: str, folder: Path, config: BenchmarkConfig) -> dict[str, Any]:
    """Rows of latency of a network, and how its integers compare with ONNX Runtime's."""
    case = NETWORKS[name]
    images = np.random.default_rng(0).standard_normal((IMAGES, *case.input_shape), dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model = untrained(case, torch.from_numpy(images))
    paths, files = {kind: folder / f"{kind}.onnx" for kind in FILES}, {}
    for kind, (dropped, int8) in FILES.items():
        masked = bake(model, {"fwp": quad_masks(model, dropped)}) if dropped else model
        export_onnx(masked, case.input_shape, paths[kind], int8=Quantiser(samples=images) if int8 else None)
        macs = count_macs(masked, case.input_shape)
        files[kind] = {"pruned": 1 - macs.conv_macs / macs.conv_macs_dense, "bytes": paths[kind].stat().st_size}
    runtimes: list[Runtime] = [OnnxRuntime(BASELINE, paths["dense"]), Int8Runtime(STOCK, paths["dense"], images)]
    runtimes += [OnnxRuntime(SAME, paths["quads-int8"]), *(EngineRuntime(f"fineprune {kind}", path) for kind, path in paths.items())]
    others, skipped = usable_peers(paths["dense"], images, ["openvino-int8"])
    rows = benchmark([*runtimes, *others], case.input_shape, config, rival=STOCK).to_json()["rows"]
    same = {kind: compared(paths[kind], images) for kind, (_, int8) in FILES.items() if int8}
    return {"dropped": DROPPED, "products": HOST, "files": files, "latency": rows, "same": same, "skipped": skipped}


def quad_masks(model: nn.Module, dropped: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """Masks [F,C,kh,kw] of all convolutions without groups: of every layer's quads `dropped` go, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == 1:
            F, C, *size = conv.weight.shape
            quads = (F, -(-C // QUAD), *size)
            order = torch.randperm(int(np.prod(quads)), generator=generator)
            kept = (order >= round(dropped * len(order))).view(quads)
            masks[name] = kept.repeat_interleave(QUAD, 1)[:, :C].contiguous()
    return masks


def compared(path: Path, images: np.ndarray) -> dict[str, Any]:
    """Images of which the engine and ONNX Runtime give the same logits, bit by bit, and the largest difference over the largest logit."""
    logits = []
    for runtime in (OnnxRuntime("onnxruntime", path), EngineRuntime("engine", path)):
        runtime.load(1)
        logits.append(np.concatenate([runtime.run(image[None]) for image in images]))
        runtime.close()
    wanted, found = logits
    equal = (wanted == found).reshape(len(images), -1).all(1)
    return {"images": len(images), "equal": int(equal.sum()), "difference": float(np.abs(found - wanted).max() / np.abs(wanted).max())}


GOALS = {"over ONNX Runtime int8": 1.5, "over ONNX Runtime int8, without VNNI": 2.0, "over float32, without VNNI": 4.0, "dense int8": 0.95}
"""Speed-ups: of the masked int8 file, and of the dense one over ONNX Runtime's int8."""


def judge_int8(networks: dict[str, Any]) -> list[str]:
    """A line for each goal, network and number of threads; ONNX Runtime's int8 is the faster of its two rows.

    Where the machine was busy nothing is judged: calls that outlast a turn of the scheduler look slower than shorter ones.
    """
    lines = []
    for name, network in networks.items():
        vnni = network["products"] not in (MADD, PLAIN)
        for threads in sorted({row["threads"] for row in network["latency"]}):
            rows = {row["runtime"]: row for row in network["latency"] if (row["threads"], row["batch_size"]) == (threads, 1)}
            if not rows:
                continue
            stock = max(1.0, rows[SAME]["speedup_rival"])
            masked, dense = rows["fineprune quads-int8"], rows["fineprune dense-int8"]
            asked = [(masked["speedup_rival"] / stock, "over ONNX Runtime int8" + ("" if vnni else ", without VNNI"))]
            asked += [] if vnni else [(masked["speedup"], "over float32, without VNNI")]
            asked.append((dense["speedup_rival"] / stock, "dense int8"))
            quiet = all(rows[runtime]["reliable"] for runtime in (BASELINE, STOCK, SAME, masked["runtime"], dense["runtime"]))
            for found, goal in asked:
                met = ("met   " if found >= GOALS[goal] else "MISSED") if quiet else "busy  "
                lines.append(f"{met}  {name}, {threads} thread{'s' * (threads > 1)}, {goal}: x{found:.2f}, goal {GOALS[goal]}")
    return lines
