"""Multiply-adds of a network per sample, exact under masks, in two conventions (methods.md section 3).

`macs` counts the multiply-adds of convolutions, linear layers and functional products; bias and BatchNorm excluded; FLOPs = 2*MACs.

    conv  k^2 * Cin/groups * Cout * Ho * Wo        linear  in * out
    masked conv  sum_c |M_c| * nnz(Wmask[:,c])      (Wmask[:,c] over the filters of c's group)

`thesis_ops` is the convention that reproduces every baseline figure of the source: the MACs above plus one operation per output
for a bias, two per element for BatchNorm, one per element for activation modules, one per *input* element for pooling modules.
Residual additions and whatever is called as a function are not counted. A mask reduces the convolution's term alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from fineprune.calibrate.calls import acting, filters_of, groups_of, readers
from fineprune.calibrate.convolutions import evaluating
from fineprune.common.errors import FinepruneError, UsageError, said_by
from fineprune.common.inputs import Shape, Structured, answer, told, zeros
from fineprune.ops.multiply_adds import multiply_adds

from .layers import MaskedLayer
from .masks import KINDS, MaskKind
from .products import FORMULAS, Uncounted

FUNCTIONAL = "(functional)"
"""Name of the row that holds multiply-adds done outside convolution and linear modules (attention, F.conv2d, products, Bilinear)."""

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_COUNTED = (_ConvNd, nn.Linear, _BatchNorm, *_ACTIVATIONS, *_POOLS)


@dataclass(frozen=True, kw_only=True)
class LayerMacs:
    """Counts of one layer over all its calls for one sample; shapes are without the batch axis and of the last call."""

    name: str
    kind: str
    """conv1d, conv2d, conv3d, conv_transpose2d, ..., linear, batchnorm, activation, pool or functional."""
    macs_dense: int = 0
    macs: int = 0
    thesis_ops_dense: int = 0
    thesis_ops: int = 0
    macs_zero: int = 0
    """Of `macs`: with weights that are exactly zero though no mask drops them. They are counted, but dropping them saves no work."""
    weights: int = 0
    weights_kept: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    kept: Mapping[str, float] = field(default_factory=dict)
    """By kind of mask, the kept fraction of what it masks; kinds that the layer does not carry are left out."""
    calls: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain values: NAME_kept for every kind of mask, None without one."""
        facts: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "kept":
                facts |= {f"{kind.name}_kept": value.get(kind.name) for kind in KINDS}
            else:
                facts[f.name] = list(value) if isinstance(value, tuple) else value
        return facts


