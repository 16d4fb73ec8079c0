"""Which convolutions of a network can carry masks, and choosing among them."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from fineprune.common.errors import UsageError, said_by
from fineprune.common.inputs import Shape, Structured, answer, told, zeros
from fineprune.ops.as_conv2d import product_of
from fineprune.ops.multiply_adds import multiply_adds, per_block

from .calls import Call, acting, is_standard, multiplies, own_class, seen

LAYER_TYPES = ("conv2d",)
"""What is masked where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class ConvSite:
    """One maskable convolution: its dotted name and its sizes for one input sample; pairs are (vertical, horizontal)."""

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    groups: int
    output_size: tuple[int, int]
    """Of its first call in a pass."""
    placements: int = 0
    """How often a kernel is multiplied with a patch, in all calls of a pass (0: once for every position of the output)."""
    weights_only: str = ""
    """Why it can carry masks of weights but none of blocks; empty where it can carry both."""
    product: str = "conv2d"
    """Which one it computes, by its name in torch."""

    def __post_init__(self) -> None:
        if not self.placements:
            object.__setattr__(self, "placements", self.positions)

    @property
    def positions(self) -> int:
        """P = oh * ow."""
        return self.output_size[0] * self.output_size[1]

    @property
    def taps(self) -> int:
        """kh * kw."""
        return self.kernel[0] * self.kernel[1]

    @property
    def filters_per_group(self) -> int:
        """Filters that read one input channel: F / groups."""
        return self.out_channels // self.groups

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[F,C/groups,kh,kw]."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def block_macs(self) -> int:
        """Multiply-adds that dropping one block saves."""
        return per_block(self.weight_shape, self.groups)

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer per sample."""
        return multiply_adds(self.weight_shape, self.placements, self.groups)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A convolution that stays dense, and why."""

    name: str
    reason: str


