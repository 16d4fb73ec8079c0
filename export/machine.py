"""Facts that a measurement must name: processor, cores, versions, commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fineprune.common.cores import usable_cores

_PACKAGES = ("fineprune", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "numba")


def machine_facts() -> dict[str, Any]:
    """JSON-able: cpu, architecture, cores (logical, usable by this process), system, python, package versions, commit."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": package_versions(),
        "commit": commit(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that influence results."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the fineprune checkout that runs, "+changes" where files differ from it; None for an installed package."""
    folder = Path(__file__).resolve().parent
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or not _is_ours(Path(top) / "pyproject.toml"):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    changed = _git(Path(top), "status", "--porcelain", "--untracked-files=no")
    return None if head is None else head + ("+changes" if changed else "")


def _is_ours(pyproject: Path) -> bool:
    # An installed package may lie in a virtual environment inside the repository of somebody's own project.
    return pyproject.is_file() and 'name = "fineprune"' in pyproject.read_text(encoding="utf-8")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if models:
        return models[0]
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _sysctl(name: str) -> str | None:
    try:
        answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
