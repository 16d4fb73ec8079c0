"""torch -> ONNX: `torch.onnx.export` with a translation of the masked convolution, quietly."""

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fineprune.calibrate.steadiness import unsteadiness
from fineprune.common.copies import copied
from fineprune.common.errors import FinepruneError, RunError, UsageError
from fineprune.common.inputs import Inputs, Shape, Structured, answer, tensors
from fineprune.compressor.layers import MaskedLayer

from .flat import INPUT, OUTPUT, Flat, first
from .functions import DEPTHWISE, DOMAIN, MASKED, VERSION
from .sizes import IMAGE_DIMS, name_sizes, one_size
from .untraceable import cause, first_line, written_weight

BATCH = "batch"
TRACED_BATCH = 2
"""Samples of the trace: the tracer takes a batch of one for a constant."""
_ROUNDING = 1e-4
"""Largest difference of two equal calls, of the largest output."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What tracing found out about a network: its class, a batch of inputs, shapes of outputs by batch size, what users should know."""

    network: str
    inputs: tuple[torch.Tensor, ...]
    output_shapes: dict[int, list[tuple[int, ...]]]
    notes: tuple[str, ...]


def trace(model: nn.Module, input_shape: Shape, *, opset: int, dynamic_size: bool = False) -> tuple[Any, Traced]:
    """The ONNX graph (`onnxscript.ir.Model`) of `model` in eval mode, batch dimension symbolic, no function bodies yet.

    Structured inputs and outputs are flat there (flat.py). dynamic_size: heights and widths of images are symbolic, too, in a
    network that can be traced without.

    Weights come out with their masks applied. Raises UsageError for a model in training mode or one that does not accept
    `input_shape`, RunError for weights that are not finite, outputs that are random, or a model that torch cannot export for any batch.
    """
    _check_ready(model)
    network, notes = type(model).__name__, _converted_types(model)
    model = in_float32(model)
    _prepare_masked_layers(model)
    model, x = _callable(model, input_shape)
    shapes = _output_shapes(model, x, network)
    if written := written_weight(model, x):
        raise RunError(f"the forward of {network} writes to {written}.data, which torch cannot export; change the weights once, before")
    if (varies := unsteadiness(model, x, _ROUNDING, first(x, 1))) is not None:
        if not varies.with_batch:
            raise RunError(f"{varies.cause}, so no file can compute the same; make that depend on self.training")
        notes.append(f"{varies.cause}: the file does the same, and its outputs depend on how samples are put into batches")
    given = tuple(tensors(x.value)) if isinstance(x, Structured) else (torch.zeros_like(x),)
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                tuple(tensor[:TRACED_BATCH] for tensor in given),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=model.inputs if isinstance(model, Flat) else [INPUT],
                output_names=model.outputs() if isinstance(model, Flat) else [OUTPUT],
                dynamic_shapes=_dynamic_shapes(model, given, dynamic_size),
                custom_translation_table={torch.ops.fineprune.masked_conv2d.default: _translate},
            )
    except Exception as error:  # the exporter wraps whatever went wrong anywhere in torch
        if dynamic_size:  # for one size it was traced before
            raise one_size(network, first_line(error).rstrip(":")) from error
        raise RunError(f"torch cannot export {network}: {cause(error, model, x)}") from error
    if program is None:
        raise RunError(f"torch.onnx.export gave no graph for {network}")
    if isinstance(model, Flat):
        _named_as_in_the_network(program.model)
    if dynamic_size:
        name_sizes(program.model)
    batch = program.model.graph.inputs[0].shape[0]
    if isinstance(batch, int):
        raise fixed_batch(network, "its forward takes the batch size for a constant")
    return program.model, Traced(network=network, inputs=given, output_shapes=shapes, notes=tuple(notes))


def _named_as_in_the_network(graph: Any) -> None:
    """Weights of a network inside of `Flat` have the names that they have without it."""
    for name in [*graph.graph.initializers]:
        value = graph.graph.initializers.pop(name)
        value.name = name.removeprefix("network.")
        graph.graph.register_initializer(value)


def fixed_batch(network: str, why: str) -> RunError:
    """The error for a network whose graph holds the batch size of the trace."""
    return RunError(
        f"the graph of {network} is fixed to a batch of {TRACED_BATCH}: {why}; in its forward write x.size(0) or -1 where the batch size "
        "is meant, without int() or len(), and no loop or split over the samples"
    )


def _dynamic_shapes(model: nn.Module, given: Sequence[torch.Tensor], sizes: bool) -> dict[str, Any]:
    """The dimensions that vary of the arguments that are given, whatever those are called (also where forward takes *args)."""
    batch, free = {0: torch.export.Dim(BATCH, min=1)}, torch.export.Dim.DYNAMIC
    shapes = [{**batch, 2: free, 3: free} if sizes and tensor.dim() == IMAGE_DIMS else batch for tensor in given]
    return dict(inspect.signature(model.forward).bind(*shapes).arguments)


