"""Which convolutions of a network can carry masks, and choosing among them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from fineprune.common.errors import UsageError
from fineprune.ops.multiply_adds import multiply_adds, per_block


@dataclass(frozen=True, kw_only=True)
class ConvSite:
    """One maskable convolution: its dotted name and its sizes for one input sample; pairs are (vertical, horizontal)."""

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    groups: int
    output_size: tuple[int, int]

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
    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def block_macs(self) -> int:
        """Multiply-adds that dropping one block saves."""
        return per_block(self._weight_shape, self.groups)

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer per sample."""
        return multiply_adds(self._weight_shape, self.positions, self.groups)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A convolution that stays dense, and why."""

    name: str
    reason: str


def find_convolutions(model: nn.Module, input_shape: Sequence[int]) -> tuple[list[ConvSite], list[Skipped]]:
    """Run one zero sample of `input_shape` (C,H,W) and sort the convolutions into maskable and left dense, in order of execution."""
    shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}

    def record(name: str) -> Callable[[nn.Module, tuple, dict[str, torch.Tensor], torch.Tensor], None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, torch.Tensor], output: torch.Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            shapes.setdefault(name, []).append((tuple(x.shape), tuple(output.shape)))

        return hook

    # Prepended: the shapes are those of the convolution, before a hook of the network's own changes its output.
    handles = [module.register_forward_hook(record(name), prepend=True, with_kwargs=True) for name, module in convs.items()]
    try:
        probe(model, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    sites, skipped = [], []
    for name in [*shapes, *(name for name in convs if name not in shapes)]:
        conv, calls = convs[name], shapes.get(name, [])
        reason = _why_not(conv, calls)
        if reason:
            skipped.append(Skipped(name=name, reason=reason))
        else:
            sites.append(_site(name, conv, calls[0][1]))
    return sites, skipped


def probe(model: nn.Module, input_shape: Sequence[int]) -> torch.Tensor:
    """The model's output for one zero sample, in eval mode without gradients; UsageError when it does not accept the shape."""
    first = next(model.parameters(), None)
    try:
        with evaluating(model), torch.no_grad():
            zeros = torch.zeros(
                1, *input_shape, device=None if first is None else first.device, dtype=None if first is None else first.dtype
            )
            return model(zeros)
    except Exception as error:  # the network's own code may raise anything
        shape = "x".join(map(str, input_shape))
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the network does not accept an input of shape {shape}: {cause}; give its input as --input CxHxW") from error


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


def _why_not(conv: nn.Module, calls: list) -> str | None:
    if not isinstance(conv, nn.Conv2d):
        return f"{type(conv).__name__} is not a 2-D convolution"
    if reason := own_forward(conv):
        return reason
    if not calls:
        return "the forward pass does not call it as a module"
    if len(calls) > 1:
        return f"it runs {len(calls)} times in one forward pass, and a mask belongs to one place"
    if len(calls[0][0]) != 4:
        return "its input has no batch axis"
    if torch.nn.utils.parametrize.is_parametrized(conv):
        return "its weight is parametrized; remove the parametrization first"
    if conv._parameters.get("weight") is not conv.weight:
        return "its weight is computed by a hook (weight_norm, torch.nn.utils.prune); remove that first"
    return None


def own_forward(conv: nn.Conv2d) -> str | None:
    """Why masks cannot act in a convolution that computes something else than nn.Conv2d; None where they can.

    Hooks are no reason: what they do to input and output, they do around the masks too.
    """
    kind = type(conv)
    own = kind.forward is not nn.Conv2d.forward or kind._conv_forward is not nn.Conv2d._conv_forward
    if own and not hasattr(conv, "block_mask"):
        return f"{kind.__name__} replaces the forward of Conv2d"
    changed = next((name for name in ("forward", "_conv_forward") if name in vars(conv)), None)
    return changed and f"its {changed} is replaced on the module itself"


def _site(name: str, conv: nn.Module, output_shape: tuple[int, ...]) -> ConvSite:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"{name} is not an nn.Conv2d")
    return ConvSite(
        name=name,
        in_channels=conv.weight.shape[1] * conv.groups,  # a lazy layer that was loaded and never called says 0 itself
        out_channels=conv.weight.shape[0],
        kernel=(conv.kernel_size[0], conv.kernel_size[1]),
        groups=conv.groups,
        output_size=(output_shape[2], output_shape[3]),
    )


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
