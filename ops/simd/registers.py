"""What the CPU that code is compiled for has to keep numbers in: vector registers, and the caches of a core.

Register tiles and blocks are derived from it. A vector of LANES floats takes one register with AVX-512, two with AVX2, four with NEON.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .. import numba_door
from .declare import LANES

_SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")


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


class Caches(NamedTuple):
    """Bytes of data that the caches of a core hold; as many as most CPUs have at least."""

    first: int = 32 << 10
    second: int = 512 << 10


def caches(system: Path = _SYSTEM) -> Caches:
    """Those of the CPU, where the system tells them."""
    found = {}
    for cache in system.glob("index*"):
        try:
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size[:-1].isdecimal() and size.endswith("K"):
            found[level] = int(size[:-1]) << 10
    return Caches(*(found.get(level, usual) for level, usual in zip("12", Caches(), strict=True)))


HOST = registers(numba_door.host_features())
CACHES = caches()
