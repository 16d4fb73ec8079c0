"""The inner loops of a kernel of the engine as they are emitted for any CPU, on any machine: where the multiply-adds are, and what spills.

    python benchmarks/inner_loops.py positions --target neon

For x86-64 these are the instructions that run on such a CPU. For Arm, LLVM's language is optimised as for the CPU at hand, but with tiles
for the registers of Arm, and becomes instructions for Arm. A loop here is a run of instructions that ends with a branch back to its first
one, and holds no other loop.
"""

import os
import re
from dataclasses import dataclass

import click
from llvmlite import binding


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of CPU: LLVM's names of it."""

    triple: str
    cpu: str
    features: str


TARGETS = {
    "avx512": Target(triple="x86_64-unknown-linux-gnu", cpu="znver5", features="+avx512f,+avx2,+fma"),
    "avx512vnni": Target(
        triple="x86_64-unknown-linux-gnu",
        cpu="znver5",
        features="+avx512f,+avx512vl,+avx512bw,+avx512vnni,+avx2,+fma",
    ),
    "avxvnni": Target(triple="x86_64-unknown-linux-gnu", cpu="alderlake", features="+avxvnni,+avx2,+fma"),
    "avx2": Target(triple="x86_64-unknown-linux-gnu", cpu="znver3", features="+avx2,+fma"),
    "i8mm": Target(triple="aarch64-unknown-linux-gnu", cpu="neoverse-v1", features="+neon,+dotprod,+i8mm"),
    "dotprod": Target(triple="aarch64-unknown-linux-gnu", cpu="cortex-a76", features="+neon,+dotprod"),
    "neon": Target(triple="aarch64-unknown-linux-gnu", cpu="cortex-a72", features="+neon"),
}
_LABEL = re.compile(r"^([.\w$]+):")
_BRANCH = re.compile(r"^\s+(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s.*?([.\w$]+)\s*(?:[#/].*)?$")
_MULTIPLY_ADD = re.compile(r"^\s+(?:(?:\{vex\}\s)?(?:vfn?m(?:add|sub)\w*ps|vpdpbusd|vpmaddubsw)|fml[as]|(?:us|s)dot|smull)\s")
_OF_FLOATS = re.compile(r"^\s+(?:vfn?m(?:add|sub)\w*ps|fml[as])\s")
_SPILL = re.compile(r"(?:Spill|Reload)")
_VECTOR = re.compile(r"\b(?:[xyz]mm|q|v)\d+\b")


@dataclass(frozen=True)
class Loop:
    """Instructions of an inner loop."""

    lines: tuple[str, ...]

    @property
    def multiply_adds(self) -> int:
        """Vector instructions that multiply and add."""
        return sum(bool(_MULTIPLY_ADD.match(line)) for line in self.lines)

    @property
    def of_floats(self) -> bool:
        """Whether it multiplies float32 numbers: in a kernel of integers, what makes results of sums."""
        return any(_OF_FLOATS.match(line) for line in self.lines)

    @property
    def spills(self) -> int:
        """Instructions that keep a vector on the stack or fetch it from there."""
        return sum(bool(_SPILL.search(line) and _VECTOR.search(line)) for line in self.lines)


def language(kernel: str, target: Target) -> str:
    """A kernel in LLVM's language, for the registers of `target`. Once in a process, before anything imports Numba."""
    if target.triple.startswith("x86_64"):
        os.environ |= {"NUMBA_CPU_NAME": target.cpu, "NUMBA_CPU_FEATURES": target.features}
    from fineprune.ops import numba_door

    numba_door.host_features = lambda: target.features  # the engine's tiles depend on it
    from fineprune.export.engine import ops  # noqa: F401 - which have the kernels
    from fineprune.export.engine.ir.network import KERNELS
    from fineprune.export.engine.jit import COMPILER

    if kernel not in KERNELS:
        raise click.UsageError(f"no kernel {kernel!r}; there are {', '.join(sorted(KERNELS))}")
    return COMPILER.language(KERNELS[kernel].entry.function, machine_of(target))


def machine_of(target: Target) -> binding.TargetMachine:
    """What LLVM optimises and translates for."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    return binding.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, features=target.features, opt=3)


def emit(text: str, target: Target) -> str:
    """Assembly of a module in LLVM's language."""
    machine = machine_of(target)
    machine.set_asm_verbosity(True)
    text = re.sub(r"^target (?:triple|datalayout) = .*$", "", text, flags=re.MULTILINE)
    module = binding.parse_assembly(text)
    module.triple, module.data_layout = target.triple, str(machine.target_data)
    return str(machine.emit_assembly(module))


def inner_loops(assembly: str) -> list[Loop]:
    """In their order."""
    loops, lines, label = [], list[str](), ""
    for line in assembly.splitlines():
        if found := _LABEL.match(line):
            label, lines = found[1], []
        elif line.startswith("\t") and not line.startswith("\t."):
            lines.append(line)
            if (branch := _BRANCH.match(line)) and branch[1] == label:
                loops.append(Loop(tuple(lines)))
    return loops


@click.command(help="Show the inner loops of a kernel with the most multiply-adds.")
@click.argument("kernel")
@click.option("--target", type=click.Choice(list(TARGETS)), default="neon", show_default=True)
@click.option("--loops", default=1, show_default=True, help="How many of them to print.")
def main(kernel: str, target: str, loops: int) -> None:
    found = [loop for loop in inner_loops(emit(language(kernel, TARGETS[target]), TARGETS[target])) if loop.multiply_adds]
    for loop in found:
        kind = "float32" if loop.of_floats else "integer"
        print(f"{kernel}, {target}: {len(loop.lines)} instructions, {loop.multiply_adds} {kind} multiply-adds, {loop.spills} spills")
    for loop in sorted(found, key=lambda loop: -loop.multiply_adds)[:loops]:
        print("", *loop.lines, sep="\n")


if __name__ == "__main__":
    main()
