"""ncnn on an ONNX file, float32, converted by pnnx. A batch is run one sample after another: ncnn knows none."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import RunError

from .convert import convert


class NcnnRuntime:
    """`input_shape` = (C, H, W); pnnx fixes it."""

    def __init__(self, name: str, path: Path | str, input_shape: tuple[int, ...]) -> None:
        self.name = name
        self._path = Path(path)
        self._input_shape = input_shape
        self._network: Any = None

    def load(self, threads: int) -> None:
        import ncnn
        import onnx
        import pnnx

        network = ncnn.Net()
        network.opt.num_threads = threads
        network.opt.use_vulkan_compute = False
        for half in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(network.opt, half, False)
        with tempfile.TemporaryDirectory(prefix="fineprune-ncnn-") as name:
            folder = Path(name)
            onnx.save(strided_slices_as_pools(onnx.load(self._path)), folder / "network.onnx")
            shape = ",".join(map(str, (1, *self._input_shape)))
            command = [pnnx.EXEC_PATH, "network.onnx", f"inputshape=[{shape}]f32", "fp16=0"]
            files = folder / "network.ncnn.param", folder / "network.ncnn.bin"
            convert("ncnn", command, folder, files)
            if network.load_param(str(files[0])) or network.load_model(str(files[1])):
                raise RunError(f"ncnn cannot load {self._path}: pnnx left operators in it that ncnn has not; leave ncnn out")
        self._network = network

    def run(self, x: NDArray[np.float32]) -> NDArray:
        return np.stack([self._run_one(sample) for sample in x])

    def _run_one(self, sample: NDArray[np.float32]) -> NDArray:
        import ncnn

        extractor = self._network.create_extractor()
        extractor.input(self._network.input_names()[0], ncnn.Mat(sample))
        return np.array(extractor.extract(self._network.output_names()[0])[1])

    def close(self) -> None:
        self._network = None


def strided_slices_as_pools(model: Any) -> Any:
    """x[..., ::s] of rows or columns as a maximum pool of 1x1 windows with that stride, since ncnn's Slice has no steps."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for position, node in enumerate(model.graph.node):
        if node.op_type != "Slice" or len(node.input) != 5 or not all(name in constants for name in node.input[1:]):
            continue
        starts, ends, axes, steps = (constants[name] for name in node.input[1:])
        if (axes < 2).any() or (starts != 0).any() or (ends < 2**31 - 1).any():
            continue
        strides = [1, 1]
        for axis, step in zip(axes, steps, strict=True):
            strides[axis - 2] = int(step)
        pool = helper.make_node("MaxPool", node.input[:1], node.output, name=node.name, kernel_shape=[1, 1], strides=strides)
        model.graph.node[position].CopyFrom(pool)
    return model