def _translate(x: Any, weight: Any, mask: Any, stride: Any, padding: Any, dilation: Any, groups: int, weight_mask: Any = None) -> Any:
    """torch.ops.fineprune.masked_conv2d as a node of ours; the bias, a separate addition in torch, joins it by a rule later.

    weight_mask only tells which weights are zero.
    """
    top, left = padding
    depthwise = weight.shape[1] == 1
    return _operator(DEPTHWISE if depthwise else MASKED)(
        x,
        weight,
        mask,
        strides=list(stride),
        pads=[top, left, top, left],
        dilations=list(dilation),
        group=groups,
        channels=int(weight.shape[1]) * groups,
        **({} if depthwise else {"taps": int(weight.shape[2]) * int(weight.shape[3])}),
    )


def _operator(name: str) -> Any:
    """A masked convolution without bias as something that onnxscript can call, which takes a schema."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    parameter, lists = OpSchema.FormalParameter, ("strides", "pads", "dilations")
    integers = ("group", "channels") if name == DEPTHWISE else ("group", "channels", "taps")
    schema = OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[parameter("X", "T"), parameter("W", "T"), parameter("M", "tensor(bool)")],
        outputs=[parameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[
            *(OpSchema.Attribute(attribute, OpSchema.AttrType.INTS) for attribute in lists),
            *(OpSchema.Attribute(attribute, OpSchema.AttrType.INT) for attribute in integers),
        ],
    )
    return Op(Opset(DOMAIN, VERSION), name, schema)


def in_float32(model: nn.Module) -> nn.Module:
    """A float32 copy on the CPU: the caller's weights stay as they are."""
    return copied(model).cpu().float()


def _converted_types(model: nn.Module) -> list[str]:
    others = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32}
    return [f"weights of {' and '.join(sorted(others))} are written as float32"] if others else []


def _check_ready(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"module {name}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{where} is TorchScript, whose code torch.export cannot read; give the torch.nn.Module that it was made from")
        if module.training:
            raise UsageError(f"{where} is in training mode, so BatchNorm and Dropout would be exported wrongly; call model.eval() first")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RunError(f"weight {name} is not finite (NaN or Inf); train again from a sound checkpoint before exporting")


def _prepare_masked_layers(model: nn.Module) -> None:
    for layer in model.modules():
        if not isinstance(layer, MaskedLayer):
            continue
        layer.fold_weight_masks()
        if layer.block_mask is not None:
            # The operator answers in channels-last strides; ONNX has none, and torch would decompose later pooling into gathers.
            layer.register_forward_hook(_contiguous)


def _contiguous(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.contiguous()


def _callable(model: nn.Module, input_shape: Shape) -> tuple[nn.Module, Inputs]:
    """The network as the exporter can call it, and a batch for it: flat, where its inputs or outputs are more than one tensor."""
    if isinstance(input_shape, Structured):
        flat = Flat(model, input_shape)
        return flat, flat.rows(TRACED_BATCH + 1)
    x = torch.randn(TRACED_BATCH + 1, *input_shape, generator=torch.Generator().manual_seed(0))
    outputs = _accepted(model, x)
    if isinstance(outputs, torch.Tensor):
        return model, x
    if not tensors(outputs):
        raise UsageError(f"the model returns {type(outputs).__name__}, in which no tensor is; let it return the tensors to export")
    flat = Flat(model, Structured(x, len(x), lambda network, images: network(images)))
    return flat, flat.rows(len(x))


def _accepted(model: nn.Module, x: torch.Tensor) -> Any:
    """Outputs for x[N,C,H,W]; UsageError where the model takes no such input as its one argument."""
    shape = "x".join(map(str, x.shape[1:]))
    try:
        inspect.signature(model.forward).bind(x)
    except TypeError as error:
        raise UsageError(
            f"the model does not accept input {shape} as its one argument: {error}; wrap it so that it takes the images alone"
        ) from error
    try:
        return _outputs(model, x[:TRACED_BATCH])
    except FinepruneError as error:
        raise UsageError(f"the model does not accept input {shape}: {error}") from error
    except Exception as error:  # the network's own code may raise anything
        raise UsageError(
            f"the model does not accept input {shape}: {first_line(error)}; "
            "give the input shape it was made for, and let it take any batch size"
        ) from error


def _output_shapes(model: nn.Module, x: Inputs, network: str) -> dict[int, list[tuple[int, ...]]]:
    """Of the outputs, for one sample and for all of `x`."""
    shapes = {}
    for batch in (1, len(x)):
        try:
            shapes[batch] = [tuple(output.shape) for output in tensors(_outputs(model, first(x, batch)))]
        except Exception as error:
            raise fixed_batch(network, f"a batch of {batch} ends in: {first_line(error)}") from error
    return shapes


def _outputs(model: nn.Module, x: Inputs) -> Any:
    """Whatever `model` answers to a copy of `x`, which it may change in place."""
    with torch.no_grad():
        return answer(model, x.clone())


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints, logs and warns about its own internals (also where nothing is wrong), whole graphs where something is."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
