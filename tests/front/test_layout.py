"""The arrows between packages, the size of functions, and what a wheel contains."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import seams

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {package: ROOT / folder for package, folder in seams.PACKAGES.items()}
MODULES = seams.modules(ROOT)
MAY_IMPORT = {
    "fineprune.common": set(),
    "fineprune.ops": {"fineprune.common"},
    "fineprune.models": {"fineprune.common", "fineprune.ops"},
    "fineprune.calibrate": {"fineprune.common", "fineprune.ops"},
    "fineprune.compressor": {"fineprune.common", "fineprune.ops", "fineprune.calibrate"},
    "fineprune.export": {"fineprune.common", "fineprune.ops", "fineprune.calibrate", "fineprune.compressor"},
    "fineprune": set(FOLDERS),
}
WIDE = {
    *(
        "compress",
        "sensitivity",
        "profile",
        "load_data",
        "data_from_arrays",
        "to_onnx",
    ),  # public: their arguments are settings with defaults
    *("masked_conv2d", "_backward", "_backward_fake"),  # operators of torch.library: their schemas know no records
    "bench",  # a command: what its options make
}
"""The functions with more than 8 parameters: these and no others. The list becomes shorter, never longer."""
LONG: set[str] = set()
"""Functions of more than 60 lines, likewise."""


def modules(package: str) -> list[seams.Module]:
    """Those in the folder of a package."""
    return [module for module in MODULES if (ROOT / module.path).is_relative_to(FOLDERS[package])]


def package_of(name: str) -> str | None:
    """Which of ours a dotted name belongs to."""
    return next((package for package in FOLDERS if name == package or name.startswith(f"{package}.")), None)


def wrong_arrows(package: str, module: seams.Module) -> list[str]:
    return [name for name, _ in seams.imports(module) if package_of(name) not in {None, package, *MAY_IMPORT[package]}]


@pytest.mark.parametrize("package", FOLDERS)
def test_dependencies_point_one_way(package: str) -> None:
    assert modules(package)
    assert {module.path: names for module in modules(package) if (names := wrong_arrows(package, module))} == {}


@pytest.mark.parametrize(
    ("package", "line", "allowed"),
    [
        ("fineprune.models", "from fineprune.calibrate.collect import Source", False),
        ("fineprune.models", "import fineprune.compressor.bake", False),
        ("fineprune.models", "from fineprune import models, export", False),
        ("fineprune.models", "from fineprune.common.errors import RunError", True),
        ("fineprune.calibrate", "def f():\n    from .. import compressor", False),
        ("fineprune.compressor", "from fineprune.calibrate import collect", True),
        ("fineprune.compressor", "from fineprune.export.pack import pack", False),
        ("fineprune.common", "from fineprune.pipeline import run", False),
        ("fineprune.export", "from fineprune.pipeline import run", False),
        ("fineprune", "from fineprune.export import pack", True),
        ("fineprune.calibrate", "import models.zoo", True),
    ],
)
def test_the_reader_of_imports_can_tell(package: str, line: str, allowed: bool) -> None:
    module = seams.Module(f"{package}.module", "module.py", ast.parse(line), 1)
    assert (wrong_arrows(package, module) == []) == allowed


@pytest.mark.parametrize("package", FOLDERS)
def test_a_relative_import_exists_on_disk_as_it_reads(package: str) -> None:
    """Dots stay inside one top-level folder; across folders imports are absolute."""
    for module in modules(package):
        path = ROOT / module.path
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1]
                assert base.is_relative_to(FOLDERS[package]), f"{path}: {ast.unparse(node)}"
                target = base.joinpath(*(node.module or "").split("."))
                places = [target] if node.module else [base / alias.name for alias in node.names]
                found = all(place.is_dir() or place.with_suffix(".py").is_file() for place in places)
                assert found or ((base / "__init__.py").is_file() and not node.module), f"{path}: {ast.unparse(node)}"


DOOR = "ops/numba_door.py"
LINKER = "ops/machine_code.py"
"""What is documented of LLVM, where Numba is not loaded."""
DOCUMENTED = {"numba.config", "numba.from_dtype", "numba.njit", "numba.types"}
"""What everybody may take from Numba; the rest passes through the door."""


def test_what_numba_does_not_promise_passes_through_one_door() -> None:
    names = {(name, module.path) for module in MODULES for name, _ in seams.imports(module)}
    assert {path for name, path in names if name.split(".")[0] in {"numba", "llvmlite"} and name not in DOCUMENTED} == {DOOR, LINKER}


def test_modules_import_each_other_in_no_circle() -> None:
    assert seams.import_circles(MODULES, lazy=False) == []


@pytest.mark.parametrize(("wide", "known"), [(True, WIDE), (False, LONG)], ids=["parameters", "lines"])
def test_functions_have_at_most_8_parameters_and_60_lines(wide: bool, known: set[str]) -> None:
    """Keyword-only parameters and the options of commands count; compiled functions (Numba, Triton) are exempt."""
    beyond = seams.functions(MODULES, compiled=False, wide=wide)
    assert {place.split()[1] for place in beyond} == known


def test_every_package_says_that_it_is_typed() -> None:
    assert [package for package, folder in FOLDERS.items() if not (folder / "py.typed").is_file()] == []


def test_nothing_at_the_root_shadows_the_installed_package() -> None:
    assert not (ROOT / "fineprune").exists()
    assert not (ROOT / "fineprune.py").exists()


def test_the_wheel_has_one_top_level_name_and_every_module(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    for name in ("src", "common", "ops", "models", "calibrate", "compressor", "export"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = archive.read(metadata).decode().splitlines()
        licence = archive.read(metadata.replace("METADATA", "licenses/LICENSE"))
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {"License-Expression: Apache-2.0", "License-File: LICENSE", "Author: fineprune contributors"} <= set(fields)
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert {name.split("/")[0] for name in names} == {"fineprune"}
    for package, folder in FOLDERS.items():
        prefix = package.replace(".", "/")
        expected = {f"{prefix}/{(ROOT / module.path).relative_to(folder).as_posix()}" for module in modules(package)}
        assert expected <= set(names), sorted(expected - set(names))
        assert f"{prefix}/py.typed" in names
