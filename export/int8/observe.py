"""What values the tensors of a graph take on calibration images: the graph itself in ONNX Runtime, its tensors as outputs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError, said_by
from fineprune.common.progress import Progress
from fineprune.ops import ranges

from ..transform import add_functions

Arrays = NDArray[Any] | tuple[NDArray[Any], ...]
"""What a graph reads: x[N,C,H,W], or one array [N,...] for each of its inputs."""
BATCH_VALUES = 2**18
"""Values of a batch's images: all activations of a batch are there at once."""


class Runner:
    """A graph in memory, functions allowed, that ONNX Runtime runs in batches."""

    def __init__(self, model: Any, opset: int, outputs: Sequence[str] = ()) -> None:
        import onnx
        import onnxruntime

        model = copied(model)
        add_functions(model, opset=opset)
        proto = _proto(model)
        if outputs:
            del proto.graph.output[:]
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise RunError(f"ONNX Runtime cannot run the network to quantise it: {said_by(error)}; export it without int8") from error

    def batches(self, x: Arrays, progress: Progress, description: str) -> Iterator[list[NDArray]]:
        """The outputs, batch by batch."""
        given = x if isinstance(x, tuple) else (x,)
        size = max(1, BATCH_VALUES // max(1, sum(one[0].size for one in given)))
        names = [each.name for each in self._session.get_inputs()]
        starts = range(0, len(given[0]), size)
        for start in progress(starts, total=len(starts), description=description):
            yield self._session.run(None, {name: one[start : start + size] for name, one in zip(names, given, strict=True)})

    def logits(self, x: Arrays, progress: Progress, description: str) -> NDArray[np.float32]:
        """The first output of all of x."""
        return np.concatenate([outputs[0] for outputs in self.batches(x, progress, description)])


def histograms(model: Any, names: Sequence[str], x: Arrays, opset: int, progress: Progress) -> dict[str, ranges.Histogram]:
    """Of the tensors called `names` over the samples x."""
    runner = Runner(model, opset, names)

    def once(description: str) -> Iterator[dict[str, NDArray[np.float32]]]:
        return (dict(zip(names, tensors, strict=True)) for tensors in runner.batches(x, progress, description))

    return ranges.histograms(once)


def copied(model: Any) -> Any:
    """The same graph once more."""
    from onnxscript import ir

    return ir.serde.deserialize_model(_proto(model))


def _proto(model: Any) -> Any:
    from onnxscript import ir

    return ir.serde.serialize_model(model)
