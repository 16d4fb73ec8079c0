"""Objects of the user's own code, named by `module.path:name` or `file.py:name`."""

import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fineprune.common.errors import FinepruneError, RunError, UsageError

from .vision import prepare_torchvision


def is_user_spec(spec: str) -> bool:
    """Whether `spec` has the form `module.path:name` or `file.py:name` (and not, say, `npz:FILE`)."""
    place, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        return False
    return place.endswith(".py") or all(part.isidentifier() for part in place.split("."))


def load_factory(spec: str) -> Callable[..., Any]:
    """The callable that `spec` names; the current folder (and a file's own) is searched as `python -m` would.

    Raises UsageError for a missing file, module or name, RunError where the user's code itself fails while it is imported.
    """
    prepare_torchvision()
    place, _, name = spec.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    factory = getattr(module, name, None)
    if callable(factory):
        return factory
    own = sorted(key for key, value in vars(module).items() if callable(value) and getattr(value, "__module__", None) == module.__name__)
    defined = ", ".join(own[:8]) or "no functions or classes"
    raise UsageError(f"{place} has no callable named {name!r}; it defines {defined}")


def call_factory(spec: str, factory: Callable[..., Any], **args: object) -> Any:
    """Call the user's factory; UsageError for arguments it does not take, RunError (with the cause kept) for its own failure."""
    try:
        inspect.signature(factory).bind(**args)
    except ValueError:  # a builtin without a signature: let the call itself tell
        pass
    except TypeError as error:
        accepted = ", ".join(inspect.signature(factory).parameters) or "no arguments"
        raise UsageError(f"{spec}: {error}; it takes {accepted}") from error
    with _search_paths(*_folders(spec.rpartition(":")[0])):
        try:
            return factory(**args)
        except FinepruneError:
            raise
        except Exception as error:
            raise RunError(f"{spec} failed: {describe(error)}") from error


def accepted_arguments(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments a factory takes by keyword; catch-all parameters are not named."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return {}
    return {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def describe(error: BaseException) -> str:
    """`Type: message` on one line, with the innermost file and line where there is a traceback."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):  # says itself where it is
        return text
    frames = [frame for frame in traceback.extract_tb(error.__traceback__, limit=-8) if not frame.filename.startswith("<frozen")]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give the path of a Python file, as in file.py:factory")
    resolved = path.resolve()
    # Not its plain stem: a user's `data.py` must not take the place of, nor be mistaken for, an installed module.
    name = f"fineprune_user_{resolved.stem}"
    module_spec = importlib.util.spec_from_file_location(name, resolved)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    with _search_paths(*_folders(str(path))), _user_errors(str(path)):
        sys.modules[name] = module  # dataclasses and pickles look their module up
        module_spec.loader.exec_module(module)
    return module


def _import(name: str) -> ModuleType:
    with _search_paths(*_folders(name)), _user_errors(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # Only the asked module or one of its parents: a missing import *inside* it is that module's own failure.
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                remedy = "; a notebook is not imported: save its cells as a Python file" if name.endswith(".ipynb") else ""
                raise UsageError(f"no Python module named {name!r} in {Path.cwd()} or among the installed packages{remedy}") from error
            raise


def _folders(place: str) -> list[str]:
    folders = [str(Path.cwd())]
    return [str(Path(place).resolve().parent), *folders] if place.endswith(".py") else folders


@contextmanager
def _search_paths(*folders: str) -> Iterator[None]:
    """What is imported meanwhile is found in `folders`, too, and does not stay half done where it fails."""
    added = [folder for folder in folders if folder not in sys.path]
    before = set(sys.modules)
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    except BaseException:
        _forget(set(sys.modules) - before)
        raise
    finally:
        for folder in added:
            sys.path.remove(folder)


@contextmanager
def _user_errors(place: str) -> Iterator[None]:
    try:
        yield
    except FinepruneError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may exit
        raise RunError(f"{place} cannot be imported: {describe(error)}") from error


def _forget(imported: Iterable[str]) -> None:
    """Take those of the modules out of `sys.modules` that have lost the package above them, and those of the user's own folders.

    Python itself forgets only the module that failed: its submodules would stay without a parent, and a helper beside it as it was
    before the user mended it. Installed libraries stay, since compiled ones cannot be imported twice.
    """
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    for name in sorted(imported):  # packages before what is in them
        parent = name.rpartition(".")[0]
        file = getattr(sys.modules[name], "__file__", None) or ""
        own = file.endswith(".py") and not file.startswith(installed) and name.partition(".")[0] != __name__.partition(".")[0]
        if own or (parent and parent not in sys.modules):
            del sys.modules[name]
