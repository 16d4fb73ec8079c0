"""What a name that is no network or data set was meant to be: told by the files that exist, without importing or reading any weights."""

import ast
import contextlib
from pathlib import Path

WEIGHTS = (".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin", ".tar", ".pkl")
MANIFEST = "manifest.json"


def is_onnx(name: str) -> bool:
    """Whether `name` is that of an ONNX file, which is a network as it stands."""
    return name.lower().endswith(".onnx")


def meant_as_model(name: str) -> str:
    """Advice for `name`, which is no network; empty where nothing is known."""
    place, _, attribute = name.rpartition(":")
    path = Path(name)
    if not name or not _could_exist(path):
        return ""
    if path.suffix == ".py":
        return _file(path, "the network")
    if place.endswith(".py") and not attribute.isidentifier():
        return _file(Path(place), "the network")
    if "/" in place and Path(f"{place}.py").is_file():
        return f"write {place}.py:{attribute}"
    if is_onnx(name):
        return f"that is an ONNX file; give it in the place of a bundle: fineprune compress {name} --data SPEC"
    if path.suffix in WEIGHTS:
        return f"that is a file of weights; name the network, too: --model NAME --checkpoint {name}"
    if (path / MANIFEST).is_file():
        return "that is a bundle, which says its network itself; give it in the place of the model"
    if path.is_dir():
        return "that is a folder; give the file and the callable in it that makes the network, as in folder/file.py:factory"
    return ""


def meant_as_data(spec: str) -> str:
    """Advice for `spec`, which is no data set; empty where nothing is known."""
    path = Path(spec)
    if not spec or not _could_exist(path):
        return ""
    if path.is_dir():
        return f"for a folder with one folder of images for each class give imagefolder:{spec}"
    if path.suffix == ".npz":
        return f"give npz:{spec}"
    if path.suffix == ".py":
        return _file(path, "the data set")
    if path.is_file():
        return "a single file is read only as npz:FILE (arrays of images and labels); a function of yours reads others: file.py:factory"
    return ""


def _could_exist(path: Path) -> bool:
    """Whether the system can be asked for `path`: a name may be too long, or its folder closed."""
    with contextlib.suppress(OSError, ValueError):
        path.exists()
        return True
    return False


def _file(path: Path, result: str) -> str:
    """Which callable of a Python file makes `result`, by its text alone."""
    if not path.is_file():
        return f"there is no file {path}; give one and the callable in it that makes {result}, as in file.py:factory"
    names = callables(path)
    if not names:
        return f"name the callable in it that makes {result}, as in {path}:factory (the file defines none)"
    more = f" (it defines {', '.join(names[:8])})" if len(names) > 1 else ""
    return f"name the callable in it that makes {result}, as in {path}:{names[0]}{more}"


def callables(path: Path) -> list[str]:
    """Public functions, then classes, that the file defines at its top level; none where it cannot be parsed."""
    with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        body = ast.parse(path.read_bytes()).body
        kinds = ((ast.FunctionDef,), (ast.ClassDef,))
        return [node.name for kind in kinds for node in body if isinstance(node, kind) and not node.name.startswith("_")]
    return []
