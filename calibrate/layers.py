"""What runs inside convolutions during a calibration pass: each collector adds up one kind of statistic as samples flow through."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fineprune.common.errors import UsageError
from fineprune.ops.masked_conv import masked_conv2d

from .calls import Call, seen, weight_mask_of
from .convolutions import ConvSite
from .fisher import fisher_blocks
from .frequency import PLAIN, Norm, Reading, TieBreaker, choose, choose_blocks
from .importance import tap_sums
from .inputs import block_outputs
from .moments import add_moments, moments_shape, patches, spread
from .taylor import Geometry, block_changes, block_taylor, tap_taylor


class Collector:
    """Computes what `layer` does and looks on. A batch counts only when `commit` is called, so an interrupted batch leaves no trace."""

    needs_gradient = False
    of_gradient = "taylor"
    """The sum that a gradient brings."""
    masks_samples = False
    """Whether the layer computes under masks of each sample's own."""
    of_blocks = False
    """Whether sums are by position, for which all maps are of the site's size."""

    def __init__(self, layer: nn.Module, site: ConvSite) -> None:
        self.layer, self.site = layer, site
        self.forward = seen(layer, layer.forward, self._fitting)
        """What acts in the place of the layer's forward."""
        self.indices = torch.empty(0, dtype=torch.int64)
        self._sums: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    def begin(self, indices: Tensor) -> None:
        """Start a batch of the samples at `indices` of the data set."""
        self.indices, self._pending, self.looks = indices, {}, True

    def add(self, **sums: Tensor) -> None:
        """Note sums of a call in the current batch, moved to the CPU in float64 (counts in int64); those of several calls add up."""
        for key, value in sums.items():
            value = value.detach().cpu().to(torch.int64 if value.dtype == torch.int64 else torch.float64)
            self._pending[key] = self._pending[key] + value if key in self._pending else value

    def turn(self) -> None:
        """The forward pass is over: what checkpointed parts of a network compute again in the backward pass was seen before."""
        self.looks = False

    def commit(self) -> None:
        """Add the current batch to the total. Where no gradient came, it was zero, and Taylor scores stay as they are."""
        self._sums |= {key: value + self._sums[key] if key in self._sums else value for key, value in self._pending.items()}

    @property
    def had_gradient(self) -> bool:
        """Whether a gradient of the current batch reached this layer's output."""
        return self.of_gradient in self._pending

    def _fitting(self, call: Call) -> Tensor:
        """As `see`. UsageError where positions of a call are not those of the site."""
        if self.of_blocks and (size := call.conv.output(call.x.shape[2:], call.kernel)) != self.site.output_size:
            sizes = " and ".join(f"{height}x{width}" for height, width in (self.site.output_size, size))
            raise UsageError(
                f"{self.site.name} gives maps of several sizes ({sizes}), and masks of blocks belong to one: give inputs of one size, or "
                "drop weights alone (ffp 0), which fit any size"
            )
        return self.see(call)

    def see(self, call: Call) -> Tensor:
        """y[N,F,oh,ow] of a call, noting what is collected."""
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


def layer_at(model: nn.Module, site: ConvSite) -> nn.Module:
    """The layer of a site."""
    return model.get_submodule(site.name)


_PATCH_BYTES = 64 << 20
"""Size of the matrix of patches that is multiplied at once."""


class BlockFrequency(Collector):
    """Algorithm 8 stage 1: count which blocks are among the top K of their channel, and convolve under that mask."""

    of_blocks = True

    def __init__(
        self, layer: nn.Module, site: ConvSite, keep: int, norm: Norm, ties: TieBreaker, *, masked: bool, reading: Reading = PLAIN
    ) -> None:
        super().__init__(layer, site)
        self.keep, self.norm, self.ties, self.masks_samples, self.reading = keep, norm, ties, masked, reading

    def see(self, call: Call) -> Tensor:
        """Of the blocks that each sample's own mask keeps."""
        chosen = choose_blocks(call.x, call.kernel, call.conv, self.norm, self.keep, self.ties, self.indices, self.reading)
        self.add(frequency=chosen.frequency, norm=chosen.norm)
        if not self.masks_samples or self.keep == self.reading.blocks(self.site.in_channels, self.site.positions):
            return call.output()
        mask = chosen.mask if call.blocks is None else chosen.mask & call.blocks
        return masked_conv2d(call.x, call.weight, call.bias, mask, *call.conv)


class BlockTaylorFrequency(Collector):
    """Count which blocks are among the top K by the absolute first-order change of the loss; the convolution is the dense one."""

    needs_gradient = of_blocks = True
    of_gradient = "frequency"

    def __init__(self, layer: nn.Module, site: ConvSite, keep: int, ties: TieBreaker, reading: Reading) -> None:
        super().__init__(layer, site)
        self.keep, self.ties, self.reading = keep, ties, reading

    def see(self, call: Call) -> Tensor:
        """The dense y."""
        indices = self.indices

        def backward(grad: Tensor) -> None:
            changes = block_changes(call.x.detach(), grad, call.weight, _walk(call), call.conv.groups).abs_()
            chosen = choose(changes, self.keep, self.ties, indices, self.reading)
            self.add(frequency=chosen.frequency, norm=chosen.norm)

        return self.differentiated(call.output(), backward)