def find_convolutions(
    model: nn.Module, input_shape: Shape, layer_types: Collection[str] = LAYER_TYPES
) -> tuple[list[ConvSite], list[Skipped]]:
    """Run one sample of `input_shape`, zeros for (C,H,W), and sort the convolutions into maskable and left dense, in order of execution.

    layer_types: by the names of their products in torch, those that may be masked; "linear" brings linear layers, too.
    """
    kinds = (_ConvNd, nn.Linear) if "linear" in layer_types else (_ConvNd,)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    watched = {name: _Watched(layer) for name, layer in layers.items() if product_of(type(layer)) and not replaced(layer)}
    order: list[str] = []
    handles = [module.register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name, module in layers.items()]
    try:
        with acting(watched.values()):
            probe(model, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    sites, skipped = [], []
    for name in dict.fromkeys([*order, *layers]):
        if reason := _why_not(layers[name], name in order, watched.get(name), layer_types):
            skipped.append(Skipped(name=name, reason=reason))
        else:
            sites.append(watched[name].site(name))
    if "linear" in layer_types:
        reason = "its projections of queries, keys and values are no layers"
        skipped += [Skipped(name=name, reason=reason) for name, module in model.named_modules() if _projects(module)]
    return sites, skipped


def _projects(module: nn.Module) -> bool:
    """Whether torch's attention has weights that are no layer's."""
    names = ("in_proj_weight", "q_proj_weight")
    return isinstance(module, nn.MultiheadAttention) and any(module._parameters.get(name) is not None for name in names)


class _Watched:
    """A layer whose products are looked at in one pass of one sample."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.calls = layer, list[tuple[Call, torch.Tensor]]()
        self.forward = seen(layer, layer.forward, self._note)

    def _note(self, call: Call) -> torch.Tensor:
        y = call.output()
        self.calls.append((call, y))
        return y

    def site(self, name: str) -> ConvSite:
        """Of a layer that can carry masks."""
        first, y = self.calls[0]
        twice = f"it runs {len(self.calls)} times in one forward pass, and a mask of blocks belongs to one place" if self.calls[1:] else ""
        return ConvSite(
            name=name,
            in_channels=first.weight.shape[1] * first.conv.groups,  # a lazy layer that was loaded and never called says 0 itself
            out_channels=first.weight.shape[0],
            kernel=first.kernel,
            groups=first.conv.groups,
            output_size=(y.shape[2], y.shape[3]),
            placements=sum(call.placements or y.numel() // y.shape[1] for call, y in self.calls),
            weights_only=weights_only(self.layer) or twice,
            product=multiplies(self.layer).name,
        )


def probe(model: nn.Module, input_shape: Shape) -> Any:
    """The model's outputs for one sample, in eval mode without gradients; UsageError when it does not accept the shape."""
    try:
        with evaluating(model), torch.no_grad():
            return answer(model, zeros(input_shape, model))
    except Exception as error:  # the network's own code may raise anything
        if isinstance(input_shape, Structured):
            raise UsageError(f"forward failed on one sample, {told(input_shape)}: {said_by(error)}") from error
        shape = "x".join(map(str, input_shape))
        why = f"the network does not accept an input of shape {shape}: {said_by(error)}"
        raise UsageError(f"{why}; give its input as --input CxHxW") from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for the length of a with-block; afterwards every module has its own training flag again.

    Float32 products are those of IEEE 754 there: with TF32, which torch's convolutions take on CUDA, the kernels of equal networks differ
    by 1e-3 (0.2 % of the largest output on an H200), more than what is told apart here.
    """
    flags = [(module, module.training) for module in model.modules()]
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    precisions = [(backend, backend.fp32_precision) for backend in backends]
    model.eval()
    try:
        for backend, _ in precisions:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for backend, precision in precisions:
            backend.fp32_precision = precision


def _why_not(layer: nn.Module, entered: bool, watched: _Watched | None, layer_types: Collection[str]) -> str | None:
    product = product_of(type(layer))
    if product is None:
        return f"no masks are known for {type(layer).__name__}"
    if product.name not in layer_types:
        return f"{type(layer).__name__} is left as it is unless its type, {product.name}, is asked for (layer_types)"
    if reason := replaced(layer):
        return reason
    if not entered or watched is None:
        return "the forward pass does not call it as a module"
    if not watched.calls:
        return f"the forward of {type(layer).__name__} computes no {product.name} with its weight"
    if any(call.x.dim() != 4 for call, _ in watched.calls):
        return "its input has no batch axis"
    if not parametrize.is_parametrized(layer) and ("weight" not in layer._parameters or "weight" in vars(layer)):
        return "its weight is computed by a hook (weight_norm, torch.nn.utils.prune); remove that first"
    return None


def replaced(layer: nn.Module) -> str | None:
    """Why masks cannot act in a layer whose forward was exchanged on the module itself; None where they can.

    Hooks are no reason: what they do to input and output, they do around the masks too.
    """
    changed = next((name for name in ("forward", "_conv_forward") if name in vars(layer)), None)
    return changed and f"its {changed} is replaced on the module itself"


def weights_only(layer: nn.Module) -> str:
    """Why a layer cannot carry masks of blocks, where it can carry those of weights; empty where it can."""
    kind = own_class(layer)
    if not issubclass(kind, nn.Conv2d):
        return f"{kind.__name__} is not a 2-D convolution"
    return "" if is_standard(kind) else f"{kind.__name__} replaces the forward of Conv2d"


def select_sites(sites: Sequence[ConvSite], *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[ConvSite]:
    """The sites that match any glob of `include` (all, when empty) and none of `exclude`; UsageError for a glob without a match."""
    for pattern in [*include, *exclude]:
        if not any(fnmatchcase(site.name, pattern) for site in sites):
            raise UsageError(f"the pattern {pattern!r} matches no convolution; they are: {', '.join(site.name for site in sites)}")
    return [
        site
        for site in sites
        if (not include or any(fnmatchcase(site.name, p) for p in include)) and not any(fnmatchcase(site.name, p) for p in exclude)
    ]
