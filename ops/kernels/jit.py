"""How the kernels are compiled: each function on first use; results are kept on disk."""

from pathlib import Path

from ..jit import Compiler
from ..keeper import Keeper

COMPILER = Compiler(Keeper("kernels", Path(__file__).parent))

jit = COMPILER.jit_cached
