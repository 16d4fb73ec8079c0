"""The user's own code: imported as Python would import it, and as often as it takes until it is mended."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fineprune.common.errors import RunError, UsageError
from fineprune.models.user_code import call_factory, load_factory
from fineprune.models.vision import prepare_torchvision

FAILS = "import not_installed_anywhere\n"
NET = "def net():\n    return 7\n"
IMPORTS_SUB = "from .sub import net\n"

BROKEN = {
    "the package itself, behind a part of it": (
        "own.sub:net",
        {"own/__init__.py": IMPORTS_SUB + FAILS, "own/sub.py": NET},
        "own/__init__.py",
    ),
    "a part of the package": ("own:net", {"own/__init__.py": IMPORTS_SUB, "own/sub.py": FAILS + NET}, "own/sub.py"),
    "a part below a part": (
        "own.a.sub:net",
        {"own/__init__.py": "", "own/a/__init__.py": IMPORTS_SUB + FAILS, "own/a/sub.py": NET},
        "own/a/__init__.py",
    ),
    "a file": ("own.py:net", {"own.py": FAILS + NET}, "own.py"),
    "a helper that lacks a name": (
        "own.py:net",
        {"own.py": "from own_helper import net\n", "own_helper.py": FAILS.replace("import", "#")},
        "own_helper.py",
    ),
    "a circle": (
        "own_a:net",
        {"own_a.py": "from own_b import other\n" + NET, "own_b.py": "from own_a import net\nother = 1\n"},
        "own_b.py",
    ),
    "only when it is called": (
        "own.py:net",
        {"own.py": "def net():\n    from own_helper import net\n    return net()\n", "own_helper.py": FAILS + NET},
        "own_helper.py",
    ),
}


@pytest.fixture
def clean_modules() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own", "own_a", "own_b", "own_helper", "fineprune_user_own")]:
        del sys.modules[name]


@pytest.mark.parametrize("case", BROKEN)
def test_what_failed_once_fails_alike_and_works_when_mended(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_modules: None
) -> None:
    spec, files, mended = BROKEN[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a mend within the same second has the same time stamp
    before = set(sys.modules)
    messages = []
    for _ in range(2):
        with pytest.raises(RunError) as caught:
            call_factory(spec, load_factory(spec))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not [name for name in set(sys.modules) - before if name.startswith("own.")]
    (tmp_path / mended).write_text(files[mended].replace(FAILS, "") if FAILS in files[mended] else NET + "other = 1\n")
    assert call_factory(spec, load_factory(spec)) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def net(:\n", r"own.py cannot be imported: SyntaxError: invalid syntax \(own.py, line 1\)$"),
        ("if True:\n\tx = 1\n        y = 2\n", r"TabError: .* \(own.py, line 3\)$"),
        ("# -*- coding: nope -*-\n", r"SyntaxError: unknown encoding: nope \(own.py, line 0\)$"),
        ("import own_helper\n", r"ZeroDivisionError: division by zero \(.*own_helper.py, line 2\)$"),
    ],
)
def test_where_your_code_fails_is_said_once(text: str, message: str, tmp_path: Path, clean_modules: None) -> None:
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "own_helper.py").write_text("import importlib\n1 / 0\n")
    with pytest.raises(RunError, match=message):
        load_factory(f"{tmp_path}/own.py:net")


def test_a_notebook_is_no_module() -> None:
    with pytest.raises(UsageError, match=r"no Python module named 'own.ipynb' .*; a notebook is not imported: save its cells"):
        load_factory("own.ipynb:net")


def test_modules_of_libraries_stay_when_your_code_fails(tmp_path: Path, clean_modules: None) -> None:
    (tmp_path / "own.py").write_text("import wave\nfrom fineprune.models import vision\n" + FAILS)
    sys.modules.pop("wave", None)
    with pytest.raises(RunError, match="not_installed_anywhere"):
        load_factory(f"{tmp_path}/own.py:net")
    assert "wave" in sys.modules and "fineprune.models.vision" in sys.modules


def test_your_own_code_imports_torchvision(tmp_path: Path) -> None:
    """In a fresh process, as it is for the command: torchvision is prepared, and not imported before somebody wants it."""
    (tmp_path / "own.py").write_text("def net():\n    from torchvision.models import resnet18\n    return resnet18.__module__\n")
    code = (
        "import sys; from fineprune.models.user_code import call_factory, load_factory; factory = load_factory('own.py:net'); "
        "assert 'torchvision' not in sys.modules; print(call_factory('own.py:net', factory))"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "torchvision.models.resnet\n", result.stderr


def test_torchvision_is_prepared_once() -> None:
    prepare_torchvision()
    finders = list(sys.meta_path)
    prepare_torchvision()
    assert sys.meta_path == finders
