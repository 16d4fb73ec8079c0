"""Networks from ONNX files: read, built of torch's modules, compared with ONNX Runtime."""

from .check import check_same
from .file import architecture, elements, input_shape, parse, read, sized
from .importer import build

__all__ = ["architecture", "build", "check_same", "elements", "input_shape", "parse", "read", "sized"]
