"""A trained network as an ONNX file: traced, simplified, packed, checked, written whole."""

import gc
import json
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune.common.errors import RunError, UsageError
from fineprune.common.files import atomic_path
from fineprune.common.inputs import Shape

from .functions import MASKED_CONVS, OPSETS
from .graph import Refusal

if TYPE_CHECKING:
    from torch import nn

    from .int8.quantiser import Quantiser
    from .trace import Traced
    from .transform import LayerFacts

SCHEMA = 1
"""Version of the file layout described in README.md; raised when an older reader would misread the file."""

OPSET = 18
"""The oldest that has BitwiseAnd: what most runtimes read."""
INT8_OPSET = 19
"""The oldest whose DequantizeLinear onnx.reference has."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export_onnx` wrote: file, size, convolutions, nodes by type, what the rules left alone and why, and what users should know."""

    path: str
    bytes: int
    opset: int
    plain: bool
    layers: tuple["LayerFacts", ...]
    nodes: dict[str, int]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...] = ()

    @property
    def masked_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that drop blocks."""
        return tuple(layer.name for layer in self.layers if layer.op in MASKED_CONVS)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for manifests and reports."""
        return {**asdict(self), "layers": [layer.to_json() for layer in self.layers], "masked_layers": list(self.masked_layers)}


def export_onnx(
    model: "nn.Module",
    input_shape: Shape,
    path: Path | str,
    *,
    plain: bool = False,
    metadata: dict[str, Any] | None = None,
    opset: int | None = None,
    int8: "Quantiser | None" = None,
    dynamic_size: bool = False,
) -> ExportReport:
    """Write `model` (eval mode; x[N,C,H,W] -> logits; input_shape = (C,H,W)) to `path` as ONNX with a dynamic batch dimension.

    A `Structured` sample in the place of input_shape gives the file an input for each of its tensors; each tensor of the outputs is an
    output (flat.py).

    BatchNormalization is folded; convolutions that drop blocks become `fineprune::MaskedConv`, pruned weights and masks are
    stored compactly (README.md). `plain`: standard operators only, nothing packed. `metadata`: JSON-able values, stored as
    `fineprune.<key>` in the file's metadata_props. A model without masks becomes an ordinary ONNX graph either way. `int8`: what puts the
    graph on eight-bit grids (README.md); its settings and what it left in float32 become `fineprune.int8`. `dynamic_size`: height and width
    of images are free, too; layers are counted at `input_shape`.

    Raises UsageError for a model in training mode, an input shape or opset that does not fit, masks of blocks with `dynamic_size`;
    RunError for weights that are not finite, a model that torch cannot export, whose outputs are random or whose graph is fixed to one
    batch size, a file that ONNX Runtime cannot run or that cannot be written.
    """
    from .transform import inline, pack

    opset = _supported((OPSET if int8 is None else INT8_OPSET) if opset is None else opset)
    properties = _properties(metadata or {})
    graph, traced, refusals, layers = _traced(model, input_shape, opset, dynamic_size)
    if int8 is not None:
        int8.apply(graph, opset)
        properties["fineprune.int8"] = json.dumps(int8.to_json())
    if plain:
        inline(graph, opset=opset)
    else:
        refusals += pack(graph, opset=opset)
    properties["fineprune.layers"] = json.dumps([layer.to_json() for layer in layers])
    nodes = _nodes(graph)
    content = _serialize(graph, properties)
    del graph
    gc.collect()  # its nodes refer to each other and hold the weights, which the checks load once more
    size = len(content)
    with atomic_path(path) as unchecked:
        unchecked.write_bytes(content)
        del content
        _check(unchecked, path, traced)
    return ExportReport(
        path=str(path),
        bytes=size,
        opset=opset,
        plain=plain,
        layers=layers,
        nodes=nodes,
        refusals=tuple(refusals),
        notes=traced.notes,
    )


