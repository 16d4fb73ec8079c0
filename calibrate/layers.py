"""What runs inside convolutions during a calibration pass: each collector adds up one kind of statistic as samples flow through."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from fineprune.ops.geometry import Conv
from fineprune.ops.masked_conv import explicit_padding, masked_conv2d

from .convolutions import ConvSite
from .fisher import fisher_blocks
from .frequency import Norm, TieBreaker, choose_blocks
from .importance import tap_sums
from .inputs import block_outputs
from .moments import add_moments, moments_shape, patches, spread
from .taylor import Geometry, block_taylor, tap_taylor


class Collector:
    """Computes what `conv` does and looks on. A batch counts only when `commit` is called, so an interrupted batch leaves no trace."""

    needs_gradient = False
    of_gradient = "taylor"
    """The sum that a gradient brings."""
    masks_samples = False
    """Whether the layer computes under masks of each sample's own."""

    def __init__(self, conv: nn.Conv2d, site: ConvSite) -> None:
        self.conv, self.site = conv, site
        self.convolve = conv.forward
        self.indices = torch.empty(0, dtype=torch.int64)
        self._sums: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    def begin(self, indices: Tensor) -> None:
        """Start a batch of the samples at `indices` of the data set."""
        self.indices, self._pending = indices, {}

    def add(self, **sums: Tensor) -> None:
        """Note sums of the current batch: moved to the CPU in float64 (counts in int64)."""
        for key, value in sums.items():
            self._pending[key] = value.detach().cpu().to(torch.int64 if value.dtype == torch.int64 else torch.float64)

    def commit(self) -> None:
        """Add the current batch to the total. Where no gradient came, it was zero, and Taylor scores stay as they are."""
        self._sums |= {key: value + self._sums[key] if key in self._sums else value for key, value in self._pending.items()}

    @property
    def had_gradient(self) -> bool:
        """Whether a gradient of the current batch reached this layer's output."""
        return self.of_gradient in self._pending

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow], noting what is collected."""
        raise NotImplementedError

    def differentiated(self, y: Tensor, backward: Callable[[Tensor], None]) -> Tensor:
        """This layer's output y, whose gradient `backward` gets where the network computes one."""
        if y.requires_grad:
            y.register_hook(backward)
        elif torch.is_grad_enabled():  # no gradient leads to its input, for instance from a frozen stem under no_grad
            y.requires_grad_().register_hook(backward)
            return y.clone()  # what comes next may work in place, which a leaf does not allow
        return y

    def sums(self) -> dict[str, Tensor]:
        """The totals so far."""
        return dict(self._sums)

    def restore(self, sums: dict[str, Tensor]) -> None:
        """Go on from the totals of an earlier run."""
        self._sums = dict(sums)

    def geometry(self, padding: tuple[int, int]) -> Geometry:
        """(stride, padding, dilation) once padding other than symmetric zeros has been applied to the input."""
        return (self.conv.stride, padding, self.conv.dilation)


class Acting(Protocol):
    """What computes in a convolution's place."""

    conv: nn.Conv2d

    def forward(self, input: Tensor) -> Tensor: ...


@contextmanager
def measuring(collectors: Iterable[Acting]) -> Iterator[None]:
    """Every collector computes in its convolution's place for the length of a with-block.

    Only `forward` is exchanged: the network meets its own modules, with their class, attributes, parameters and hooks.
    """
    convs = [collector.conv for collector in collectors]
    try:
        for collector in collectors:
            vars(collector.conv)["forward"] = collector.forward
        yield
    finally:
        for conv in convs:
            vars(conv).pop("forward", None)


def conv_at(model: nn.Module, site: ConvSite) -> nn.Conv2d:
    """The convolution of a site."""
    conv = model.get_submodule(site.name)
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"{site.name} is not an nn.Conv2d")
    return conv


def weight_of(conv: nn.Conv2d) -> Tensor:
    """The weight [F,C/groups,kh,kw] that a convolution computes with: dropped ones are zero where it carries masks."""
    masked = getattr(conv, "masked_weight", None)
    return conv.weight if masked is None else masked()


def block_mask_of(conv: nn.Conv2d) -> Tensor | None:
    """The block mask bool [C,oh,ow] that a convolution carries."""
    return getattr(conv, "block_mask", None)


def weight_mask_of(conv: nn.Conv2d) -> Tensor | None:
    """The mask of weights bool [F,C/groups,kh,kw] that a convolution carries."""
    return getattr(conv, "weight_mask", None)


_PATCH_BYTES = 64 << 20
"""Size of the matrix of patches that is multiplied at once."""


class BlockFrequency(Collector):
    """Algorithm 8 stage 1: count which blocks are among the top K of their channel, and convolve under that mask."""

    def __init__(self, conv: nn.Conv2d, site: ConvSite, keep: int, norm: Norm, ties: TieBreaker, *, masked: bool) -> None:
        super().__init__(conv, site)
        self.keep, self.norm, self.ties, self.masks_samples = keep, norm, ties, masked

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow], of the blocks that each sample's own mask keeps."""
        conv = self.conv
        padded, padding = explicit_padding(conv, input)
        geometry = Conv.of(conv.stride, padding, conv.dilation, conv.groups)
        chosen = choose_blocks(padded, conv.kernel_size, geometry, self.norm, self.keep, self.ties, self.indices)
        self.add(frequency=chosen.frequency, norm=chosen.norm)
        if not self.masks_samples or self.keep == self.site.positions:
            return self.convolve(input)
        carried = block_mask_of(conv)
        mask = chosen.mask if carried is None else chosen.mask & carried
        return masked_conv2d(padded, weight_of(conv), conv.bias, mask, conv.stride, padding, conv.dilation, conv.groups)


