"""The reader of assembly finds inner loops, their multiply-adds and their spills, on any machine for any target."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from inner_loops import TARGETS, emit, inner_loops

SUM = """
define void @f(<16 x float>* %sums, <16 x float>* %x, i64 %n) {{
before:
  {loads}
  br label %loop
loop:
  %i = phi i64 [0, %before], [%j, %loop]
  {phis}
  %p = getelementptr <16 x float>, <16 x float>* %x, i64 %i
  %v = load <16 x float>, <16 x float>* %p, align 4
  {adds}
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %n
  br i1 %more, label %loop, label %after
after:
  {stores}
  ret void
}}
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
"""


def sums(count: int) -> str:
    """LLVM's language of a loop that keeps so many sums of 16 numbers."""
    places = [f"%p{k} = getelementptr <16 x float>, <16 x float>* %sums, i64 {k}" for k in range(count)]
    loads = [f"%a{k} = load <16 x float>, <16 x float>* %p{k}, align 4" for k in range(count)]
    phis = [f"%s{k} = phi <16 x float> [%a{k}, %before], [%t{k}, %loop]" for k in range(count)]
    adds = [f"%t{k} = call <16 x float> @llvm.fma.v16f32(<16 x float> %v, <16 x float> %s{k}, <16 x float> %s{k})" for k in range(count)]
    stores = [f"store <16 x float> %t{k}, <16 x float>* %p{k}, align 4" for k in range(count)]
    texts = {"loads": places + loads, "phis": phis, "adds": adds, "stores": stores}
    return SUM.format(**{name: "\n  ".join(lines) for name, lines in texts.items()})


@pytest.mark.parametrize(("target", "fit", "registers"), [("avx512", 24, 1), ("avx2", 6, 2), ("neon", 6, 4)])
def test_sums_spill_where_registers_end(target: str, fit: int, registers: int) -> None:
    """registers: of a vector of 16 numbers."""
    for count, spills in ((fit, False), (fit + 9, True)):
        [loop] = inner_loops(emit(sums(count), TARGETS[target]))
        assert loop.multiply_adds % (count * registers) == 0 and loop.multiply_adds
        assert (loop.spills > 0) == spills


@pytest.mark.slow
def test_a_kernel_is_shown() -> None:
    script = Path(__file__).parents[2] / "benchmarks/inner_loops.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script), "linear", "--target", "neon"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "linear, neon: " in done.stdout and "fmla" in done.stdout
