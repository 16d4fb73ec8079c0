"""The page of one bundle."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fineprune.common.files import write_bytes
from fineprune.compressor.bundle import Bundle

from .accuracy import accuracy, training
from .environment import environment
from .front import front
from .headline import headline
from .latency import latency
from .layers import layers
from .markup import page
from .masks import masks
from .sensitivity import sensitivity
from .sources import Sources

SECTIONS = (headline, latency, accuracy, layers, masks, training, sensitivity, front, environment)
"""In the order of the page; each gives markup, empty where the sources have nothing for it."""


def write_report(
    bundle: Bundle | Path | str,
    path: Path | str,
    *,
    bench: Mapping[str, Any] | Path | str | None = None,
    int8: dict[str, Any] | None = None,
    onnx: Sequence[Path | str] = (),
    statistics: Path | str | None = None,
    sensitivity: Mapping[str, Any] | Path | str | None = None,
    front: Mapping[str, Any] | Path | str | None = None,
) -> None:
    """Write the page of a bundle to `path`, with all that is given beside it.

    bench: what `fineprune bench --json` printed, or a file of it; with --layers, times of layers are shown, too. int8: the facts of an
    int8 export. onnx: exported files of the network, whose sizes are shown, and what int8 cost where an export left that beside its file.
    statistics: a folder of `fineprune calibrate`, shown as maps. sensitivity, front: what the commands of these names wrote, or files of
    it. UsageError for a file that is not there, RunError for one of another form.
    """
    given: dict[str, Any] = {"bench": bench, "int8": int8, "onnx": onnx, "statistics": statistics}
    sources = Sources.gathered(bundle, **given, sensitivity=sensitivity, front=front)
    write_bytes(path, page(f"{sources.name}, compressed", (section(sources) for section in SECTIONS)))
