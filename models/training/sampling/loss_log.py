"""Every sample's loss in every epoch, as the training steps saw it, and what it says about the sample."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LossLog:
    """Rows of float16 [N], one an epoch; NaN where a sample was not visited. 2 bytes a sample and epoch."""

    samples: int
    rows: list[Tensor] = field(default_factory=list)

    def start_epoch(self) -> None:
        """Append a row."""
        self.rows.append(torch.full((self.samples,), float("nan"), dtype=torch.float16))

    def observe(self, indices: Tensor, losses: Tensor) -> None:
        """Losses [n] of samples int64 [n] in the epoch that runs."""
        self.rows[-1][indices.cpu()] = losses.detach().cpu().clamp(max=torch.finfo(torch.float16).max).half()

    def matrix(self) -> Tensor:
        """float32 [epochs, N]."""
        return torch.stack(self.rows).float() if self.rows else torch.empty(0, self.samples)


@dataclass(frozen=True)
class SampleFacts:
    """What a loss matrix [epochs, N] says of each sample; all float32 or int64 [N]."""

    mean_loss: Tensor
    """Over the epochs that visited it; NaN where none did."""
    high_share: Tensor
    """Visits with a loss of at least that epoch's mean, as a share: Algorithm 1's count over the whole run."""
    pruned: Tensor
    """Epochs that left it out."""
    visits: Tensor

    @classmethod
    def of(cls, losses: Tensor) -> "SampleFacts":
        """From losses [epochs, N], NaN where not visited."""
        seen = ~losses.isnan()
        visits = seen.sum(0)
        high = (losses >= losses.nanmean(1, keepdim=True)).sum(0)
        return cls(losses.nanmean(0), high / visits, len(losses) - visits, visits)

    def order(self, view: str) -> Tensor:
        """int64 [N], the most suspicious first: `high-loss` by mean loss, `most-pruned` by epochs left out (ties: the higher loss)."""
        mean = self.mean_loss.nan_to_num(0.0)
        by_loss = mean.argsort(descending=True, stable=True)
        if view == "high-loss":
            return by_loss
        return by_loss[self.pruned[by_loss].argsort(descending=True, stable=True)]


VIEWS = ("high-loss", "most-pruned")


def precision_recall(order: Tensor, bad: Tensor, number: int) -> tuple[float, float]:
    """Share of the first `number` of `order` that are bad (bool [N]), and share of the bad that are among them."""
    hits = int(bad[order[:number]].sum())
    return hits / max(number, 1), hits / max(int(bad.sum()), 1)
