"""What the engine keeps on disk, and addresses of its compiled functions by name: what was compiled before is linked as it is."""

from collections.abc import Callable
from pathlib import Path

from fineprune.ops.keeper import Keeper
from fineprune.ops.machine_code import Code

KEEPER = Keeper("engine", Path(__file__).parent)

_ADDRESSES: dict[str, int] = {}


def address(name: str, make: Callable[[], Code]) -> int:
    """The address of the function called `name`, which `make` compiles where that was not done before."""
    if name not in _ADDRESSES:
        packed = KEEPER.read(name)
        code = Code.unpack(packed) if packed else None
        if code is None or not code.can_be_linked:
            code = make()
            KEEPER.write(name, code.pack())
        _ADDRESSES[name] = code.link()
    return _ADDRESSES[name]
