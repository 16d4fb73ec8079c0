"""benchmarks/seams.py on a small checkout with one of each."""

import pytest
import seams

FILES = {
    "common/__init__.py": "",
    "common/a.py": "from typing import TYPE_CHECKING\nfrom fineprune.common.b import f\nif TYPE_CHECKING:\n    from .c import g\n",
    "common/b.py": "import fineprune.common.a\ndef f(): pass\n",
    "common/c.py": "import numba.core.types\ndef g():\n    from .a import f\n",
    "compressor/kinds.py": '"""taylor"""\nffp_mask = "l2"\nhelp = "ranked by apoz, or not"\nother = "ffpx"\n',
    "export/engine/fuse.py": "def f(layer):\n    return isinstance(layer, int)\n",
    "export/engine/run.py": """
def f(layer, meta, m):
    x = meta[m + 13], meta[m], meta[m + f]
    return isinstance(layer.x, int), isinstance(m, int), x
""",
    "export/engine/wide.py": "def wide(a, b, c, d, *, e, f, g, h, **i): pass\nclass C:\n    def fits(self, a, b, c, d, e, f, g, h): pass\n",
    "ops/compiled.py": "\n".join(
        [
            "@jit(inline=True)\ndef one(a, b, c, d, e, f, g, h, i): pass",
            "def make():\n    def two(a, b, c, d, e, f, g, h, i):" + "\n        a = b" * 70 + "\n    return njit(fast=True)(two)",
            "def long():" + "\n    x = 1" * 60,
            "at = twins.at if config.DISABLE_JIT else _at",
        ]
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, seams.Places]:
    """The counts of FILES."""
    folder = tmp_path_factory.mktemp("checkout")
    for name, source in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    return seams.counts(seams.modules(folder))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        ("files that name a criterion or mask kind by a string that is the name", ["compressor/kinds.py: l2"]),
        ("files that name a criterion or mask kind as a word of a longer string", ["compressor/kinds.py: apoz"]),
        ("files that name a criterion or mask kind as a word of an identifier", ["compressor/kinds.py: ffp"]),
        ("isinstance(layer outside engine/ops and fusion", ["export/engine/run.py:4: isinstance(layer.x, int)"]),
        ("meta[... + number]", ["export/engine/run.py:3: meta[m + 13]"]),
        ("functions with more than 8 parameters", ["export/engine/wide.py:1: wide (9)"]),
        ("compiled functions with more than 8 parameters", ["ops/compiled.py:2: one (9)", "ops/compiled.py:4: two (9)"]),
        ("functions of more than 60 lines", ["ops/compiled.py:76: long (61)"]),
        ("compiled functions of more than 60 lines", ["ops/compiled.py:4: two (71)"]),
        ("import circles", ["fineprune.common.a <-> fineprune.common.b"]),
        ("import circles with imports in functions and for types", ["fineprune.common.a <-> fineprune.common.b <-> fineprune.common.c"]),
        ("aliases by DISABLE_JIT", ["ops/compiled.py:137: at"]),
        ("modules that import Numba's private parts", ["common/c.py"]),
    ],
)
def test_counts(places: dict[str, seams.Places], count: str, expected: list[str]) -> None:
    assert places[count] == expected


def test_two_checkouts_stand_side_by_side(places: dict[str, seams.Places]) -> None:
    rows = seams.table({"before": places, "after": {name: [] for name in places}}).splitlines()
    assert len(rows) == 2 + len(places)
    assert f"| 2 | modules | {len(FILES)} | 0 |" in rows
