"""Which epochs prune, and how many samples they leave out at most: what is known before a run.

w = e // W,  pos = e % W                          (epochs e count from 0)
start_0 = start,  start_w = int(start_{w-1} / attenuation)
epoch e prunes  <=>  pos >= start_w  and  e % block < prune_epochs          block_from=start: (pos - start_w) % block
infobatch       <=>  1 <= e < floor((1 - full_share) * epochs)              (no losses are known before the first epoch)
"""

import math

from .config import PolicyConfig


def start_of_window(config: PolicyConfig, window: int) -> int:
    """start_w for window w >= 0. The division rounds down once per window, as the attenuated start is a whole epoch."""
    start = config.start or 0
    for _ in range(window):
        start = int(start / config.attenuation)
    return start


def prunes(config: PolicyConfig, epoch: int, epochs: int) -> bool:
    """Whether `epoch` (0-based, of `epochs`) may leave samples out. `config` has its window and start (`for_epochs`)."""
    if config.name == "none":
        return False
    if config.name == "infobatch":
        return 1 <= epoch < math.floor((1 - config.full_share) * epochs + 1e-9)
    if config.window is None:
        raise ValueError("the policy's window is not resolved; use for_epochs")
    window, position = divmod(epoch, config.window)
    start = start_of_window(config, window)
    counted = epoch if config.block_from == "run" else position - start
    return position >= start and counted % config.block < config.prune_epochs


def most_pruned(config: PolicyConfig, samples: int) -> int:
    """Samples that a pruned epoch leaves out: exactly (fine-pruning, random) or at most (require_count, infobatch)."""
    return round((config.drop if config.name == "infobatch" else config.fraction) * samples) if config.name != "none" else 0
