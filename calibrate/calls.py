"""What a layer computes, seen where it computes it: one convolution with its weight, wherever that stands in the layer's forward.

    plain Conv2d        y = conv2d(pad(x), w, b)               the call of the layer is the call of the product
    a forward of its own   y = g(product(f(x), h(w), b))       the product is caught in the middle: padding, scaling and standardising of
                                                               weights (f, g, h) stay the layer's own business
    another's forward   y = linear(x, layer.weight, b)            attention that multiplies itself calls the layer, while somebody looks on

What looks on gets a `Call`, the same for all and for every kind of product (ops/as_conv2d.py).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from fineprune.common.errors import UsageError
from fineprune.ops.as_conv2d import Product, arguments, product_of
from fineprune.ops.geometry import Conv
from fineprune.ops.masked_conv import explicit_padding


@dataclass(frozen=True)
class Call:
    """One product of a layer: y[N,F,oh,ow] of x[N,C,H,W], weight[F,C/groups,kh,kw] as it is computed with, bias[F] and block mask."""

    x: Tensor
    """With the padding that `conv` does not say already around it."""
    weight: Tensor
    bias: Tensor | None
    blocks: Tensor | None
    """bool [C,oh,ow], where the layer carries such a mask."""
    conv: Conv
    output: Callable[[], Tensor]
    """The layer's own y, under its masks."""
    placements: int | None = None
    """How often each kernel is multiplied with a patch, where that is not once for every position of the output."""

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw)."""
        return self.weight.shape[2], self.weight.shape[3]


def is_standard(kind: type[nn.Module]) -> bool:
    """Whether layers of a class compute as torch's own do, whatever hooks and parametrizations do around them."""
    product = product_of(kind)
    return product is not None and all(
        getattr(kind, own, None) is getattr(product.layer, own, None) for own in ("forward", "_conv_forward")
    )


def own_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer, or that it has without its masks."""
    return getattr(type(layer), "without_masks", type(layer))


def seen(layer: nn.Module, forward: Callable[..., Any], act: Callable[[Call], Tensor]) -> Callable[..., Any]:
    """`forward` of `layer`, in which `act` makes the outputs y of every product with the layer's weight."""
    if isinstance(layer, nn.Conv2d) and is_standard(own_class(layer)):
        return partial(_plain, layer, forward, act)

    def caught(*args: Any, **kwargs: Any) -> Any:
        with Products(layer, partial(_act, layer, act)):
            return forward(*args, **kwargs)

    return caught


def _plain(layer: nn.Conv2d, forward: Callable[..., Tensor], act: Callable[[Call], Tensor], input: Tensor) -> Tensor:
    x, padding = explicit_padding(layer, input)
    conv = Conv.of(layer.stride, padding, layer.dilation, layer.groups)
    return act(Call(x, weight_of(layer), layer.bias, block_mask_of(layer), conv, partial(forward, input)))


