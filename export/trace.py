"""torch -> ONNX: `torch.onnx.export` with a translation of the masked convolution, quietly."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import nn

from ..common.errors import FinepruneError, RunError, UsageError
from ..compressor.layers import MaskedConv2d
from .functions import DEPTHWISE, DOMAIN, MASKED, VERSION

INPUT, OUTPUT, BATCH = "input", "logits", "batch"


def trace(model: nn.Module, input_shape: tuple[int, int, int], *, opset: int) -> Any:
    """The ONNX graph (`onnxscript.ir.Model`) of `model` in eval mode, batch dimension symbolic, no function bodies yet.

    Weights come out with their FWP mask applied. Raises UsageError for a model in training mode or one that does not accept
    `input_shape`, RunError for weights that are not finite or a model that torch cannot export.
    """
    _check_ready(model)
    model = _copy(model)
    _prepare_masked_layers(model)
    # Two samples, because the tracer takes a batch of one for a constant.
    sample = torch.zeros(2, *input_shape)
    _check_accepts(model, sample)
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                (sample,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},),
                custom_translation_table={torch.ops.fineprune.masked_conv2d.default: _translate},
            )
    except Exception as error:  # the exporter wraps whatever went wrong anywhere in torch
        raise RunError(
            f"torch cannot export {type(model).__name__} with a dynamic batch dimension: {_first_line(error)}; "
            "its forward must be traceable by torch.export and treat the batch size as a variable"
        ) from error
    if program is None:
        raise RunError(f"torch.onnx.export gave no graph for {type(model).__name__}")
    return program.model


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


def _copy(model: nn.Module) -> nn.Module:
    """A float32 copy on the CPU: applying the masks must not touch the caller's weights."""
    try:
        return copy.deepcopy(model).cpu().float()
    except RuntimeError as error:  # torch.nn.utils.weight_norm and its like keep tensors that know their history
        raise RunError(f"cannot copy {type(model).__name__}: {_first_line(error)}; remove its weight hooks before exporting") from error


def _check_ready(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            where = f"module {name}" if name else "the model"
            raise UsageError(f"{where} is in training mode, so BatchNorm and Dropout would be exported wrongly; call model.eval() first")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RunError(f"weight {name} is not finite (NaN or Inf); train again from a sound checkpoint before exporting")


def _prepare_masked_layers(model: nn.Module) -> None:
    for layer in model.modules():
        if not isinstance(layer, MaskedConv2d):
            continue
        if layer.fwp_mask is not None:
            # A parameter of its own: tied layers may carry different masks.
            layer.weight = nn.Parameter(layer.masked_weight().detach(), requires_grad=False)
            layer.fwp_mask = None
        # The operator answers in channels-last strides; ONNX has none, and torch would decompose later pooling into gathers.
        layer.register_forward_hook(_contiguous)


def _contiguous(layer: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.contiguous()


def _check_accepts(model: nn.Module, sample: torch.Tensor) -> None:
    shape = "x".join(map(str, sample.shape[1:]))
    try:
        with torch.no_grad():
            output = model(sample)
    except FinepruneError as error:
        raise UsageError(f"the model does not accept input {shape}: {error}") from error
    except Exception as error:  # the network's own code may raise anything
        raise UsageError(f"the model does not accept input {shape}: {_first_line(error)}; give the input shape it was made for") from error
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"the model returns {type(output).__name__}, not one tensor of logits; wrap it so that it returns the tensor to export"
        )


def _first_line(error: BaseException) -> str:
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line for line in str(root).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(root).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints, logs and warns about its own internals (also where nothing is wrong)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
