"""The arrows between packages, the size of modules, and what a wheel contains."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "fineprune.common": ROOT / "src/fineprune/common",
    "fineprune.models": ROOT / "models",
    "fineprune.calibrate": ROOT / "calibrate",
    "fineprune.compressor": ROOT / "compressor",
    "fineprune.export": ROOT / "export",
    "fineprune": ROOT / "src/fineprune",
}
MAY_IMPORT = {
    "fineprune.common": set(),
    "fineprune.models": {"fineprune.common"},
    "fineprune.calibrate": {"fineprune.common"},
    "fineprune.compressor": {"fineprune.common", "fineprune.calibrate"},
    "fineprune.export": {"fineprune.common", "fineprune.calibrate", "fineprune.compressor"},
    "fineprune": {"fineprune.common", "fineprune.models", "fineprune.calibrate", "fineprune.compressor", "fineprune.export"},
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """(dotted name of the package that holds the module, file)."""
    folder = FOLDERS[package]
    for path in sorted(folder.rglob("*.py")):
        if package == "fineprune" and FOLDERS["fineprune.common"] in path.parents:
            continue
        yield ".".join([package, *path.relative_to(folder).parts[:-1]]), path


def imports(holder: str, source: str) -> Iterator[str]:
    """Dotted names that a module of the package `holder` imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = holder.split(".")[: len(holder.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_of(name: str) -> str | None:
    """Which of ours a dotted name belongs to."""
    return next((package for package in FOLDERS if name == package or name.startswith(f"{package}.")), None)


def wrong_arrows(package: str, holder: str, source: str) -> list[str]:
    return [name for name in imports(holder, source) if package_of(name) not in {None, package, *MAY_IMPORT[package]}]


@pytest.mark.parametrize("package", FOLDERS)
def test_dependencies_point_one_way(package: str) -> None:
    found = list(modules(package))
    assert found
    wrong = {str(path.relative_to(ROOT)): names for holder, path in found if (names := wrong_arrows(package, holder, path.read_text()))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("package", "line", "allowed"),
    [
        ("fineprune.models", "from ..calibrate.collect import Source", False),
        ("fineprune.models", "import fineprune.compressor.bake", False),
        ("fineprune.models", "from fineprune import models, export", False),
        ("fineprune.models", "from ..common.errors import RunError", True),
        ("fineprune.calibrate", "def f():\n    from .. import compressor", False),
        ("fineprune.compressor", "from ..calibrate import collect", True),
        ("fineprune.compressor", "from ..export.pack import pack", False),
        ("fineprune.common", "from ..pipeline import run", False),
        ("fineprune.export", "from ..pipeline import run", False),
        ("fineprune", "from .export import pack", True),
        ("fineprune.calibrate", "import models.zoo", True),
    ],
)
def test_the_reader_of_imports_can_tell(package: str, line: str, allowed: bool) -> None:
    assert (wrong_arrows(package, package, line) == []) == allowed


@pytest.mark.parametrize("package", FOLDERS)
def test_modules_stay_under_400_lines(package: str) -> None:
    assert {path.name: lines for _, path in modules(package) if (lines := len(path.read_text().splitlines())) >= 400} == {}


def test_every_package_says_that_it_is_typed() -> None:
    assert [package for package, folder in FOLDERS.items() if package != "fineprune.common" and not (folder / "py.typed").is_file()] == []


def test_nothing_at_the_root_shadows_the_installed_package() -> None:
    assert not (ROOT / "fineprune").exists()
    assert not (ROOT / "fineprune.py").exists()


def test_the_wheel_has_one_top_level_name_and_every_module(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    for name in ("src", "models", "calibrate", "compressor", "export"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    (copy / "README.md").touch()
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"fineprune"}
    for package, folder in FOLDERS.items():
        prefix = package.replace(".", "/")
        expected = {f"{prefix}/{path.relative_to(folder).as_posix()}" for _, path in modules(package)}
        assert expected <= set(names), sorted(expected - set(names))
        assert package == "fineprune.common" or f"{prefix}/py.typed" in names
