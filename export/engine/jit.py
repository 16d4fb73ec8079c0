"""How the engine's functions are compiled."""

from pathlib import Path

from fineprune.ops.jit import Compiler

COMPILER = Compiler("engine", Path(__file__).parent)

jit = COMPILER.jit
"""For what compiled functions call."""
jit_merged = Compiler("engine", Path(__file__).parent, forceinline=True).jit
"""For what LLVM is to make part of every function that calls it."""
jit_inlined = COMPILER.jit_inlined
"""For what one compiled function calls at one place."""
jit_cached = COMPILER.jit_cached
"""For what Python calls: the result, with everything that it calls, is kept on disk."""