def _act(layer: nn.Module, act: Callable[[Call], Tensor], function: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
    product, x, weight = multiplies(layer), given["input"], given["weight"]
    problem = product.problem(x, weight, **{key: value for key, value in given.items() if key not in _TENSORS})
    shape: list[int] = []

    def output() -> Tensor:
        y = function(**given)
        shape[:] = y.shape
        return product.image(y)

    filters = product.filters(weight, problem.conv.groups)
    return product.outputs(act(Call(problem.x, filters, given["bias"], None, problem.conv, output, product.placements(x))), shape)


class Acting(Protocol):
    """What computes in a layer's place."""

    layer: nn.Module
    forward: Callable[..., Any]


@contextmanager
def acting(actors: Iterable[Acting]) -> Iterator[None]:
    """Every actor computes in its layer's place for the length of a with-block, also where another module multiplies with its weight.

    Only `forward` is exchanged: the network meets its own modules, with their class, attributes, parameters and hooks.
    """
    actors = list(actors)
    reads = Reads(actor.layer for actor in actors if is_readable(actor.layer))
    forwards = [(actor.layer, "forward", reads.noting(actor)) for actor in actors]
    weights = [(layer, "weight", weight) for layer, weight in reads.weights.items()]  # a masked one is another for each reader
    with exchanged(*forwards, *weights), reads if weights else nullcontext():
        yield


@contextmanager
def exchanged(*attributes: tuple[nn.Module, str, Any]) -> Iterator[None]:
    """Attributes (module, name, value) of modules have other values inside the block, which hide parameters of their names."""
    before = [(vars(module), name, vars(module).get(name, _NOTHING)) for module, name, _ in attributes]
    try:
        for module, name, value in attributes:
            vars(module)[name] = value
        yield
    finally:
        for there, name, value in before:
            if value is _NOTHING:
                there.pop(name, None)
            else:
                there[name] = value


_NOTHING = object()


class Itself:
    """An actor that only makes sure that whoever multiplies with its layer's weight calls the layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.forward = layer, layer.forward


def readers(model: nn.Module) -> list[Itself]:
    """Actors for all layers of a network whose weights others may multiply with."""
    return [Itself(layer) for layer in model.modules() if is_readable(layer)]


def is_readable(layer: nn.Module) -> bool:
    """Whether others that multiply with a layer's weight do what the layer does: linear layers that compute as torch's own."""
    return isinstance(layer, nn.Linear) and is_standard(own_class(layer)) and "weight" in layer._parameters


class Reads(TorchFunctionMode):
    """Inside the block, other modules that multiply with the weight of one of `layers` call that layer, its hooks included.

    A bias that they add instead of the layer's is the layer's for that call.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.weights = {layer: layer.weight for layer in layers}
        self._layers = {id(weight): layer for layer, weight in self.weights.items()}
        self._running: set[int] = set()
        """Weights of the layers that compute at the moment: their own products are no others'."""

    def noting(self, actor: "Acting") -> Callable[..., Any]:
        """What `actor` does, known to be the layer's own."""
        if actor.layer not in self.weights:
            return actor.forward
        weight = id(self.weights[actor.layer])

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._running.add(weight)
            try:
                return actor.forward(*args, **kwargs)
            finally:
                self._running.discard(weight)

        return forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Of a call that torch would make."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        if func is not F.linear:
            return func(*args, **kwargs)
        given = arguments(func, args, kwargs)
        layer = self._layers.get(id(given["weight"]))
        if layer is None or id(given["weight"]) in self._running:
            return func(*args, **kwargs)
        with exchanged((layer, "bias", given["bias"])):
            return layer(given["input"])


_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
"""torch's function, whose products a mode can see: torch's own is given to a mode as a whole, and is computed without it."""


_TENSORS = ("input", "weight", "bias")


class Products(TorchFunctionMode):
    """Inside the block, `act(function, arguments by name)` computes every product with a weight of the layer's shape in torch's place."""

    def __init__(self, layer: Any, act: Callable[[Callable[..., Tensor], dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self._function, self._shape, self._act = multiplies(layer).function, layer.weight.shape, act

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Of a call that torch would make."""
        kwargs = kwargs or {}
        if func is not self._function:
            return func(*args, **kwargs)
        given = arguments(func, args, kwargs)
        if given["weight"].shape != self._shape:
            return func(*args, **kwargs)
        return self._act(func, given)


def multiplies(layer: nn.Module) -> Product:
    """How a layer of which that is known multiplies."""
    product = product_of(type(layer))
    if product is None:
        raise TypeError(f"{type(layer).__name__} computes no product that could be seen")
    return product


class _Reached(BaseException):
    """Ends a layer's forward where its weight has reached the product."""


def reaching(layer: nn.Module) -> Tensor:
    """The weight, of the layer's own shape, as its forward hands it to the product, masks included: tried on zeros.

    It is the parameter itself where the forward does nothing to it. UsageError where no product with such a weight is reached.
    """
    found: list[Tensor] = []

    def stop(function: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        found.append(given["weight"])
        raise _Reached

    weight = layer.weight
    assert isinstance(weight, Tensor)
    channels, kernel = multiplies(layer).reads(weight, groups_of(layer))
    x = weight.new_zeros(1, channels, *[size * 8 for size in kernel]) if kernel else weight.new_zeros(1, channels)
    try:
        with Products(layer, stop), torch.no_grad():
            layer.forward(x)
    except _Reached:
        return found[0]
    except Exception as error:  # the layer's own code may raise anything
        raise UsageError(f"the forward of {type(layer).__name__} fails on {tuple(x.shape)} zeros: {error}") from error
    raise UsageError(f"the forward of {type(layer).__name__} computes no {multiplies(layer).name} with a weight of {tuple(weight.shape)}")


def weight_of(layer: Any) -> Tensor:
    """The weight [F,C/groups,kh,kw] that a layer computes with: dropped ones are zero where it carries masks."""
    masked = getattr(layer, "masked_weight", None)
    if masked is not None:
        return filters_of(layer, masked())
    return filters_of(layer, layer.weight if is_standard(type(layer)) else reaching(layer))


def filters_of(layer: nn.Module, weight: Any) -> Tensor:
    """[F,C/groups,kh,kw] of a weight of the layer's own shape."""
    return multiplies(layer).filters(weight, groups_of(layer))


def computes_weight(layer: Any) -> bool:
    """Whether a layer makes the weight that its product is given of its parameters (parametrized, standardised, normalised)."""
    if parametrize.is_parametrized(layer, "weight"):
        return True
    return not is_standard(own_class(layer)) and reaching(layer) is not layer.weight


def groups_of(layer: nn.Module) -> int:
    """Linear layers have one."""
    return int(getattr(layer, "groups", 1))


def block_mask_of(layer: nn.Module) -> Tensor | None:
    """The block mask bool [C,oh,ow] that a layer carries."""
    return getattr(layer, "block_mask", None)


def weight_mask_of(layer: nn.Module) -> Tensor | None:
    """The mask of weights bool [F,C/groups,kh,kw] that a layer carries."""
    return getattr(layer, "weight_mask", None)
