"""What the CPU that code is compiled for has to keep numbers in: vector registers, and a first-level cache.

Register tiles are derived from it. A vector of LANES floats takes one register with AVX-512, two with AVX2, four with NEON.
"""

from dataclasses import dataclass
from pathlib import Path

from .. import numba_door
from .declare import LANES

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 << 10


@dataclass(frozen=True, kw_only=True)
class Registers:
    """So many, of so many floats each; `masks`: whether lanes that are left out make loads and stores no dearer."""

    name: str
    count: int
    floats: int
    masks: bool = False

    def vectors(self, beside: int = 0) -> int:
        """Vectors of LANES floats that they hold beside so many registers."""
        return (self.count - beside) * self.floats // LANES


AVX512 = Registers(name="avx512", count=32, floats=16, masks=True)
AVX2 = Registers(name="avx2", count=16, floats=8)
NEON = Registers(name="neon", count=32, floats=4)


def registers(features: str) -> Registers:
    """features: LLVM's names of what the CPU can do."""
    return AVX512 if "+avx512f" in features else NEON if "+neon" in features else AVX2


def first_level_cache(caches: Path = _CACHES) -> int:
    """Bytes of the first-level cache of data where the system tells them, else as many as most CPUs have at least."""
    for cache in caches.glob("index*"):
        try:
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if (level, kind) == ("1", "Data") and size[:-1].isdecimal() and size.endswith("K"):
            return int(size[:-1]) << 10
    return _USUAL_CACHE


HOST = registers(numba_door.host_features())
CACHE = first_level_cache()
