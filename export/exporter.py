"""A trained network as an ONNX file: traced, simplified, packed, checked, written whole."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import RunError, UsageError
from ..common.files import write_bytes
from .functions import OPSETS
from .graph import Refusal

if TYPE_CHECKING:
    from torch import nn

    from .transform import LayerFacts

SCHEMA = 1
"""Version of the file layout described in README.md; raised when an older reader would misread the file."""

OPSET = 18
"""The oldest that has BitwiseAnd: what most runtimes read."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export_onnx` wrote: file, size, convolutions, nodes by type, and what the rules left alone and why."""

    path: str
    bytes: int
    opset: int
    plain: bool
    layers: tuple["LayerFacts", ...]
    nodes: dict[str, int]
    refusals: tuple[Refusal, ...]

    @property
    def masked_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that drop blocks."""
        return tuple(layer.name for layer in self.layers if layer.ffp_kept < 1)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for manifests and reports."""
        return {**asdict(self), "masked_layers": list(self.masked_layers)}


def export_onnx(
    model: "nn.Module",
    input_shape: tuple[int, int, int],
    path: Path | str,
    *,
    plain: bool = False,
    metadata: dict[str, Any] | None = None,
    opset: int = OPSET,
) -> ExportReport:
    """Write `model` (eval mode; x[N,C,H,W] -> logits; input_shape = (C,H,W)) to `path` as ONNX with a dynamic batch dimension.

    BatchNormalization is folded; convolutions that drop blocks become `fineprune::MaskedConv`, pruned weights and masks are
    stored compactly (README.md). `plain`: standard operators only, nothing packed. `metadata`: JSON-able values, stored as
    `fineprune.<key>` in the file's metadata_props. A model without masks becomes an ordinary ONNX graph either way.

    Raises UsageError for a model in training mode, an input shape or opset that does not fit; RunError for weights that are
    not finite, a model that torch cannot export, a file that cannot be written.
    """
    from .trace import trace
    from .transform import inline, layer_facts, pack, simplify

    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported; choose one of {OPSETS.start} to {OPSETS.stop - 1}")
    properties = _properties(metadata or {})
    graph = trace(model, input_shape, opset=opset)
    refusals = simplify(graph)
    layers = tuple(layer_facts(graph))
    if plain:
        inline(graph, opset=opset)
    else:
        refusals += pack(graph, opset=opset)
    properties["fineprune.layers"] = json.dumps([asdict(layer) for layer in layers])
    content = _serialize(graph, properties)
    write_bytes(path, content)
    nodes = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.graph)
    return ExportReport(
        path=str(path),
        bytes=len(content),
        opset=opset,
        plain=plain,
        layers=layers,
        nodes=dict(sorted(nodes.items())),
        refusals=tuple(refusals),
    )


def _properties(metadata: dict[str, Any]) -> dict[str, str]:
    properties = {"fineprune.version": version("fineprune"), "fineprune.schema": str(SCHEMA)}
    for key, value in metadata.items():
        name = f"fineprune.{key}"
        if name in properties or key == "layers":
            raise UsageError(f"metadata key {key!r} is written by the exporter itself; choose another name")
        try:
            properties[name] = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"metadata {key!r} cannot be stored as JSON: {error}") from error
    return properties


def _serialize(graph: Any, properties: dict[str, str]) -> bytes:
    """The file's bytes, after onnx.checker with full shape inference has passed them."""
    import onnx
    from onnxscript import ir

    graph.producer_name, graph.producer_version = "fineprune", properties["fineprune.version"]
    graph.metadata_props.clear()
    graph.metadata_props.update(properties)
    _strip(graph)
    try:
        proto = ir.serde.serialize_model(graph)
        onnx.checker.check_model(proto, full_check=True)
        return bytes(proto.SerializeToString())
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise RunError(f"the exported graph is not valid ONNX: {first}; export with plain=True and report the network") from error
    except ValueError as error:  # protobuf's own limit
        raise RunError(f"the network does not fit one ONNX file of 2 GiB: {error}; export a smaller network") from error


def _strip(graph: Any) -> None:
    """Remove the tracer's notes: stack traces with paths of this machine, as large as a small network's weights."""
    graph.graph.name, graph.graph.doc_string = "network", None
    graph.graph.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
