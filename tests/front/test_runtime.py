"""The distribution for devices, built and installed alone: with what it requires, and nothing else that lies about here."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from fineprune.export.transform import pack, simplify
from support.onnx_graphs import OPSET, conv_graph, serialize
from support.reference import masked_conv2d
from support.tolerances import FLOAT32_SUMS

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import importlib, importlib.util, pkgutil, sys
import numpy as np
import fineprune
from fineprune.export.engine import Session

with Session("network.onnx", threads=2, fallback=False) as session:
    [y] = session.run(None, {"x": np.load("x.npy")})
np.save("y.npy", y)
for module in pkgutil.walk_packages(fineprune.__path__, "fineprune."):
    importlib.import_module(module.name)
foreign = ["torch", "torchvision", "onnxscript", "click", "rich", "safetensors", "PIL", "sklearn", "matplotlib", "pytest"]
print([name for name in foreign if importlib.util.find_spec(name)])
try:
    fineprune.compress
except ImportError as error:
    print(error)
"""


def project(name: str) -> dict:
    content: dict = tomllib.loads((ROOT / name).read_text())["project"]
    return content


def required(requirements: list[str]) -> dict[str, Distribution]:
    """The installed distributions that these requirements lead to, by name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[requirement.name] = distribution(requirement.name)
            waiting += [Requirement(line) for line in found[requirement.name].requires or ()]
    return found


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel and what it requires, linked from here: no index is asked."""
    folder = tmp_path_factory.mktemp("device")
    for name in ("src", "common", "ops", "export", "runtime"):
        shutil.copytree(ROOT / name, folder / "project" / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "project/runtime", check=True, capture_output=True)
    (wheel,) = (folder / "project/runtime/dist").glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    assert [path.read_bytes() for path in packages.glob("*.dist-info/licenses/*")] == [(ROOT / "LICENSE").read_bytes()]
    for found in required(project("runtime/pyproject.toml")["dependencies"]).values():
        for name in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            if not (packages / name).exists():
                (packages / name).symlink_to(Path(str(found.locate_file(name))))
    return folder / "venv/bin/python"


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_file_runs_where_nothing_else_is_installed(device: Path, tmp_path: Path, compiled: bool) -> None:
    random = np.random.default_rng(0)
    x, w = random.normal(size=(3, 5, 6, 7)).astype(np.float32), random.normal(size=(4, 5, 3, 3)).astype(np.float32)
    mask = random.random((5, 4, 5)) < 0.6
    bias = np.array([0.5, -1, 2, 0], np.float32)
    model = conv_graph((5, 6, 7), (4, 4, 5), w, bias, mask)
    assert simplify(model) == []
    pack(model, opset=OPSET)
    (tmp_path / "network.onnx").write_bytes(serialize(model))
    np.save(tmp_path / "x.npy", x)
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    environment |= {"NUMBA_DISABLE_JIT": str(int(not compiled)), "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([str(device), "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    absent, refusal = done.stdout.splitlines()
    assert absent == "[]"
    assert refusal == "fineprune.compress needs the distribution fineprune; fineprune-runtime only runs exported files"
    expected = masked_conv2d(x, w, bias, mask)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=FLOAT32_SUMS[0], atol=FLOAT32_SUMS[1])


def test_it_asks_for_what_fineprune_asks_for() -> None:
    """The same version, and the same bounds of the few packages."""
    whole, runtime = project("pyproject.toml"), project("runtime/pyproject.toml")
    assert runtime["version"] == whole["version"]
    assert runtime["requires-python"] == whole["requires-python"]
    assert {Requirement(line).name for line in runtime["dependencies"]} == {"numpy", "numba", "onnx", "onnxruntime"}
    assert set(runtime["dependencies"]) <= set(whole["dependencies"])
