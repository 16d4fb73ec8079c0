"""Other runtimes that a benchmark sets beside ours: OpenVINO, MNN and ncnn (extra `bench`), ONNX Runtime and OpenVINO in int8."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fineprune.common.errors import said_by

if TYPE_CHECKING:
    from ..runtimes import Runtime


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A runtime of a dense ONNX file, the packages that it needs, and how to make it."""

    name: str
    packages: tuple[str, ...]
    make: Callable[[Path, NDArray[np.float32]], "Runtime"]
    """(dense ONNX file, samples[N,C,H,W]) -> runtime"""

    def missing(self) -> tuple[str, ...]:
        """Packages that are not installed."""
        return tuple(name for name in self.packages if importlib.util.find_spec(name) is None)


def _openvino(path: Path, samples: NDArray[np.float32]) -> "Runtime":
    from .openvino import OpenVinoRuntime

    return OpenVinoRuntime("openvino dense", path)


def _mnn(path: Path, samples: NDArray[np.float32]) -> "Runtime":
    from .mnn import MnnRuntime

    return MnnRuntime("MNN dense", path)


def _ncnn(path: Path, samples: NDArray[np.float32]) -> "Runtime":
    from .ncnn import NcnnRuntime

    return NcnnRuntime("ncnn dense", path, samples.shape[1:])


def _int8(path: Path, samples: NDArray[np.float32]) -> "Runtime":
    from .int8 import Int8Runtime

    return Int8Runtime("onnxruntime int8", path, samples)


def _openvino_int8(path: Path, samples: NDArray[np.float32]) -> "Runtime":
    from .int8 import Int8Runtime
    from .openvino import OpenVinoRuntime

    return Int8Runtime("openvino int8", path, samples, OpenVinoRuntime)


PEERS = (
    Peer(name="openvino", packages=("openvino",), make=_openvino),
    Peer(name="MNN", packages=("MNN",), make=_mnn),
    Peer(name="ncnn", packages=("ncnn", "pnnx"), make=_ncnn),
    Peer(name="int8", packages=(), make=_int8),
    Peer(name="openvino-int8", packages=("openvino",), make=_openvino_int8),
)


def installed_peers(path: Path, samples: NDArray[np.float32], names: Sequence[str] | None = None) -> tuple[list["Runtime"], list[str]]:
    """Runtimes of the dense file `path` for the peers called `names` (default: all) that are installed, and a line for each that is not.

    samples[N,C,H,W] give the input shape and calibrate int8.
    """
    chosen = [peer for peer in PEERS if names is None or peer.name in names]
    absent = [peer for peer in chosen if peer.missing()]
    lines = [
        f"{peer.name} is left out: {' and '.join(peer.missing())} not installed; pip install 'fineprune[bench]' adds it" for peer in absent
    ]
    return [peer.make(path, samples) for peer in chosen if peer not in absent], lines


def usable_peers(path: Path, samples: NDArray[np.float32], names: Sequence[str] | None = None) -> tuple[list["Runtime"], list[str]]:
    """`installed_peers` without those that cannot convert or run this network; a line says why."""
    runtimes, lines = installed_peers(path, samples, names)
    usable = []
    for runtime in runtimes:
        try:
            runtime.load(1)
            runtime.run(samples[:1])
            usable.append(runtime)
        except Exception as error:  # foreign code may raise anything
            lines.append(f"{runtime.name} is left out: {said_by(error)}")
        finally:
            runtime.close()
    return usable, lines
