"""The engine's own tests."""

import pytest

from fineprune.export.engine.passes import elsewhere


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine can compute runs in the engine, also where ONNX Runtime is faster; tests of that choice are marked `elsewhere`."""
    if not request.node.get_closest_marker("elsewhere"):
        monkeypatch.setattr(elsewhere, "placed", lambda steps, boxes: steps)
        monkeypatch.setattr(elsewhere, "as_a_whole", lambda layers, plans, boxes: False)
