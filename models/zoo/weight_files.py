"""What a file that is given as a checkpoint holds, without running anything that it contains."""

import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from fineprune.common.errors import RunError, UsageError

from ..naming import MANIFEST, WEIGHTS

_TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began its files before torch 1.6: the pickled magic number."""

_ONNX = re.compile(rb"\x08[\x03-\x20](\x12.(pytorch|onnx|tf2onnx|skl2onnx|keras2onnx|paddle)|:)", re.DOTALL)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_TAR = re.compile(rb".{257}ustar", re.DOTALL)
_TEXT_OF_A_PAGE = re.compile(rb"\s*(<!doctype|<html|<\?xml|<head|<body)", re.IGNORECASE)
_EXPORTED = "give the PyTorch checkpoint that it was made from"
_KINDS = (
    (re.compile(rb"version https://git-lfs"), "is a Git LFS pointer and not the file that it stands for; fetch that with `git lfs pull`"),
    (_TEXT_OF_A_PAGE, "is a web page, saved under the name of a weights file; download the file itself"),
    (re.compile(rb"\x89HDF"), f"is an HDF5 file, as Keras and TensorFlow write them; {_EXPORTED}, or convert it"),
    (re.compile(rb".{4}TFL3", re.DOTALL), f"is a TensorFlow Lite file; {_EXPORTED}"),
    (re.compile(rb"GGUF"), f"is a GGUF file, as llama.cpp reads them; {_EXPORTED}"),
    (_ONNX, f"is an ONNX file, whose weights have lost the names of the network's parameters; {_EXPORTED}"),
    (re.compile(rb"\x93NUMPY"), "is a NumPy array; give a file of model.state_dict()"),
    (re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!"), "is compressed; unpack it and give the weights file in it"),
    (_TAR, "is a tar archive; unpack it and give the weights file in it (torch before 0.1.10 saved so: load it there and save it anew)"),
    (re.compile(rb"\s*[{\[]\s*\""), "is a text (JSON), perhaps the index of several weights files; join those to one and give that"),
)  # fmt: skip


def read_content(path: Path) -> Any:
    """What torch.save or safetensors wrote to `path`: tensors and plain containers, nothing else is unpickled.

    Raises UsageError where there is no such file; RunError, which names what it is instead, where it is no weights file, and where it
    is truncated, claims more than it holds, or holds other objects.
    """
    if not path.is_file():
        raise missing_checkpoint(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    if not head:
        raise RunError(f"{path} is empty; copy or download it again")
    if head[8:9] == b"{":  # eight bytes of length, then JSON
        return _read_safetensors(path)
    for pattern, what in _KINDS:
        if pattern.match(head):
            raise RunError(f"{path} {what}")
    if head.startswith(b"PK"):
        _check_archive(path)
    elif path.suffix == ".safetensors" and not _PICKLE.match(head):
        raise RunError(f"{path} is truncated or not a safetensors file; copy it again")
    return _read_torch(path, plain_pickle=_PICKLE.match(head) is not None and not head.startswith(_TORCH_LEGACY))


def missing_checkpoint(path: Path) -> UsageError:
    """There is no checkpoint at `path`: why, and what is wanted."""
    if not path.is_dir():
        return UsageError(f"checkpoint {path} does not exist; give the path of a weights file")
    if (path / MANIFEST).is_file():
        return UsageError(f"checkpoint {path} is a folder: a bundle, which holds network and weights; name it alone, without a model")
    files = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHTS)
    advice = f"give a weights file in it: {', '.join(files[:3])}" if files else "give the path of a weights file"
    return UsageError(f"checkpoint {path} is a folder; {advice}")


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and what torch says to types and sizes that it does not know
        raise RunError(f"{path} is truncated or not a safetensors file ({' '.join(str(error).split())[:200]}); copy it again") from error


def _check_archive(path: Path) -> None:
    """torch.save writes zip archives, but not the only ones; and none that is much larger than its file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # a broken one: the reader of torch decides
        return
    names = [entry.filename for entry in entries]
    parts = {part for name in names for part in name.split("/")[1:]}
    if "constants.pkl" in parts:
        raise RunError(
            f"{path} is a TorchScript archive, a program with its weights, and is not run; where you trust it, "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt') takes the weights out"
        )
    if "archive_format" in parts or "serialized_exported_program.json" in names:
        raise RunError(
            f"{path} is an exported program (torch.export) and not a checkpoint; where you trust it, "
            "torch.save(dict(torch.export.load(FILE).state_dict), 'weights.pt') takes the weights out"
        )
    if "data.pkl" not in parts:
        what = "NumPy arrays" if names and all(name.endswith(".npy") for name in names) else ", ".join(names[:3]) or "nothing"
        raise RunError(f"{path} is a zip archive of {what:.100}, not of torch.save; give a file of model.state_dict()")
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in entries)
    if claimed > max(8 * size, 1 << 26):
        raise RunError(f"{path} has {size:,} bytes and claims to hold {claimed:,}, which is not read; save model.state_dict() anew")


def _read_torch(path: Path, plain_pickle: bool) -> Any:
    broken = RunError(f"{path} is truncated or not a checkpoint; copy or download it again")
    try:
        # The unpickler reads as many bytes as a damaged length says: of a file it takes the memory first, of bytes at most what is there.
        opened = path.open("rb") if zipfile.is_zipfile(path) else io.BytesIO(path.read_bytes())
        with opened as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol and of deprecated storages: nothing that a user can change
            return torch.load(stream, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise RunError(f"{path} needs more memory than there is, or is damaged; save model.state_dict() alone") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise RunError(
                f"{path} holds objects other than weights ({found[1]}), which are not loaded because they can run code; "
                "load it where you trust it and save model.state_dict() alone"
            ) from error
        raise (_pickled(path) if plain_pickle else broken) from error
    except Exception as error:  # a broken file ends in almost any of the unpickler's and the archive reader's errors
        raise (_pickled(path) if plain_pickle else broken) from error


def _pickled(path: Path) -> RunError:
    return RunError(f"{path} was not written by torch.save but by another pickle; load it where you trust it and torch.save its weights")
