"""What the engine computes: one file an operation. Whatever lies in this folder is loaded, and registers itself (ir/network.py)."""

from importlib import import_module
from pkgutil import iter_modules

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
