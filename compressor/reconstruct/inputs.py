"""What layers get in the compressed network as it is so far, summed up for the refit.

The pass of a layer starts at the last module before the layer refitted last whose inputs are all that matters later (`passes.Starts`): the
pass before has kept them, where the memory holds them.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from fineprune.calibrate.calls import Call, acting
from fineprune.calibrate.moments import patches
from fineprune.common.inputs import Inputs as Batch

from .gram import Gram
from .layers import Shared
from .passes import Start, Starts, Tap, forward, noting, stop
from .stream import Stream
from .targets import Target


class Inputs:
    """Of the layers `order` of `masked`. memory: bytes to keep."""

    def __init__(self, masked: nn.Module, order: Sequence[Shared], stream: Stream, memory: float) -> None:
        self._masked, self._order, self._stream = masked, order, stream
        self._largest = memory / (4 * stream.images)
        self.starts = Starts(masked, stream.few(), stream.lead(), [name for shared in order for name in shared.names])
        self._start: str | None = None
        self._kept: dict[int, Tensor] = {}
        """By number of the batch, the inputs of the module called `_start`."""

    def gram(self, place: int, targets: Mapping[int, list[Target]]) -> Gram:
        """H and G of the layer at `place`, after those before it were refitted; targets: by number of the batch, of each call."""
        layers = [self._masked.get_submodule(name) for name in self._order[place].names]
        self._gram = Gram(layers[0])
        taps = [Tap(layer, self._see) for layer in layers]
        after = self.starts.before(self._order[place].name, self._largest)
        keep = {} if after is None or after == self._start else {after: self._masked.get_submodule(after)}
        kept: dict[int, Tensor] = {}
        for number, images, start in self._passes(release=bool(keep)):
            self._waiting = list(targets[number])
            noted: list[Tensor] = []
            with noting(keep, lambda name, args: noted.append(args[0].clone())), acting(taps):  # noqa: B023 - called in this turn
                forward(self._masked, images, start)
            kept.update((number, value) for value in noted)
        if keep:
            self._start, self._kept = after, kept
        return self._gram

    def _passes(self, *, release: bool) -> Iterator[tuple[int, Batch, Start | None]]:
        """Number, images and start of each batch's pass; with `release`, what was kept is given away."""
        if self._start is None:
            yield from ((number, images, None) for number, images in self._stream)
            return
        for number in self._stream.numbers:
            yield number, *self.starts.to(self._start, self._kept.pop(number) if release else self._kept[number])

    def _see(self, call: Call) -> Tensor:
        at, wanted = self._waiting.pop(0)
        self._gram.add(patches(call.x, call.kernel, call.conv, call.blocks, at, constant=call.bias is not None), wanted)
        if not self._waiting:
            stop()
        return call.output()
