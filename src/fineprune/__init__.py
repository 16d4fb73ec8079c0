"""fineprune makes a trained convolutional network several times faster on the CPU that will run it, and shows what that cost.

import fineprune
bundle = fineprune.compress("resnet20", "cifar10:data", checkpoint="resnet20.safetensors", ffp=0.37, fwp=0.556, epochs=6)
fineprune.to_onnx(bundle, "resnet20.onnx")
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fineprune.compressor.bundle import Bundle
    from fineprune.models.objective import Metric

    from .compression import compress
    from .deployment import to_onnx
    from .evaluation import evaluate
    from .latency import bench, bench_layers
    from .networks import load
    from .own_loop import finish, plain, prepare
    from .pareto.front import front
    from .pipeline import run
    from .search.explore import profile, sensitivity

_PUBLIC = {
    "compress": "compression",
    "Bundle": "compressor.bundle",
    "to_onnx": "deployment",
    **dict.fromkeys(("bench", "bench_layers"), "latency"),
    "evaluate": "evaluation",
    "load": "networks",
    "run": "pipeline",
    "front": "pareto.front",
    **dict.fromkeys(("sensitivity", "profile"), "search.explore"),
    "Metric": "models.objective",
    **dict.fromkeys(("prepare", "finish", "plain"), "own_loop"),
}

__all__ = [
    "Bundle",
    "Metric",
    "bench",
    "bench_layers",
    "compress",
    "evaluate",
    "finish",
    "front",
    "load",
    "plain",
    "prepare",
    "profile",
    "run",
    "sensitivity",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and `fineprune --help` needs none of it."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fineprune' has no attribute {name!r}")
    from importlib import import_module

    try:
        module = import_module(f".{_PUBLIC[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(f"{__name__}."):
            raise
        raise ImportError(f"{__name__}.{name} needs the distribution fineprune; fineprune-runtime only runs exported files") from error
    return getattr(module, name)
