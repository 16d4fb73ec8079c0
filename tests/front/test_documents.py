"""The documents say what is so: sections that the code cites, links, worked examples, version and licence."""

import re
import shlex
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import seams
import torch

from fineprune.models.vision import prepare_torchvision
from support.command import succeed

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = re.compile(r"(^|/)(\.|runs/|build/|dist/)")
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not HIDDEN.search(path.relative_to(ROOT).as_posix()))
CITATION = re.compile(r"methods\.md(?:,? sections? ([0-9]+[a-z]?(?:(?:, | and )[0-9]+[a-z]?)*))?")


def sections(text: str) -> set[str]:
    """The numbers of the headings of a document."""
    return set(re.findall(r"^## ([0-9]+[a-z]?)\. ", text, re.MULTILINE))


def cited(text: str) -> Iterator[str]:
    """Numbers of the sections of methods.md that `text` cites; "?" for a citation without one."""
    for match in CITATION.finditer(re.sub(r"\s+", " ", text)):
        yield from re.split(", | and ", match[1]) if match[1] else "?"


def test_every_section_of_the_methods_that_code_cites_is_there() -> None:
    there = sections((ROOT / "docs/methods.md").read_text())
    found = {module.path: set(cited((ROOT / module.path).read_text())) for module in seams.modules(ROOT)}
    assert {name: numbers - there for name, numbers in found.items() if numbers - there} == {}
    assert {"1", "1b", "2", "3"} <= set().union(*found.values())


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("see methods.md section 1b).", ["1b"]),
        ("(docs/methods.md sections 1, 1b\n and 2)", ["1", "1b", "2"]),
        ("methods.md section 1, thesis eq. 5.4", ["1"]),
        ("methods.md, section 7", ["7"]),
        ("as in methods.md", ["?"]),
        ("compressor/README.md section 4", []),
    ],
)
def test_the_reader_of_citations_can_tell(text: str, numbers: list[str]) -> None:
    assert list(cited(text)) == numbers


def test_the_worked_examples_of_the_methods_are_true() -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/methods.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 7
    source = "\n".join(examples)
    assert source.count("assert ") > 10
    exec(compile(source, "docs/methods.md", "exec"), {})


@pytest.mark.parametrize(
    ("page", "written"),
    [
        ("docs/tasks.md", "classifier.onnx"),
        ("docs/inputs.md", "backbone.onnx"),
        ("docs/targets.md", "chosen.onnx"),
        ("docs/front.md", "chosen.onnx"),
    ],
)
def test_a_how_to_in_python_runs_as_it_stands(page: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_torchvision()
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        exec(compile("\n".join(blocks), page, "exec"), {})
    assert len(blocks) >= 2 and (tmp_path / written).is_file()


def test_the_how_to_of_onnx_files_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(python)?\n(.*?)^```", (ROOT / "docs/onnx.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's older exporter
        for language, block in blocks:
            if language:
                exec(compile(block, "docs/onnx.md", "exec"), names)
                continue
            for line in block.splitlines():
                succeed(*shlex.split(line.removeprefix("fineprune ")))
    assert len(blocks) == 3 and all((tmp_path / name).is_file() for name in ("small.onnx", "small.html", "smaller.onnx"))


def links(path: Path) -> Iterator[str]:
    """Targets of the links and pictures of a document that are no addresses."""
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(path: Path) -> set[str]:
    """How headings of a document are linked to: in lower case, without punctuation, hyphens for blanks."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_documents_are_found_with_their_links() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert {"README.md", "docs/methods.md", "compressor/README.md"} <= names
    assert sum(len(list(links(path))) for path in DOCUMENTS) > 30


def test_the_citation_is_of_this_version_and_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    for field in ("version", "license"):
        assert re.findall(rf"^{field}: (.*)$", citation, re.MULTILINE) == [project[field]]
    assert f"  - name: {project['authors'][0]['name']}\n" in citation
