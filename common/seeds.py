"""Seeds: one range for all of them, which torch's and NumPy's generators take and from which others can be derived."""

from .errors import UsageError

LARGEST_SEED = 1 << 48


def check_seed(seed: object) -> None:
    """UsageError for what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed is a whole number of at least 0 and at most {LARGEST_SEED}, got {seed!r:.80}")
