"""Networks from ONNX files: read, built of torch's modules, compared with ONNX Runtime."""

from .check import opened
from .file import architecture, elements, input_shape, parse, read, sized
from .importer import build

__all__ = ["architecture", "build", "elements", "input_shape", "opened", "parse", "read", "sized"]