def _traced(
    model: "nn.Module", input_shape: Shape, opset: int, dynamic_size: bool
) -> tuple[Any, "Traced", list[Refusal], tuple["LayerFacts", ...]]:
    """The simplified graph and what is known of it; layers are counted in a graph of one size."""
    from .sizes import check_any_size
    from .trace import in_float32, trace
    from .transform import layer_facts, simplify

    if dynamic_size:
        check_any_size(in_float32(model), input_shape)
    graph, traced = trace(model, input_shape, opset=opset)
    refusals = simplify(graph)
    layers = tuple(layer_facts(graph))
    if dynamic_size:
        graph, traced = trace(model, input_shape, opset=opset, dynamic_size=True)
        refusals = simplify(graph)
    return graph, traced, refusals, layers


def _nodes(graph: Any) -> dict[str, int]:
    """How many nodes of each type, in alphabetical order."""
    return dict(sorted(Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.graph).items()))


def _supported(opset: int) -> int:
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported; choose one of {OPSETS.start} to {OPSETS.stop - 1}")
    return opset


def _properties(metadata: dict[str, Any]) -> dict[str, str]:
    properties = {"fineprune.version": version("fineprune"), "fineprune.schema": str(SCHEMA)}
    for key, value in metadata.items():
        name = f"fineprune.{key}"
        if name in properties or key in ("layers", "int8"):
            raise UsageError(f"metadata key {key!r} is written by the exporter itself; choose another name")
        try:
            properties[name] = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
            f"{name}{properties[name]}".encode()  # file names that are no UTF-8 come as lone surrogates
        except (TypeError, ValueError) as error:
            raise UsageError(f"metadata {key!r} cannot be stored as JSON: {error}") from error
    return properties


def _serialize(graph: Any, properties: dict[str, str]) -> bytes:
    """The file's bytes."""
    from onnxscript import ir

    graph.producer_name, graph.producer_version = "fineprune", properties["fineprune.version"]
    graph.metadata_props.clear()
    graph.metadata_props.update(properties)
    _strip(graph)
    try:
        proto = ir.serde.serialize_model(graph)
        _drop_types_of_initializers(proto.graph)
        return bytes(proto.SerializeToString())
    except ValueError as error:  # protobuf's own limit
        raise RunError(f"the network does not fit one ONNX file of 2 GiB: {error}; export a smaller network") from error


def _check(written: Path, path: Path | str, traced: "Traced") -> None:
    """RunError where the file `written` is not valid or does not run; it names `path`, which was asked for and is still there after it."""
    try:
        _check_valid(written)
        _check_runs(written, traced)
    except RunError as error:
        raise RunError(str(error).replace(str(written), str(path))) from error


def _check_valid(path: Path) -> None:
    """onnx.checker with full shape inference; by file, since it copies a model in memory twice more."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise RunError(f"the exported graph is not valid ONNX: {first}; export with plain=True and report the network") from error


def _check_runs(path: Path, traced: "Traced") -> None:
    """A graph whose input takes any batch may still hold the batch size of the trace as a number (in a Reshape, in a tensor added)."""
    from .runtimes import OnnxRuntime
    from .trace import TRACED_BATCH, fixed_batch

    def shapes_for(batch: int) -> list[tuple[int, ...]]:
        return [output.shape for output in runtime.outputs(*(tensor[:batch].numpy() for tensor in traced.inputs))]

    runtime = OnnxRuntime("onnxruntime", path)
    runtime.load(1)
    try:
        for batch, expected in traced.output_shapes.items():
            try:
                shapes = shapes_for(batch)
            except RunError as error:
                shapes_for(TRACED_BATCH)  # if not even that runs, this is its error
                raise fixed_batch(traced.network, str(error)) from error
            # squeeze() takes the batch axis away from a single sample in PyTorch; the file keeps it.
            for shape, right in zip(shapes, expected, strict=True):
                if [n for n in shape if n != 1] != [n for n in right if n != 1]:
                    raise fixed_batch(traced.network, f"a batch of {batch} gives outputs of shape {shape}, in PyTorch {right}")
    finally:
        runtime.close()


def _drop_types_of_initializers(graph: Any) -> None:
    """An initializer says its own type and shape; tools that give it others (quantisers) trip over a value_info that says the old ones."""
    initializers = {tensor.name for tensor in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in initializers]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _drop_types_of_initializers(inner)


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