class BlockTaylor(Collector):
    """First-order scores of blocks: the dense convolution forward, one more product backward."""

    needs_gradient = of_blocks = True

    def see(self, call: Call) -> Tensor:
        """The dense y."""

        def backward(grad: Tensor) -> None:
            self.add(taylor=block_taylor(call.x.detach(), grad, call.weight, _walk(call), call.conv.groups))

        return self.differentiated(call.output(), backward)


class WeightScores(Collector):
    """S of Algorithm 9 under the layer's FFP mask and, given groups of filters, first-order scores of taps."""

    def __init__(self, layer: nn.Module, site: ConvSite, assignment: Tensor | None) -> None:
        super().__init__(layer, site)
        self.assignment = assignment
        self.needs_gradient = assignment is not None

    def see(self, call: Call) -> Tensor:
        """Of the layer as it is, its masks included."""
        y = call.output()
        if self.looks:
            with torch.no_grad():
                for key, values in (("absolute", call.x.abs()), ("signed", call.x)):
                    self.add(**{key: tap_sums(values.sum(0), call.blocks, self.site.kernel, *_walk(call))})
        assignment = self.assignment
        if assignment is not None:

            def backward(grad: Tensor) -> None:
                scores = tap_taylor(call.x.detach(), grad, call.weight, call.blocks, _walk(call), call.conv.groups, assignment)
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

    def __init__(self, layer: nn.Module, site: ConvSite, limit: int) -> None:
        super().__init__(layer, site)
        self.limit = limit

    def see(self, call: Call) -> Tensor:
        """Of the layer as it is, its masks included."""
        masks = call.blocks, weight_mask_of(self.layer)

        def backward(grad: Tensor) -> None:
            self.add(fisher=fisher_blocks(call.x.detach(), grad, call.weight, masks, call.conv, self.limit))

        return self.differentiated(call.output(), backward)


class OutputSquares(Collector):
    """The sum of squared outputs, of which errors are shares, and what errors depend on; the pass needs neither gradients nor labels."""

    def see(self, call: Call) -> Tensor:
        """Of the layer as it is, its masks included."""
        y = call.output()
        with torch.no_grad():
            own = y if call.bias is None else y - call.bias[:, None, None]
            self.add(outputs=torch.linalg.vector_norm(own, dtype=torch.float64).square()[None])
            self.depend(call, y.shape[2] * y.shape[3])
        return y

    def depend(self, call: Call, positions: int) -> None:
        """Note what the error depends on, of a call with so many positions of output."""
        raise NotImplementedError

    def at_once(self, positions: int, dtype: torch.dtype) -> int:
        """Samples whose patches at so many positions make up a matrix of moderate size."""
        return max(1, _PATCH_BYTES // (positions * self.site.in_channels * self.site.taps * dtype.itemsize))


class InputMoments(OutputSquares):
    """H of a layer's inputs under its block mask, in blocks of at most `limit` rows, at `taken` positions of each sample of the site.

    Attention of torch puts samples where positions are, so that a call has as many more of them: the same share is taken.
    """

    def __init__(self, layer: nn.Module, site: ConvSite, limit: int, taken: int) -> None:
        super().__init__(layer, site)
        self.shape, self.taken = moments_shape(site, limit), taken

    def depend(self, call: Call, positions: int) -> None:
        """Sums of the positions that are taken stand for all."""
        total = torch.zeros(self.shape, dtype=torch.float64)
        taken = min(positions, -(-self.taken * positions // self.site.positions))
        samples = self.indices[torch.arange(len(call.x)) * len(self.indices) // len(call.x)]  # a network may cut samples into several
        at = spread(samples, taken, positions).to(call.x.device)
        some = self.at_once(taken, call.x.dtype)
        for x, places in zip(call.x.split(some), at.split(some), strict=True):
            add_moments(total, patches(x, call.kernel, call.conv, call.blocks, places))
        self.add(moments=total.mul_(positions / taken))


class BlockOutputs(OutputSquares):
    """What every block adds to the outputs, squared."""

    of_blocks = True

    def depend(self, call: Call, positions: int) -> None:
        """Of every block."""
        parts = [block_outputs(x, call.weight, call.conv, positions) for x in call.x.split(self.at_once(positions, call.x.dtype))]
        self.add(error=torch.stack(parts).sum(0).view(-1, *self.site.output_size))


def _walk(call: Call) -> Geometry:
    """(stride, padding, dilation)."""
    return call.conv[:3]
