"""Operations register themselves, and the stages between reader and kernels know none of them by name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fineprune.export.engine
from fineprune.export.engine.ir.network import HANDLERS, KERNELS, Layer, kernel, onnx
from fineprune.export.engine.ops.conv import CONVOLUTIONS

ENGINE = Path(fineprune.export.engine.__file__).parent
LAYERS = {kind.__name__: kind for kind in Layer.__subclasses__()}


def kinds_asked(source: str) -> Iterator[str]:
    """Kinds of layers for which an `isinstance` asks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            yield from (name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name) and name.id in LAYERS)


def test_nobody_but_operations_and_fusion_asks_what_kind_a_layer_is() -> None:
    assert {"Conv", "Map", "Assemble"} <= set(kinds_asked((ENGINE / "passes/fuse.py").read_text()))
    assert {"QuadConv"} <= set(kinds_asked((ENGINE / "passes/align.py").read_text()))
    assert {"Conv", "Dequantize", "QuadConv"} <= set(kinds_asked((ENGINE / "passes/integers.py").read_text()))
    about_several = ("fuse.py", "integers.py", "align.py")
    others = [path for path in ENGINE.rglob("*.py") if path.parent.name != "ops" and path.name not in about_several]
    assert {path.name: found for path in others if (found := list(kinds_asked(path.read_text())))} == {}


def test_every_layer_has_a_kernel() -> None:
    names = {name: {kind.kernel_name} if kind.kernel_name else set(CONVOLUTIONS) for name, kind in LAYERS.items()}
    assert {name: missing for name, kernels in names.items() if (missing := kernels - KERNELS.keys())} == {}


def test_what_is_declared_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'pool' is declared twice"):
        kernel("pool")(KERNELS["pool"].run)
    with pytest.raises(ValueError, match="'MaxPool'"):
        onnx("MaxPool")(HANDLERS["", "MaxPool"])


def test_a_layer_without_a_plan_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Layer has no plan"):
        Layer(name="x", inputs=(), output="x").plan("")
