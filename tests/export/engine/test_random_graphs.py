"""Random graphs of all sorts in the engine and in ONNX Runtime; benchmarks/random_graphs.py tries many more."""

import numpy as np
import pytest

from support.onnx_comparison import compare, differences
from support.random_graphs import RandomGraph


@pytest.mark.parametrize("start", range(0, 60, 10))
def test_graphs_are_what_onnxruntime_computes(start: int) -> None:
    for seed in range(start, start + 10):
        graph = RandomGraph(seed)
        feeds = [graph.feeds(count, seed) for count in (1, 3)]
        outcome = compare(graph.model.SerializeToString(), feeds, threads=(1, 2) if seed % 5 == 0 else (1,))
        assert not outcome.fault and outcome.kind != "refused", f"graph {seed}: {outcome}"


def test_a_difference_is_found() -> None:
    wanted = np.array([[1.0, -2.0, np.nan, np.inf]], np.float32)
    for column, value in ((1, -2.01), (1, np.nan), (2, 0.0), (3, -np.inf)):
        wrong = wanted.copy()
        wrong[0, column] = value
        assert len(list(differences([wrong], [wanted]))) == 1
    assert not list(differences([wanted * np.float32(1 + 1e-5)], [wanted]))
