"""The rows of benchmarks/data_pruning.py: what differs from the regular run, and the settings that follow."""

from typing import Any

from fineprune.models.training import TrainConfig

STRONG = {"name": "fine-pruning", "fraction": 0.45}
LATE = {"name": "fine-pruning", "fraction": 0.55, "window": 1.0, "start": 0.5, "block": 1, "prune_epochs": 1}
AUTO = {"schedule": "auto"}


def _orders(name: str, policy: dict[str, Any], suffix: str = "", **others: Any) -> dict[str, dict[str, Any]]:
    """One row an order; that of the source's has no mark of its own."""
    own = {"worst": name, "easiest": f"{name}-easiest", "random": f"{name}-random"}
    return {f"{row}{suffix}": {"policy": {**policy, "order": order}, **others} for order, row in own.items()}


ROWS: dict[str, dict[str, Any]] = {
    "regular": {},
    **_orders("fine-pruning", {"name": "fine-pruning"}),
    **_orders("fine-pruning", {"name": "fine-pruning"}, "+auto-lr", **AUTO),
    **_orders("strong", STRONG),
    **_orders("strong", STRONG, "+auto-lr", **AUTO),
    **_orders("late", LATE),
    **_orders("late-stop", LATE, stopped=0.80),
    "infobatch": {"policy": {"name": "infobatch"}},
    "infobatch+auto-lr": {"policy": {"name": "infobatch"}, **AUTO},
    "auto-lr": AUTO,
    **{f"equal-{share}": {"squeezed": share / 100} for share in (85, 75, 65, 60, 50)},
    **{f"stop-{share}": {"stopped": share / 100} for share in (85, 75, 65, 60, 50)},
}
"""Row -> what differs from the regular run. `strong` prunes 45 % instead of the source's 25 %.

`late` prunes in every epoch from the first milestone on, by the counts of all epochs before; its window and start are shares of the epochs.
`late-stop` ends after 80 % of them, one epoch (of 20) after the second milestone.
"""
QUICK_ROWS = ("regular", "fine-pruning", "strong", "strong+auto-lr", "infobatch", "strong-random", "late", "equal-75", "stop-75")
EQUAL_TIME = tuple(row for row in ROWS if row.startswith(("equal-", "stop-")))
LR = {"lenet": 0.05, "vgg13": 0.05, "vgg16": 0.05, "vgg19": 0.05}


def config_of(network: str, row: str, seed: int, *, epochs: int, batch_size: int, noise: float, training: dict[str, Any]) -> TrainConfig:
    """The source's recipe: SGD with momentum 0.9, a tenth of the rate after half and three quarters of the epochs; `training` replaces
    settings of it, whatever the row (its `auto_lr` where the row has the automatic rate)."""
    changes = dict(ROWS[row])
    epochs = round(epochs * changes.pop("squeezed", 1.0))
    schedule: dict[str, Any] = {"schedule": "multistep", "milestones": (epochs // 2, epochs * 3 // 4)}
    if "policy" in changes:
        shares = {name: max(1, round(epochs * value)) for name, value in changes["policy"].items() if name in ("window", "start")}
        changes["policy"] = {**changes["policy"], **shares}
    epochs = round(epochs * changes.pop("stopped", 1.0))
    common = {"lr": LR.get(network.partition(":")[0], 0.1), "weight_decay": 5e-4, "warmup_epochs": 1.0, **training}
    if changes.get("schedule") == "auto":
        schedule = {}
    else:
        common.pop("auto_lr", None)
    return TrainConfig(epochs=epochs, batch_size=batch_size, seed=seed, record_losses=noise > 0, **common, **schedule, **changes)


def stops_of(row: str, rows: list[str]) -> dict[float, str]:
    """Those of `rows` that are `row` stopped early, by the share of its epochs: they are its first epochs, bit for bit."""
    stopped = {other: ROWS[other]["stopped"] for other in rows if "stopped" in ROWS[other] and "stopped" not in ROWS[row]}
    return {share: other for other, share in stopped.items() if {k: v for k, v in ROWS[other].items() if k != "stopped"} == ROWS[row]}
