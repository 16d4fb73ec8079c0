"""How figures that were measured are written."""


def written(value: float, unit: str | None = None) -> str:
    """With its unit; None stands for a share, which is written in per cent."""
    return f"{value:.2%}" if unit is None else f"{value:.4g} {unit}".rstrip()


def milliseconds(value: float | None) -> str:
    """Without the unit; empty for None."""
    return "" if value is None else _short(value)


def size(count: float | None) -> str:
    """Of a file of `count` bytes; empty for None."""
    if count is None:
        return ""
    return f"{_short(count / 1e6)} MB" if count >= 1e6 else f"{_short(count / 1e3)} kB"


def setting(batch_size: int, threads: int) -> str:
    """What a latency was measured with."""
    return f"batch {batch_size}, {threads} thread{'s' * (threads > 1)}"


def _short(value: float) -> str:
    """With three figures, or whole."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"
