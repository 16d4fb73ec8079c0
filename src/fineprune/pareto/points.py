"""The points of a front, in memory and in the file that `fineprune front` writes.

q is in front where no p has  t_p <= t_q,  a_p >= a_q  and one of both is not equal        t: latency, a: accuracy (or -metric)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fineprune.common.errors import UsageError
from fineprune.common.files import read_json
from fineprune.common.form import Maybe, Within, require

if TYPE_CHECKING:
    from ..asked import Asked

FRONT = "front.json"
_NUMBER = Within(float, -1e18, 1e18)
FORM = {
    "points": [
        {
            **{"name": str, "point": int, "network": str, "int8": bool, "front": bool, "reliable": Maybe(bool)},
            "settings": Maybe({"compress": {"fwp": Maybe({"unit": Maybe(str)})}, "finetune": {}}),
            **dict.fromkeys(("pruned", "milliseconds", "accuracy", "accuracy_before", "macs", "bytes"), Maybe(_NUMBER)),
        }
    ],
    **{"measure": str, "unit": Maybe(str), "higher_is_better": bool, "settings": Maybe({})},
    **{"split": Maybe(str), "timed": Maybe({"batch_sizes": [int], "threads": [int]}), "machine": Maybe({"cpu": Maybe(str)})},
}
"""Of what the file holds."""
_AGAIN = "make it with `fineprune front`"


def front_of(points: Sequence[Mapping[str, Any]], *, higher_is_better: bool = True) -> list[int]:
    """Places of those that no other beats; points without milliseconds or accuracy are left out."""
    sign = -1 if higher_is_better else 1
    known = {
        place: (point["milliseconds"], sign * point["accuracy"])
        for place, point in enumerate(points)
        if point.get("milliseconds") is not None and point.get("accuracy") is not None
    }
    return [place for place, own in known.items() if not any(t <= own[0] and a <= own[1] and (t, a) != own for t, a in known.values())]


def front_file(path: Path | str) -> Path:
    """The file itself, or the one in the folder of `fineprune front`."""
    return Path(path) / FRONT if Path(path).is_dir() else Path(path)


def read_front(path: Path | str) -> dict[str, Any]:
    """What is in `front_file`; RunError for another file."""
    path = front_file(path)
    facts = read_json(path)
    require(facts, FORM, str(path), _AGAIN)
    found: dict[str, Any] = facts
    return found


def check_pair(front: Path | str | None, point: int | None) -> None:
    """UsageError where one of both is given."""
    if (front is None) != (point is None):
        raise UsageError("front and point belong together: a file of `fineprune front`, and the number of a point there")


def point_of(front: Path | str | None, point: int | None) -> "Asked | None":
    """What the point of this number was asked for; None where neither is given. UsageError for a number that is not there."""
    from ..asked import Asked

    check_pair(front, point)
    if front is None:
        return None
    found = {one["point"]: one for one in read_front(front)["points"]}
    able = [str(number) for number, one in found.items() if one.get("settings")]
    if isinstance(point, bool) or str(point) not in able:
        dense = "is the network as it is; choose" if point in found else "is not there; it has"
        raise UsageError(f"point {point!r} of {front} {dense} one of {', '.join(able) or 'none'}")
    compress, finetune = (_without_places(found[point]["settings"][name]) for name in ("compress", "finetune"))
    return Asked.of(compress, finetune)


def _without_places(table: Mapping[str, Any]) -> dict[str, Any]:
    """Which files are read, and which addresses called, is for the user to say, and not for a file."""
    kept = {name: value for name, value in table.items() if name != "times"}
    if isinstance(servers := kept.get("asynchronous"), Mapping):
        kept["asynchronous"] = {name: value for name, value in servers.items() if name != "address"}
    return kept
