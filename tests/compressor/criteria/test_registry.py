"""The table of methods: what the code declares is what people read."""

from pathlib import Path

import pytest

from fineprune.compressor.criteria import criteria, criterion
from fineprune.compressor.masks import KINDS
from fineprune.compressor.masks.kind import buffer
from fineprune.compressor.units import Unit
from fineprune.ops.mask_facts import MASKS

README = Path(__file__).resolve().parents[3] / "compressor" / "README.md"


@pytest.mark.parametrize("method", criteria(), ids=lambda method: f"{method.unit.kind}-{method.name}")
def test_every_method_is_in_the_readme_as_it_declares_itself(method) -> None:
    data = "weights" if method.collects is None else "labels" if method.reads_labels else "images"
    cells = [
        f"`{method.name}`",
        f"`--{method.unit.kind}-criterion`",
        f"{method.unit.name}s",
        ", ".join(method.scopes),
        data,
        method.summary,
    ]
    assert f"| {' | '.join(cells)} |" in README.read_text().splitlines()


@pytest.mark.parametrize("method", criteria(), ids=lambda method: f"{method.unit.kind}-{method.name}")
def test_every_method_opens_with_its_equation_and_is_found_by_name(method) -> None:
    from sys import modules

    text = modules[type(method).__module__].__doc__ or ""
    assert f"`{method.name}`" in text.splitlines()[0] or f"`{method.name}`" in text
    assert " = " in text and ("arXiv" in text or "thesis" in text) and "Use:" in text
    assert isinstance(method.unit, Unit) and method.unit.kind in {kind.name for kind in KINDS}
    assert criterion(method.unit.kind, method.name) is method
    assert criterion(method.unit.kind, "no such method") is None and criterion(method.unit.kind, None) is None


def test_what_layers_call_their_masks_is_known_below() -> None:
    assert tuple(buffer(kind) for kind in KINDS) == MASKS