@dataclass(frozen=True, kw_only=True)
class MacReport:
    """Counts of a network for one sample of `input_shape` (no batch axis); () where inputs are structured."""

    input_shape: tuple[int, ...]
    layers: tuple[LayerMacs, ...]
    """In order of first call; the row "(functional)" comes last where there is one. The totals are their sums."""
    parameters: int
    uncounted: tuple[str, ...] = ()
    """What has multiply-adds that cannot be counted: recurrent layers (one fused operator each), "MODULE: OPERATOR" (fft, custom ones)."""

    @property
    def macs(self) -> int:
        """Multiply-adds that remain under the masks."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_dense(self) -> int:
        """Multiply-adds without masks."""
        return sum(layer.macs_dense for layer in self.layers)

    @property
    def macs_zero(self) -> int:
        """Of the remaining multiply-adds, those with weights that are exactly zero though no mask drops them."""
        return sum(layer.macs_zero for layer in self.layers)

    def pruned(self, kinds: Sequence[MaskKind] = KINDS) -> dict[str, float]:
        """By kind of mask, the fraction of multiply-adds that it pruned of what the kinds before it left: of the 2-D convolutions, and of
        other layers that carry masks. kinds: all of them, in the order in which they were pruned, which is also that of the result.
        """
        layers = [layer for layer in self.layers if layer.kind == "conv2d" or layer.kept]
        before: float = sum(layer.macs_dense for layer in layers)
        kept = [float(layer.macs_dense) for layer in layers]
        pruned = {}
        for kind in kinds:
            kept = [macs * layer.kept.get(kind.name, 1.0) for macs, layer in zip(kept, layers, strict=True)]
            left = sum((layer.macs for layer in layers), 0) if kind is kinds[-1] else sum(kept, 0.0)  # the last one exactly
            pruned[kind.name] = 1 - left / max(before, 1)
            before = left
        return pruned

    @property
    def conv_macs(self) -> int:
        """Remaining multiply-adds of the convolutions."""
        return sum(layer.macs for layer in self.layers if layer.kind.startswith("conv"))

    @property
    def conv_macs_dense(self) -> int:
        """Multiply-adds of the convolutions without masks."""
        return sum(layer.macs_dense for layer in self.layers if layer.kind.startswith("conv"))

    @property
    def thesis_ops(self) -> int:
        """Operations in the source's convention, the convolution terms under their masks."""
        return sum(layer.thesis_ops for layer in self.layers)

    @property
    def thesis_ops_dense(self) -> int:
        """Operations in the source's convention without masks: the baseline figures."""
        return sum(layer.thesis_ops_dense for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Totals and one object per layer; counts are whole numbers, not millions."""
        return {
            "input_shape": list(self.input_shape),
            "parameters": self.parameters,
            "macs": self.macs,
            "macs_dense": self.macs_dense,
            "macs_zero": self.macs_zero,
            "conv_macs": self.conv_macs,
            "conv_macs_dense": self.conv_macs_dense,
            "flops": 2 * self.macs,
            "flops_dense": 2 * self.macs_dense,
            "thesis_ops": self.thesis_ops,
            "thesis_ops_dense": self.thesis_ops_dense,
            "uncounted": list(self.uncounted),
            "layers": [layer.to_json() for layer in self.layers],
        }


def count_macs(model: nn.Module, input_shape: Shape) -> MacReport:
    """Count `model` on one sample of `input_shape`, zeros for (C,H,W), on the model's own device, in eval mode; it is left as it was.

    Modules called several times count each time. UsageError where the model does not accept the shape: it names the layer.
    """
    shape = () if isinstance(input_shape, Structured) else tuple(input_shape)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)
    if not whole or not (shape or isinstance(input_shape, Structured)):
        raise UsageError(f"an input shape is positive whole numbers such as 3x32x32, got {shape}")
    tally = _Tally(model)
    with ExitStack() as stack:
        in_its_modules = evaluating(model), torch.no_grad(), _unfused_attention(), acting(readers(model))
        for context in (*in_its_modules, tally.hooks(), tally.uncounted, tally.flops):
            stack.enter_context(context)
        try:
            answer(model, zeros(input_shape, model))
        except Exception as error:  # the network's own code may raise anything
            raise UsageError(_misfit(input_shape, tally.running, error)) from error
    return MacReport(
        input_shape=shape,
        layers=(*tally.rows.values(), *tally.functional()),
        parameters=sum(p.numel() for p in model.parameters()),
        uncounted=(*tally.recurrent, *(f"{where or FUNCTIONAL}: {operator}" for where, operator in tally.uncounted.seen)),
    )


@dataclass
class _Tally:
    """Collects rows while the model runs; `flops` sees every product, and what ran inside counted modules is taken off again."""

    model: nn.Module
    rows: dict[str, LayerMacs] = field(default_factory=dict)
    running: list[tuple[str, str]] = field(default_factory=list)
    """Modules entered and not left, with what they were given: the last one is where a misfit arose."""
    flops: FlopCounterMode = field(default_factory=lambda: FlopCounterMode(display=False, custom_mapping=FORMULAS))
    attributed_flops: int = 0
    entered: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recurrent = [name for name, module in self.model.named_modules() if isinstance(module, nn.RNNBase)]
        self.uncounted = Uncounted(self.flops.flop_registry, self._where)

    def _where(self) -> str | None:
        """The module that runs; None in one that is named as a whole."""
        name = self.running[-1][0] if self.running else ""
        return None if name in self.recurrent else name

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hooks on every module of the model, removed on leaving."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            # Prepended: a hook of the network's own may change the output, of which the layer computed the first form.
            handles.append(module.register_forward_hook(self._leave(name), prepend=True, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def functional(self) -> list[LayerMacs]:
        """The row of multiply-adds outside counted modules, if there are any; thesis_ops leaves them out by its rules."""
        macs = (self.flops.get_total_flops() - self.attributed_flops) // 2
        return [LayerMacs(name=FUNCTIONAL, kind="functional", macs_dense=macs, macs=macs)] if macs else []

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.running.append((name, f"{type(module).__name__} given {_shapes(args, kwargs)}"))
            if isinstance(module, _COUNTED):
                self.entered.append(self.flops.get_total_flops())

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            if isinstance(module, _COUNTED):
                before = self.entered.pop()
                if not self.entered:  # a counted module inside another one is part of the outer one's products
                    self.attributed_flops += self.flops.get_total_flops() - before
                row = _row(name, module, _first_tensor([*args, *kwargs.values()]), _first_tensor([output]))
                self.rows[name] = _add(self.rows[name], row) if name in self.rows else row
            self.running.pop()

        return hook


def _row(name: str, module: nn.Module, x: Tensor, y: Tensor) -> LayerMacs:
    """Counts of one call x -> y, both with a batch axis."""
    facts: dict[str, Any] = {"name": name, "input_shape": tuple(x.shape[1:]), "output_shape": tuple(y.shape[1:])}
    if isinstance(module, _ConvNd):
        transposed = isinstance(module, _ConvTransposeNd)  # spends one kernel per input element
        at = x.numel() // module.in_channels if transposed else y.numel() // module.out_channels
        return _product_row(facts, module, at, y)
    if isinstance(module, nn.Linear):
        return _product_row(facts, module, y.numel() // max(module.out_features, 1), y)
    if isinstance(module, _BatchNorm):
        kind, ops = "batchnorm", x.numel() * (2 if module.affine else 1)
    elif isinstance(module, _POOLS):
        kind, ops = "pool", x.numel()
    else:
        kind, ops = "activation", y.numel()
    return LayerMacs(kind=kind, thesis_ops_dense=ops, thesis_ops=ops, **facts)


def _product_row(facts: dict[str, Any], layer: _ConvNd | nn.Linear, placements: int, y: Tensor) -> LayerMacs:
    """Of a layer whose kernels are placed so often, which gives y."""
    weights = layer.weight.numel()
    bias = y.numel() if layer.bias is not None else 0
    macs_dense = weights * placements
    macs, macs_zero, kept = macs_dense, _zeros(layer.weight) * placements, weights
    masks: dict[str, Tensor] = {}
    if isinstance(layer, MaskedLayer):
        masks, mask, zero = layer.masks, layer.weight_mask, filters_of(layer, layer.weight) == 0
        macs, macs_zero = (
            len(y)
            * multiply_adds(zero.shape, placements // max(len(y), 1), groups_of(layer), blocks=_array(layer.block_mask), weights=_array(of))
            for of in (mask, zero if mask is None else zero & mask)
        )
        kept = weights if mask is None else int(mask.sum())
    return LayerMacs(
        kind="linear" if isinstance(layer, nn.Linear) else _convolution(layer),
        macs_dense=macs_dense,
        macs=macs,
        macs_zero=macs_zero,
        thesis_ops_dense=macs_dense + bias,
        thesis_ops=macs + bias,
        weights=weights,
        weights_kept=kept,
        kept={name: int(mask.sum()) / mask.numel() for name, mask in masks.items()},
        **facts,
    )


def _convolution(layer: _ConvNd) -> str:
    return f"conv{'_transpose' if isinstance(layer, _ConvTransposeNd) else ''}{layer.weight.dim() - 2}d"


def _add(row: LayerMacs, call: LayerMacs) -> LayerMacs:
    """One more call of the same layer."""
    counts = ("macs_dense", "macs", "macs_zero", "thesis_ops_dense", "thesis_ops", "calls")
    return replace(call, **{count: getattr(row, count) + getattr(call, count) for count in counts})


def _array(mask: Tensor | None) -> NDArray | None:
    return None if mask is None else mask.cpu().numpy()


def _zeros(weight: Tensor) -> int:
    """How many weights are exactly zero (none, where there are only shapes)."""
    return 0 if weight.is_meta else weight.numel() - int(weight.count_nonzero())


def _first_tensor(values: Iterable[Any]) -> Tensor:
    """The first tensor of nested arguments, as layers are given it."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, list | tuple):
            found = _first_tensor(value)
            if found.numel():
                return found
    return torch.empty(0)


def _shapes(args: tuple, kwargs: dict[str, Any]) -> str:
    x = _first_tensor([*args, *kwargs.values()])
    return "x".join(map(str, x.shape[1:])) or "no tensor"


def _misfit(shape: Shape, running: list[tuple[str, str]], error: Exception) -> str:
    text = str(error) if isinstance(error, FinepruneError) else said_by(error)
    where = f"layer {running[-1][0]!r} ({running[-1][1]})" if running and running[-1][0] else "its forward function"
    if isinstance(shape, Structured):
        return f"forward failed on one sample, {told(shape)}: {where} failed: {text}"
    given = "x".join(map(str, shape))
    return f"the model does not accept an input of {given}: {where} failed: {text}; it gets one tensor: give the shape it was made for"


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Fused attention hides its products from the counter; the plain one computes the same."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
