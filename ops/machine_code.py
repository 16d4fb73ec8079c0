"""Object code of compiled functions, which LLVM links into the process: who runs what was compiled before needs no compiler.

bytes = a line of JSON {"name": of the function, "needs": names of what it calls of others}, object code
"""

import functools
import json
import os
from dataclasses import dataclass
from typing import Any

from llvmlite import binding


@dataclass(frozen=True)
class Code:
    """The object code of the function `name`; `needs`: the functions of others that it calls."""

    name: str
    needs: tuple[str, ...]
    content: bytes

    def pack(self) -> bytes:
        """As it is kept."""
        return json.dumps({"name": self.name, "needs": self.needs}).encode() + b"\n" + self.content

    @classmethod
    def unpack(cls, packed: bytes | memoryview) -> "Code":
        """What was packed."""
        line, _, content = bytes(packed).partition(b"\n")
        facts = json.loads(line)
        return cls(facts["name"], tuple(facts["needs"]), content)

    @property
    def can_be_linked(self) -> bool:
        """Whether the process has all that it needs. Numba's own functions are there once Numba is loaded."""
        return all(binding.address_of_symbol(name) for name in self.needs)

    def link(self) -> int:
        """The address of the function, which stays for as long as the process lives."""
        engine = _linker()
        engine.add_object_file(binding.ObjectFileRef.from_data(self.content))
        engine.finalize_object()
        _KEPT_ALIVE.append(engine)
        return int(engine.get_function_address(self.name))


_KEPT_ALIVE: list[Any] = []


def cpu() -> str:
    """LLVM's name of the CPU and of what it can do."""
    return f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"


def uncompiled() -> bool:
    """Whether functions are to stay as they are in Python."""
    return os.environ.get("NUMBA_DISABLE_JIT", "") not in ("", "0")


def _linker() -> Any:
    """One for each function: names of parts that functions share, compiled by different processes, do not mean the same."""
    return binding.create_mcjit_compiler(binding.parse_assembly(""), _target().create_target_machine(jit=True))


@functools.cache
def _target() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_triple(binding.get_process_triple())
