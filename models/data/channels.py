"""`channels=`: colour images for a network of one channel, grey ones for a network of three."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fineprune.common.errors import UsageError

from .augment import Augmentation
from .raw import RawData
from .sources import Job, Source

_LUMA = (0.299, 0.587, 0.114)


def with_channels(raw: RawData, channels: int | None) -> RawData:
    """`raw` with 1 or 3 channels; mean and std are averaged over the colours, or the same for each."""
    own = raw.input_shape[0]
    if channels is None or channels == own:
        return raw
    if own not in (1, 3):
        raise UsageError(f"{raw.name} has images of {own} channels; channels= turns grey into colour and colour into grey")
    mean, std = ((round(sum(v) / own, 6),) * channels for v in (raw.mean, raw.std))
    sources = {part: source and ChannelSource(source, channels) for part, source in _sources(raw).items()}
    return replace(raw, input_shape=(channels, *raw.input_shape[1:]), mean=mean, std=std, **sources)  # type: ignore[arg-type]


def _sources(raw: RawData) -> dict[str, Source | None]:
    return {"train": raw.train, "validation": raw.validation, "test": raw.test}


class ChannelSource:
    """Another source's images with `channels` of them: grey by ITU-R 601's weights (as Pillow converts), colour as three equal ones."""

    def __init__(self, source: Source, channels: int) -> None:
        self._source = source
        self._channels = channels
        self.labels = source.labels

    def read(self, jobs: Iterable[Job], augmentation: Augmentation, workers: int) -> Iterator[Tensor]:
        """As in `Source`."""
        for x in self._source.read(jobs, augmentation, workers):
            yield x.expand(-1, self._channels, -1, -1) if self._channels > 1 else _grey(x)


def _grey(x: Tensor) -> Tensor:
    grey = torch.einsum("nchw,c->nhw", x.float(), torch.tensor(_LUMA))[:, None]
    return grey.round().to(torch.uint8) if x.dtype == torch.uint8 else grey
