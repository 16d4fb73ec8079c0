"""Top-K and threshold rules on score tensors: pure functions, no layers, no files."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def keep_count(size: int, ratio: float) -> int:
    """K = size - round(ratio * size): how many of `size` stay when `ratio` of them is pruned; at least one, or the row would be cut off."""
    return max(1, size - round(ratio * size))


def top_k(scores: Tensor, keep: int, *, tie_break: Tensor | None = None) -> Tensor:
    """True at the `keep` largest of each row: scores[R,P] -> bool [R,P]. Ties go to the larger `tie_break`, then to the smaller index."""
    order = torch.arange(scores.shape[1]).expand(scores.shape)
    for key in (tie_break, scores):
        if key is not None:
            ranks = key.gather(1, order).sort(dim=1, descending=True, stable=True).indices
            order = order.gather(1, ranks)
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order[:, :keep], True)


def rows_reserved(scores: Tensor, costs: Tensor, share: float) -> Tensor:
    """`scores` [R,...] with infinity at the best `share` of each row (at least one) by score per cost: those come before all others."""
    value = torch.where(costs > 0, scores.double() / costs.clamp_min(1), -torch.inf).flatten(1)
    best = top_k(value, max(1, round(share * value.shape[1]))).view(scores.shape)
    return scores.masked_fill(best & (costs > 0), torch.inf)


def per_cost(scores: Tensor, costs: Tensor, floor: float) -> Tensor:
    """Scores by cost, flat float64: infinity for the best fraction `floor` (above 0: at least one), -infinity for what costs nothing.

    What scores -infinity (a mask has dropped it already) is not reserved, even where less than the floor is left.
    """
    cost = costs.double().flatten()
    value = torch.where(cost > 0, scores.double().flatten() / cost.clamp_min(1), -torch.inf)
    least = max(1, round(floor * value.numel())) if floor else 0
    return value.masked_fill(top_k(value[None], least)[0] & (value > -torch.inf), torch.inf)


def largest_prefix(size: int, fits: Callable[[int], bool]) -> int:
    """The largest k in [0,size] with fits(k), where whatever holds for k holds for less."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def global_threshold(scores: Mapping[str, Tensor], costs: Mapping[str, Tensor], ratio: float, floor: float = 0.0) -> dict[str, Tensor]:
    """Keep the elements of highest score per cost, over all layers at once, until (1 - ratio) of the total cost is kept.

    scores and costs have the same shapes; elements of no cost (nothing would be computed for them) are dropped. In every layer
    the best fraction `floor` of its elements stays (above 0: at least one), so that no layer is cut off; the rest of the budget is shared.
    Returns bool masks of the same shapes.
    """
    value = torch.cat([per_cost(score, costs[name], floor) for name, score in scores.items()])
    cost = torch.cat([costs[name].double().flatten() for name in scores])
    order = value.argsort(descending=True, stable=True)
    budget = (1 - ratio) * float(cost.sum())
    affordable = cost[order].cumsum(0) <= budget * (1 + 1e-12)
    kept = torch.zeros(value.numel(), dtype=torch.bool)
    kept[order] = affordable | (value[order] == torch.inf)
    kept &= cost > 0
    pieces = kept.split([score.numel() for score in scores.values()])
    return {name: piece.view(score.shape) for (name, score), piece in zip(scores.items(), pieces, strict=True)}
