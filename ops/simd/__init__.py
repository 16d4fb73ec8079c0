"""One vocabulary of SIMD for all compiled kernels: an operation is declared once (`declare`), as its numpy twin and what it compiles to.

tiles: register tiles; vectors: functions of their elements, moves between memory and lanes; atomics: integers that threads share.
Operations that only one kernel needs lie beside that kernel, declared with the same tool. Importing this package imports Numba, and
nothing else that is heavy.
"""

from .declare import LANES
from .tiles import at, pointer, tile_add_scaled, tile_load, tile_store, tile_zeros, transpose

__all__ = ["LANES", "at", "pointer", "tile_add_scaled", "tile_load", "tile_store", "tile_zeros", "transpose"]
