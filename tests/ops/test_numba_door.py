"""What Numba and LLVM must go on doing: known to hold for KNOWN, each of which ran this file; it needs nothing but Numba and pytest."""

import logging
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite.binding import Target
from numba import njit, types

from fineprune.ops import numba_door as door
from fineprune.ops.machine_code import Code
from fineprune.ops.numba_door import ir

KNOWN = ("0.61", "0.62", "0.63", "0.64", "0.65", "0.66", "0.67", "0.68")


def place(folder: Path | None, stamp: str = "first") -> Any:
    return SimpleNamespace(folder=folder, stamp=stamp)


def emitted(emit: Callable[..., Any], typed: Callable[..., Any]) -> Any:
    """An operation of one argument."""

    def stands_for(value: Any) -> Any:
        return value

    return door.inlined(stands_for, typed, emit, True)


def twice(x: int) -> int:
    return 2 * x


def test_every_name_that_passes_is_tried_here() -> None:
    tried = Path(__file__).read_text()
    assert [name for name in door.__all__ if f"door.{name}(" not in tried and f"{name}." not in tried] == []


def test_the_version_is_one_of_those_known() -> None:
    assert numba.__version__.rpartition(".")[0] in KNOWN, "try this file, then add the version"


def test_the_machine_has_a_name_and_features() -> None:
    assert door.host_cpu()
    assert all(feature[0] in "+-" for feature in door.host_features().split(",") if feature)


@pytest.mark.parametrize(
    ("triple", "features"), [("aarch64-unknown-linux-gnu", "+neon"), ("arm64-apple-darwin", "+neon"), ("x86_64-pc-linux", "")]
)
def test_an_arm_cpu_of_which_nothing_is_told_has_neon(triple: str, features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.config, "CPU_FEATURES", "")
    monkeypatch.setattr(door.binding, "get_process_triple", lambda: triple)
    assert door.host_features() == features


@pytest.mark.parametrize("stamp", ["first", "second"])
def test_what_is_compiled_is_kept_until_the_stamp_changes(tmp_path: Path, stamp: str) -> None:
    door.callback(twice, types.int64(types.int64), {}, place(tmp_path))
    again = door.callback(twice, types.int64(types.int64), {}, place(tmp_path, stamp))
    assert again.cache_hits == (stamp == "first")
    assert CFUNCTYPE(c_int64, c_int64)(again.address)(4) == again.ctypes(4) == 8


def test_what_is_compiled_is_called_by_its_name_alone() -> None:
    @lambda function: door.part(function, {"error_model": "numpy"})
    def third(x: int) -> int:
        return x // 3

    name, needs, content = door.compiled(lambda x: third(x) + third(x + 1), types.int64(types.int64), {"error_model": "numpy"})
    assert name.encode() in content
    assert needs == ()
    code = Code(name, needs, content)
    assert Code.unpack(code.pack()) == code
    assert CFUNCTYPE(c_int64, c_int64)(code.link())(8) == 2 + 3


def test_what_is_compiled_can_be_read() -> None:
    machine = Target.from_default_triple().create_target_machine(cpu="", opt=3)
    text = door.language(twice, types.int64(types.int64), {}, machine)
    assert "define i64 @" in text and "shl" in text and "target triple" in text


def test_parts_are_not_called_from_python() -> None:
    with pytest.raises(TypeError):
        door.part(twice, {})(3)


def test_a_function_is_kept(tmp_path: Path) -> None:
    first, second = (door.keep(njit(twice), place(tmp_path)) for _ in range(2))
    assert first(3) == second(3) == 6
    assert (sum(first._cache_hits.values()), sum(second._cache_hits.values())) == (0, 1)
    assert door.keep(njit(twice), place(None))(5) == 10


def test_damaged_code_is_compiled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert door.keep(njit(twice), place(tmp_path))(3) == 6
    for file in tmp_path.glob("*.nb?"):
        file.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert door.keep(njit(twice), place(tmp_path))(3) == 6
    assert "compiled again" in caplog.text


def test_a_type_of_our_own_holds_an_llvm_value() -> None:
    @door.registered(lambda pair: ir.ArrayType(ir.IntType(64), pair.size))
    class Several(types.Type):
        def __init__(self, size: int) -> None:
            self.size = size
            super().__init__(name=f"Several({size})")

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for k in range(signature.return_type.size):
            value = builder.insert_value(value, ir.IntType(64)(k + 5), k)
        return value

    several = emitted(make, lambda size: Several(size.literal_value)(size))
    last = emitted(lambda _, builder, signature, args: builder.extract_value(args[0], signature.args[0].size - 1), types.int64)

    @njit
    def run() -> int:
        return last(several(3))

    assert run() == 7


def test_nothing_returned_is_none() -> None:
    nothing = emitted(lambda context, builder, signature, args: None, types.void)

    @njit
    def run() -> bool:
        return nothing(1) is None

    assert run()


def test_functions_of_llvm_are_declared_once() -> None:
    def root(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = door.declared(builder, "llvm.sqrt.f32", ir.FloatType(), [ir.FloatType()])
        assert function is door.declared(builder, "llvm.sqrt.f32", ir.FloatType(), [ir.FloatType()])
        return builder.call(function, args)

    square_root = emitted(root, lambda _: types.float32(types.float32))
    assert njit(lambda x: square_root(x))(np.float32(9)) == 3


def test_arrays_are_taken_apart_and_put_together() -> None:
    kind = types.Array(types.int32, 1, "C")

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.gep(door.array_data(context, builder, signature.args[0], args[0]), [ir.IntType(64)(2)])
        return door.array_at(context, builder, kind, builder.ptrtoint(first, ir.IntType(64)), ir.IntType(64)(3))

    middle = emitted(emit, lambda array: kind(array))

    @njit
    def run(array: Any) -> Any:
        part = middle(array)
        part[0] = 70
        return len(part), part[1], part.strides[0], part.sum()

    array = np.arange(7, dtype=np.int32)
    assert run(array) == (3, 3, 4, 77)
    assert array[2] == 70
