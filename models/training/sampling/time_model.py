"""How long a pruned run takes, before it (the schedule, simulated) and after it (its own seconds).

t = sum over epochs of ( T * batches(e) + V ) + overhead        T seconds a batch, V seconds of validation
saved = 1 - t_pruned / t_regular

`thesis_formula` is the closed form beside it (source, eq. 3.3-3.4, read as: every window prunes alike, whole blocks only).
"""

import statistics
from collections.abc import Sequence

from ..results import EpochRecord, Saving
from .config import PolicyConfig
from .schedule import most_pruned, prunes

BELOW_MEAN = 0.75
"""infobatch, before a run: share of samples whose loss is below the mean. Losses are skewed, so it is above a half."""


def trained_batches(samples: int, batch_size: int, processes: int = 1) -> int:
    """Batches of an epoch over `samples`; a last batch that leaves a process a single sample, or none, is not trained on."""
    batches, rest = divmod(samples, batch_size)
    least = processes * min(2, batch_size // processes)
    return batches if batches and rest < least else batches + 1


def simulate(policy: PolicyConfig, *, epochs: int, samples: int, below_mean: float = BELOW_MEAN) -> list[int]:
    """Samples that each epoch visits. Exact for fine-pruning (without require_count) and random; infobatch prunes of a share below_mean."""
    config = policy.for_epochs(epochs)
    share = below_mean if config.name == "infobatch" else 1.0
    pruned = round(share * most_pruned(config, samples))
    return [samples - pruned * prunes(config, epoch, epochs) for epoch in range(epochs)]


def predicted_saving(
    visits: Sequence[int],
    *,
    epochs: int,
    samples: int,
    batch_size: int,
    batch_s: float = 1.0,
    validation_s: float = 0.0,
    overhead_s: float = 0.0,
) -> float:
    """Share of the time of `epochs` full epochs that a run with `visits` samples an epoch saves; seconds in any one unit."""
    regular = epochs * (batch_s * trained_batches(samples, batch_size) + validation_s)
    pruned = sum(batch_s * trained_batches(visited, batch_size) + validation_s for visited in visits) + overhead_s
    return 1 - pruned / regular


def thesis_formula(policy: PolicyConfig, *, epochs: int) -> float | None:
    """Closed form: floor(E/W) windows of floor((W-start)/block) blocks, and those that the remainder E mod W has, times prune_epochs.

    It ignores the attenuation and the rest of a last block; None for policies without windows.
    """
    config = policy.for_epochs(epochs)
    if config.window is None or config.start is None:
        return None
    whole, rest = divmod(epochs, config.window)
    blocks = whole * ((config.window - config.start) // config.block) + max(0, rest - config.start) // config.block
    return config.fraction * blocks * config.prune_epochs / epochs


def saving_of_run(
    policy: PolicyConfig, history: Sequence[EpochRecord], *, epochs: int, samples: int, batch_size: int, processes: int = 1
) -> Saving | None:
    """Predicted beside measured for a finished run that was to take `epochs`; None where every sample was visited in every epoch."""
    visits = [record.visits for record in history]
    full = trained_visits(samples, batch_size, processes)
    if not history or (len(history) == epochs and min(visits) >= full):
        return None
    regular = [record for record in history if record.visits >= full]
    overhead = sum(record.policy_seconds for record in history)
    following = sum(record.rate_seconds for record in history)
    planned = visits if policy.name == "infobatch" or policy.require_count else simulate(policy, epochs=epochs, samples=samples)
    times = {"batch_s": 1.0}
    if regular:
        training = statistics.median(r.seconds - r.validation_seconds - r.policy_seconds - r.rate_seconds for r in regular)
        times = {
            "batch_s": training / trained_batches(samples, batch_size),
            "validation_s": statistics.median(record.validation_seconds for record in history),
            "overhead_s": overhead + following,
        }
    return Saving(
        policy=policy.name if policy.name != "none" else "stopped early",
        predicted=predicted_saving(planned[: len(history)], epochs=epochs, samples=samples, batch_size=batch_size, **times),
        thesis=thesis_formula(policy, epochs=epochs),
        measured=_measured([r.seconds for r in history], [r.seconds - r.policy_seconds - r.rate_seconds for r in regular], epochs),
        measured_cpu=_measured([r.cpu_seconds for r in history], [r.cpu_seconds - r.rate_cpu_seconds for r in regular], epochs),
        overhead_s=overhead,
        visits=sum(visits),
        regular_visits=epochs * full,
    )


def _measured(seconds: Sequence[float], full: Sequence[float], epochs: int) -> float | None:
    """1 - sum of all epochs / `epochs` times the median full one."""
    return 1 - sum(seconds) / (epochs * statistics.median(full)) if full and sum(full) > 0 else None


def trained_visits(samples: int, batch_size: int, processes: int = 1) -> int:
    """Samples that an epoch over `samples` trains on: all, or all but a last batch of one."""
    return min(samples, trained_batches(samples, batch_size, processes) * batch_size)
