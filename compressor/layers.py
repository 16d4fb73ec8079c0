"""Layers that carry their masks: the user's own layers to optimizers, checkpoints and export.

The masks act in `forward`, on the weight that reaches the product, so gradients of dropped weights are zero and whatever an optimizer
does to those weights (momentum, weight decay, averaging) never reaches the output.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache, reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from fineprune.calibrate.calls import Products, computes_weight, filters_of, groups_of, is_standard, multiplies, own_class, reaching
from fineprune.calibrate.convolutions import replaced, weights_only
from fineprune.common.errors import UsageError
from fineprune.ops.masked_conv import explicit_padding, masked_conv2d

from .masks import KINDS, MaskKind
from .masks.kind import buffer, label


class _StraightThrough(torch.autograd.Function):
    """weight * kept, whose gradient is that of all weights (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: Tensor) -> Tensor:
        return weight * kept

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class MaskedLayer(nn.Module):
    """A layer under masks, each a buffer (`ffp_mask` bool [C,oh,ow], `fwp_mask` bool [F,C/groups,kh,kw]); None: nothing is dropped.

    Any layer that multiplies with its weight (ops/as_conv2d.py) can carry weight masks, also one with a forward of its own: they act on
    the weight that its product is given. Block masks are for `MaskedConv2d`.
    """

    without_masks: ClassVar[type[nn.Module]]
    """The class that the layer had."""
    ffp_mask: Tensor | None
    fwp_mask: Tensor | None
    computed: bool
    """Whether the layer computes its weight (parametrized, standardised): then its product is not given the parameter."""
    straight_through: bool = False
    """Whether dropped weights get the gradient of what they would be multiplied with: masks are being learned."""
    fixed_weight: Tensor | None
    """What the product is given instead of what the layer's own code makes of its parameters; None: nothing is fixed."""

    @classmethod
    def wrap(cls, layer: nn.Module, **masks: Tensor | None) -> Any:
        """A layer beside `layer` with its parameters (not copies), hooks and attributes. UsageError as in `mask`."""
        other = type(layer).__new__(type(layer))
        vars(other).update({key: copy(value) if isinstance(value, dict | set) else value for key, value in vars(layer).items()})
        return mask(other, **masks)

    def carried(self) -> list[tuple[MaskKind, Tensor]]:
        """The kinds of masks that the layer carries, and the masks."""
        found = []
        for kind in KINDS:  # no comprehension: torch.compile cannot follow its variables
            mask = self._buffers[buffer(kind)]
            if mask is not None:
                found.append((kind, mask))
        return found

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks that the layer carries, by the name of their kind."""
        return {kind.name: mask for kind, mask in self.carried()}

    @property
    def block_mask(self) -> Tensor | None:
        """What all masks together keep of the blocks, bool [C,oh,ow]; None for everything."""
        return _joint([kind.as_block_mask(mask) for kind, mask in self.carried()])

    @property
    def weight_mask(self) -> Tensor | None:
        """What all masks together keep of the weights, bool [F,C/groups,kh,kw]; None for everything."""
        return _joint([kind.as_weight_mask(mask) for kind, mask in self.carried()])

    @property
    def own_weight_mask(self) -> Tensor | None:
        """The same in the shape of the layer's own weight."""
        mask = self.weight_mask
        return None if mask is None else multiplies(self).weight(mask, groups_of(self))

    @property
    def own_weight(self) -> Tensor:
        """The weight before masks; the parameter, where the layer does not compute it."""
        return self.weight

    def masked_weight(self) -> Tensor:
        """The weight, of the layer's own shape, that its product is given: the dropped taps are exactly zero."""
        if self.fixed_weight is not None:
            return self.fixed_weight
        if self.computed and not is_standard(self.without_masks):
            return reaching(self)
        kept, weight = self.own_weight_mask, self.own_weight
        return self._under(weight, kept)

    def _under(self, weight: Tensor, kept: Tensor | None) -> Tensor:
        if kept is None:
            return weight
        return _StraightThrough.apply(weight, kept) if self.straight_through else weight * kept

    def fold_weight_masks(self) -> None:
        """Dropped weights become zeros of a parameter of this layer's own (tied layers may carry different masks).

        A layer that computes its weight (parametrized, standardised) has it fixed instead.
        """
        if self.weight_mask is None:
            return
        if self.computed:
            self.fixed_weight = self.masked_weight().detach()
        else:
            self.weight = nn.Parameter(self.masked_weight().detach(), requires_grad=False)
        for kind, mask in self.carried():
            if kind.as_weight_mask(mask) is not None:
                setattr(self, buffer(kind), None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward, whose product is given the masked weight."""
        kept, fixed = self.own_weight_mask, self.fixed_weight
        if kept is None and fixed is None:
            return super().forward(*args, **kwargs)

        def masked(function: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
            return function(**{**given, "weight": self._under(given["weight"], kept) if fixed is None else fixed})

        with Products(self, masked):
            return super().forward(*args, **kwargs)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The masks are in the state dict too: a dense network that is given it says so, instead of computing without them."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for kind, mask in self.carried():
            destination[prefix + buffer(kind)] = mask

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: list[str]
    ) -> None:
        """Masks are never loaded: those in `state_dict`, where it has any, must be this layer's own."""
        for kind in KINDS:
            theirs, own = state_dict.pop(prefix + buffer(kind), None), self.masks.get(kind.name)
            if theirs is not None and (own is None or not torch.equal(theirs.to(own.device), own)):
                errors.append(
                    f"{prefix + buffer(kind)} is another mask than the network's; load the state into the network that it was saved from."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        """Geometry, then the kept fraction of blocks and weights."""
        return super().extra_repr() + "".join(f", {name}_kept={mask.float().mean().item():.3f}" for name, mask in self.masks.items())


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """nn.Conv2d under masks of blocks and of weights."""

    without_masks = nn.Conv2d
    weight: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """x[N,C,H,W] -> y[N,F,oh,ow]; H and W must be those that the FFP mask was made for."""
        blocks = self.block_mask
        if blocks is None:
            return self._conv_forward(input, self.masked_weight(), self.bias)
        x, padding = explicit_padding(self, input)
        where = (self.stride, padding, self.dilation, self.groups)
        known = None if self.straight_through else self.weight_mask  # by which gradients of dropped weights are spared
        return masked_conv2d(x, self.masked_weight(), self.bias, blocks, *where, weight_mask=known)


class MaskedLinear(MaskedLayer, nn.Linear):
    """nn.Linear under masks of weights: attention that multiplies with the weights of its layers itself reads the masked ones, too."""

    without_masks = nn.Linear
    forward = nn.Linear.forward

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[F,C], dropped weights at zero; `parameters()` has the parameter."""
        exchanged: Tensor | None = self.__dict__.get("weight")  # for a while, by what measures or quantises
        return self.masked_weight() if exchanged is None else exchanged

    @property
    def own_weight(self) -> Tensor:
        """The parameter."""
        return self._parameters["weight"]  # type: ignore[return-value]


def mask(layer: nn.Module, **masks: Tensor | None) -> MaskedLayer:
    """Make `layer` itself a MaskedLayer: whatever refers to it (hooks, a list, another module) meets its masks.

    masks: by the names of the buffers. Those that the layer carries already stay: what either drops is dropped.
    UsageError where a mask has the wrong shape or dtype, or where the layer computes something that they cannot act in.
    """
    if isinstance(layer, LazyModuleMixin):
        raise UsageError("it is lazy and was never called; call the network once on a sample before")
    if reason := replaced(layer):
        raise UsageError(f"it cannot carry masks: {reason}")
    carried = layer.masks if isinstance(layer, MaskedLayer) else {}
    filters = filters_of(layer, layer.weight)
    together: dict[str, Tensor | None] = {}
    for kind in KINDS:
        given = masks.pop(buffer(kind), None)
        _check_mask(given, label(kind), kind.shape(filters.shape, groups_of(layer), (None, None)))
        both = [one.to(filters.device) for one in (carried.get(kind.name), given) if one is not None]
        if len(both) == 2 and both[0].shape != both[1].shape:
            raise UsageError(f"it carries a {label(kind)} mask of shape {tuple(both[0].shape)}, not {tuple(both[1].shape)}")
        together[buffer(kind)] = _joint(both)
        if both and kind.as_block_mask(both[0]) is not None and (why := weights_only(layer)):
            raise UsageError(f"it cannot carry {label(kind)} masks: {why}")
    if masks:
        raise TypeError(f"there is no mask called {next(iter(masks))!r}")
    if not isinstance(layer, MaskedLayer):
        layer.computed = computes_weight(layer)  # type: ignore[assignment]
        layer.register_buffer("fixed_weight", None, persistent=False)
    layer.__class__ = _with_masks(type(layer))
    for name, one in together.items():
        layer.register_buffer(name, one, persistent=False)
    return layer  # type: ignore[return-value]


def unmask(layer: MaskedLayer) -> None:
    """Make `layer` the plain one that it was, with the dropped weights at zero, and its weight a parameter again where it was parametrized.

    One whose forward computes its weight has it fixed.
    """
    kind, parametrized = own_class(layer), list(getattr(layer, "parametrizations", ()))
    if layer.computed and (not is_standard(kind) or parametrized != ["weight"]):
        layer.fold_weight_masks()
        return
    weight = nn.Parameter(layer.masked_weight().detach())
    for name in (*map(buffer, KINDS), "fixed_weight", "computed"):
        delattr(layer, name)
    if parametrized:  # not by torch's remove_parametrizations, which breaks the copies of a layer: they share its class
        del layer.parametrizations
        kind = kind.__bases__[0]
    layer.__class__ = kind  # type: ignore[assignment]
    layer.weight = weight


def _with_masks(kind: type[nn.Module]) -> type[MaskedLayer]:
    if issubclass(kind, MaskedLayer):
        return kind
    return next((of for of in _STANDARD if of.without_masks is kind), None) or _of_your_own(kind)  # type: ignore[arg-type]


_STANDARD: tuple[type[MaskedLayer], ...] = (MaskedConv2d, MaskedLinear)


@cache
def _of_your_own(kind: type[nn.Module]) -> type[MaskedLayer]:
    """MaskedLayer for layers of other classes: they keep their methods and what isinstance says of them."""

    def pickled(layer: MaskedLayer) -> tuple[Any, ...]:
        return _blank, (kind,), vars(layer)  # pickle looks classes up by name, and this one has none in its module

    base = next((of for of in _STANDARD if issubclass(kind, of.without_masks) and is_standard(kind)), MaskedLayer)
    if base is MaskedLinear and hasattr(kind, "weight"):  # parametrized: a property of that name already
        base = MaskedLayer
    return type(f"Masked{kind.__name__}", (base, kind), {"__module__": kind.__module__, "__reduce__": pickled, "without_masks": kind})


def _blank(kind: type[nn.Module]) -> MaskedLayer:
    return kind.__new__(_with_masks(kind))


def _check_mask(mask: Tensor | None, kind: str, shape: tuple[int | None, ...]) -> None:
    if mask is None:
        return
    fits = mask.dim() == len(shape) and all(want in (None, got) for want, got in zip(shape, mask.shape, strict=True))
    if mask.dtype != torch.bool or not fits:
        wanted = "x".join("*" if size is None else str(size) for size in shape)
        raise UsageError(f"{kind} mask must be bool of shape {wanted}, got {mask.dtype} of shape {tuple(mask.shape)}")


def _joint(masks: Sequence[Tensor | None]) -> Tensor | None:
    """What all of them keep: a single mask itself, for what is known of a mask is kept with it."""
    given = [mask for mask in masks if mask is not None]
    return reduce(torch.logical_and, given) if given else None
