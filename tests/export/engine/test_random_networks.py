"""Random networks against ONNX Runtime: every operator, fused and not, on one and two threads, for batches of one and three."""

import numpy as np
import onnxruntime
import pytest

from fineprune.export.engine import Session
from support.random_networks import RandomNetwork
from support.tolerances import ONNX_LOGITS


def check(seed: int, nodes: int) -> None:
    network = RandomNetwork(seed, nodes)
    content = network.serialized()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    reference = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    with Session(content) as alone, Session(content, threads=2) as two:
        for count in (1, 3):
            x = np.random.default_rng(seed).standard_normal((count, *network.box), np.float32)
            names = [port.name for port in reference.get_outputs()]
            results = zip(names, reference.run(None, {"x": x}), alone.run(None, {"x": x}), two.run(None, {"x": x}), strict=True)
            for name, expected, y, again in results:
                scale = max(1.0, float(np.abs(expected).max()))
                np.testing.assert_allclose(y, expected, ONNX_LOGITS[0], ONNX_LOGITS[1] * scale, err_msg=f"{name} of network {seed}")
                np.testing.assert_allclose(again, y, 1e-5 if network.foreign else 0, err_msg=f"{name} of network {seed}, two threads")


@pytest.mark.parametrize("seed", range(40))
def test_small_networks(seed: int) -> None:
    check(seed, nodes=5 + seed % 12)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_many_networks(start: int) -> None:
    for seed in range(start, start + 100):
        check(seed, nodes=5 + seed % 30)