class BlockTaylor(Collector):
    """First-order scores of blocks: the dense convolution forward, one more product backward."""

    needs_gradient = True

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> the dense y[N,F,oh,ow]."""
        padded, padding = explicit_padding(self.conv, input)
        y = self.convolve(input)

        def backward(grad: Tensor) -> None:
            self.add(taylor=block_taylor(padded.detach(), grad, weight_of(self.conv), self.geometry(padding), self.conv.groups))

        return self.differentiated(y, backward)


class WeightScores(Collector):
    """S of Algorithm 9 under the layer's FFP mask and, given groups of filters, first-order scores of taps."""

    def __init__(self, conv: nn.Conv2d, site: ConvSite, assignment: Tensor | None) -> None:
        super().__init__(conv, site)
        self.assignment = assignment
        self.needs_gradient = assignment is not None

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow] of the layer as it is, its masks included."""
        padded, padding = explicit_padding(self.conv, input)
        mask = block_mask_of(self.conv)
        y = self.convolve(input)
        stride, _, dilation = self.geometry(padding)
        with torch.no_grad():
            for key, values in (("absolute", padded.abs()), ("signed", padded)):
                self.add(**{key: tap_sums(values.sum(0), mask, self.site.kernel, stride, padding, dilation)})
        assignment = self.assignment
        if assignment is not None:

            def backward(grad: Tensor) -> None:
                scores = tap_taylor(padded.detach(), grad, weight_of(self.conv), mask, self.geometry(padding), self.conv.groups, assignment)
                self.add(taylor=scores.kernel, taylor_group=scores.group, taylor_channel=scores.channel)

            return self.differentiated(y, backward)
        return y

    def sums(self) -> dict[str, Tensor]:
        """The totals so far, with the assignment of filters to groups that `taylor_group` was summed over."""
        return super().sums() if self.assignment is None else {**super().sums(), "groups": self.assignment}

    def restore(self, sums: dict[str, Tensor]) -> None:
        """Go on from the totals of an earlier run."""
        super().restore({key: value for key, value in sums.items() if key != "groups"})


class WeightFisher(Collector):
    """Block-diagonal Fisher matrices of the weights, of at most `limit` weights a block, under the layer's masks."""

    needs_gradient, of_gradient = True, "fisher"

    def __init__(self, conv: nn.Conv2d, site: ConvSite, limit: int) -> None:
        super().__init__(conv, site)
        self.limit = limit

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow] of the layer as it is, its masks included."""
        padded, padding = explicit_padding(self.conv, input)
        masks = block_mask_of(self.conv), weight_mask_of(self.conv)
        geometry = Conv.of(self.conv.stride, padding, self.conv.dilation, self.conv.groups)
        y = self.convolve(input)

        def backward(grad: Tensor) -> None:
            self.add(fisher=fisher_blocks(padded.detach(), grad, weight_of(self.conv), masks, geometry, self.limit))

        return self.differentiated(y, backward)


class OutputSquares(Collector):
    """The sum of squared outputs, of which errors are shares, and what errors depend on; the pass needs neither gradients nor labels."""

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow] of the layer as it is, its masks included."""
        y = self.convolve(input)
        with torch.no_grad():
            own = y if self.conv.bias is None else y - self.conv.bias[:, None, None]
            self.add(outputs=torch.linalg.vector_norm(own, dtype=torch.float64).square()[None])
            self.see(input)
        return y

    def see(self, x: Tensor) -> None:
        """Note what the error depends on, of inputs x[N,C,H,W]."""
        raise NotImplementedError

    def at_once(self, positions: int, dtype: torch.dtype) -> int:
        """Samples whose patches at so many positions make up a matrix of moderate size."""
        return max(1, _PATCH_BYTES // (positions * self.site.in_channels * self.site.taps * dtype.itemsize))


class InputMoments(OutputSquares):
    """H of a layer's inputs under its block mask, in blocks of at most `limit` rows, at `taken` positions of each sample."""

    def __init__(self, conv: nn.Conv2d, site: ConvSite, limit: int, taken: int) -> None:
        super().__init__(conv, site)
        self.shape, self.taken = moments_shape(site, limit), taken

    def see(self, x: Tensor) -> None:
        """Sums of the positions that are taken stand for all."""
        total, positions = torch.zeros(self.shape, dtype=torch.float64), self.site.positions
        samples = self.indices[torch.arange(len(x)) * len(self.indices) // len(x)]  # a network may cut samples into several
        at = spread(samples, self.taken, positions).to(x.device)
        some = self.at_once(self.taken, x.dtype)
        for part, places in zip(x.split(some), at.split(some), strict=True):
            add_moments(total, patches(self.conv, part, block_mask_of(self.conv), places))
        self.add(moments=total.mul_(positions / self.taken))


class BlockOutputs(OutputSquares):
    """What every block adds to the outputs, squared."""

    def see(self, x: Tensor) -> None:
        """Of every block."""
        weight, positions = weight_of(self.conv), self.site.positions
        parts = [block_outputs(self.conv, part, weight, positions) for part in x.split(self.at_once(positions, x.dtype))]
        self.add(error=torch.stack(parts).sum(0).view(-1, *self.site.output_size))
