"""How a measured figure is written."""


def written(value: float, unit: str | None = None) -> str:
    """With its unit; None stands for a share, which is written in per cent."""
    return f"{value:.2%}" if unit is None else f"{value:.4g} {unit}".rstrip()
