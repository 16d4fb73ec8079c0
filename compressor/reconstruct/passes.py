"""Forward passes that stop at a layer and start at a module before it, so that a layer costs what lies between and not the whole network.

A pass may start at a module whose input is all that later layers depend on (a block of a ResNet, any layer of a chain): then its inputs,
kept from the pass before, take the place of its argument, and whatever comes before it runs on one image of noise and is not used (on as
many as are kept where the network's code asks for their number; then the modules before the start compute nothing and give zeros). That a
module is such a place is not read off the network's code but tried: the outputs, and every layer's inputs, must stay what they were.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fineprune.calibrate.calls import Acting, Call, acting, readers, seen
from fineprune.calibrate.convolutions import evaluating
from fineprune.calibrate.steadiness import difference
from fineprune.common.inputs import Inputs, answer, floats

_SAME = 1e-6
"""Share of the largest value by which two equal computations may differ."""


class _Stopped(BaseException):
    """Ends a forward pass from inside; no handler in a network's own code catches it."""


class Tap:
    """Runs in the place of a layer's forward, for `calibrate.calls.acting`: `see` makes the outputs of its calls."""

    def __init__(self, layer: nn.Module, see: Callable[[Call], Tensor]) -> None:
        self.layer, self.forward = layer, seen(layer, layer.forward, see)


def stop() -> None:
    """Called inside a pass, ends it."""
    raise _Stopped


class Start(NamedTuple):
    """A module, what it gets in the place of its argument, and the modules before it that need not compute."""

    module: nn.Module
    value: Tensor
    idle: tuple[Acting, ...] = ()


class _Idle:
    """Answers in the place of a module with zeros of `shape`, of the type of `like`."""

    def __init__(self, layer: nn.Module, shape: Sequence[int], like: Tensor) -> None:
        self.layer = layer
        self.forward: Callable[..., Tensor] = lambda *args, **kwargs: like.new_zeros(shape)


def forward(model: nn.Module, images: Inputs, start: Start | None = None) -> Any:
    """What `model` gives for a batch; None where something stopped it. In eval mode, without gradients.

    With `start`, what follows it has that value's samples, and `images` only lead there.
    """
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(acting(readers(model)))
        if start is not None:
            stack.enter_context(acting(start.idle))
            replace = start.module.register_forward_pre_hook(lambda module, args: (start.value.clone(), *args[1:]), prepend=True)
            stack.callback(replace.remove)
        try:
            return answer(model, images.clone())
        except _Stopped:
            return None


@contextmanager
def noting(modules: Mapping[str, nn.Module], note: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """`note` gets the name and arguments of every call of `modules`, before their own hooks do."""
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: note(name, args), prepend=True) for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Starts:
    """Where passes of `model` may start, tried on a batch; `layers` are the names of those whose inputs matter.

    lead: one sample, whose pass leads to a start and is not used.
    """

    def __init__(self, model: nn.Module, images: Inputs, lead: Inputs, layers: Sequence[str]) -> None:
        self._model, self._images, self.lead = model, images, lead
        self._layers = {name: model.get_submodule(name) for name in layers}
        self._modules = {name: module for name, module in model.named_modules() if name}
        self._order: list[str] = []
        self._arguments: dict[str, list[tuple[Any, ...]]] = {}
        self._ended: dict[str, tuple[int, Any]] = {}
        """By module, after its last call: how many calls had begun by then, and an empty tensor that knows the shape of its answer."""
        with noting(self._modules, self._note), ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(module.register_forward_hook(partial(self._note_end, name)).remove)
            self._output = forward(model, images)
        self._able: dict[str, bool] = {}
        self._alike: set[str] = set()
        """Starts that are led to by as many samples as they have."""

    def _note(self, name: str, args: tuple[Any, ...]) -> None:
        self._order.append(name)
        self._arguments.setdefault(name, []).append(tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args))

    def _note_end(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._ended[name] = len(self._order), output.to("meta") if isinstance(output, Tensor) else None

    def to(self, name: str, value: Tensor) -> tuple[Inputs, Start]:
        """What leads to the module, where a pass may start, and the start there with `value` for its argument."""
        module, lead = self._modules[name], self.lead
        if name in self._alike and isinstance(lead, Tensor):
            idle: list[Acting] = [_Idle(other, (len(value), *shape), value) for other, shape in self._idle(name)]
            return lead.expand(len(value), *lead.shape[1:]), Start(module, value, tuple(idle))
        return lead, Start(module, value)

    def _idle(self, name: str) -> Iterator[tuple[nn.Module, Sequence[int]]]:
        """Modules that run once, and are over before `name` begins, with the shapes of a sample of their answers; none inside another."""
        begun, found = self._order.index(name), list[str]()
        for other in self._order[:begun]:
            ended, answer = self._ended.get(other, (begun + 1, None))
            whole = ended <= begun and len(self._arguments[other]) == 1 and answer is not None and len(answer) == len(self._images)
            if whole and answer.is_floating_point() and not any(other.startswith(f"{outer}.") for outer in found):
                found.append(other)
                yield self._modules[other], answer.shape[1:]

    def before(self, layer: str, largest: float) -> str | None:
        """The last module up to the first call of `layer` where a pass may start, of those with at most `largest` numbers a sample."""
        for name in reversed(self._order[: self._order.index(layer) + 1]):
            if self.numbers(name) <= largest and self._is_able(name):
                return name
        return None

    def numbers(self, name: str) -> float:
        """Of a sample in the input of a module; infinite where a pass cannot start there, whatever it depends on."""
        calls = self._arguments[name]
        usable = len(calls) == 1 and len(calls[0]) == 1 and isinstance(calls[0][0], Tensor) and len(calls[0][0]) == len(self._images)
        return calls[0][0].numel() / len(self._images) if usable else float("inf")

    def _is_able(self, name: str) -> bool:
        if name not in self._able:
            self._able[name] = self._agrees(name)
            if not self._able[name] and isinstance(self.lead, Tensor):  # perhaps its code asks for the size of the batch
                self._alike.add(name)
                self._able[name] = self._agrees(name)
        return self._able[name]

    def _agrees(self, name: str) -> bool:
        later = self._order[self._order.index(name) :]
        layers = [layer for layer in self._layers if layer in later and self._order.index(layer) >= self._order.index(name)]
        inputs: dict[str, list[tuple[Any, ...]]] = {layer: [] for layer in layers}
        try:
            with noting({layer: self._layers[layer] for layer in layers if layer != name}, lambda layer, args: inputs[layer].append(args)):
                output = forward(self._model, *self.to(name, self._arguments[name][0][0]))
        except Exception:  # the network's own code does not bear two sizes of batch
            return False
        calls = [(inputs[layer], self._arguments[layer]) for layer in layers if layer != name]
        same = all(len(one) == len(other) and all(map(_same, chain(*one), chain(*other))) for one, other in calls)
        return same and _same(output, self._output)


def _same(one: Any, other: Any) -> bool:
    ones, others = floats(one), floats(other)
    return bool(ones) and difference(ones, others) <= _SAME
