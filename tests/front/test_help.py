"""The command line answers for itself, fast and by its own help texts."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fineprune.cli import command
from support.command import fineprune, succeed

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    *("bench", "calibrate", "compare", "compress", "eval", "export", "front", "macs", "methods", "models", "plan-training", "profile"),
    *("report", "run", "sensitivity", "train"),
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fineprune.__main__ import main; code = main(['--help']); "
        "heavy = {'torch', 'numpy', 'rich', 'onnx', 'onnxruntime', 'torchvision', 'PIL'} & set(sys.modules); "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "compress" in result.stdout


def test_no_arguments_is_help() -> None:
    assert fineprune() == fineprune("--help")
    assert "Usage: fineprune" in succeed().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    text = succeed(name, "-h").out
    assert text.startswith(f"Usage: fineprune {name}")
    assert "None" not in text


@pytest.mark.parametrize("name", ["train", "compress"])
def test_help_shows_the_real_defaults(name: str) -> None:
    from fineprune.job import finetune_config
    from fineprune.models.training.config import TrainConfig

    config = TrainConfig() if name == "train" else finetune_config()
    shown = {
        option.name: option.help.partition("[default: ")[2].rstrip("]")
        for option in command.commands[name].params
        if isinstance(option, click.Option) and "[default: " in (option.help or "")
    }
    assert shown == {field: str(getattr(config, field)) for field in shown}
    assert {"epochs", "batch_size", "lr", "weight_decay", "schedule"} <= shown.keys()


def test_version() -> None:
    assert succeed("--version").out.startswith("fineprune, version ")


@pytest.mark.parametrize("name", ["train", "compress", "calibrate"])
def test_options_stand_in_sections_with_those_for_research_last(name: str) -> None:
    lines = succeed(name, "--help").out.splitlines()
    sections = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert sections[0] == "Network and data:" and sections[-1] == "For research:" and "Result:" in sections
    research = lines[lines.index("For research:") :]
    assert any("-layer" in line or "--trainer" in line for line in research)
    assert not any(line.startswith(("  --prune", "  --epochs", "  --output", "  --data")) for line in research)


def phrase_problem(text: str | None) -> str | None:
    """Why a help text is no whole phrase that stands by itself, or None where it is one."""
    sentences = (text or "").partition("  [default: ")[0].strip()
    if not re.match(r"[A-Z]|`[^`]+`|'[^']+'", sentences):
        return "begins neither with a capital letter nor with something quoted"
    if not sentences.endswith("."):
        return "does not end with a full stop"
    if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\(.*?\)", "", sentences))) < 3:
        return "has fewer than three words"
    return None


def test_every_option_is_explained_by_a_phrase() -> None:
    options = {
        f"{entry.name} {param.opts[0]}": (param, param.get_help_record(click.Context(entry)))
        for entry in (command, *command.commands.values())
        for param in entry.params
        if isinstance(param, click.Option)
    }
    assert len(options) > 100
    shown = {name: re.sub(r" *\[(default|required).*\]$", "", record[1]) for name, (_, record) in options.items() if record}
    assert {name: problem for name, text in shown.items() if (problem := phrase_problem(text))} == {}
    assert [name for name, (option, _) in options.items() if option.multiple != ("(repeatable)" in shown[name])] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_explained_by_a_phrase_and_says_what_its_arguments_are(name: str) -> None:
    entry = command.commands[name]
    problems = [phrase_problem(text) for text in (entry.short_help, *(entry.help or "").split("\n\n"))]
    assert problems == [None] * len(problems)
    arguments = [param.human_readable_name for param in entry.params if isinstance(param, click.Argument)]
    assert [argument for argument in arguments if not re.search(rf"\b{argument} is a ", entry.help or "")] == []
    lines = succeed(name, "--help").out.splitlines()
    assert [line for line in lines if line.strip(" []") in arguments] == [], "a line without an explanation"


def texts_of_arguments(source: str) -> dict[str, str | None]:
    """Name and help text of every argument that a script gives argparse; those that it hides are left out."""
    found: dict[str, str | None] = {}
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            text = next((keyword.value for keyword in call.keywords if keyword.arg == "help"), None)
            if not isinstance(text, ast.Attribute):
                parts = text.values if isinstance(text, ast.JoinedStr) else [] if text is None else [text]
                found[ast.literal_eval(call.args[0])] = (
                    "".join(part.value if isinstance(part, ast.Constant) else "it" for part in parts) or None
                )
    return found


def test_every_argument_of_a_benchmark_is_explained_by_a_phrase() -> None:
    scripts = {path.name: texts_of_arguments(path.read_text()) for path in (ROOT / "benchmarks").glob("*.py")}
    assert sum(map(len, scripts.values())) > 50
    problems = {f"{name} {key}": phrase_problem(text) for name, texts in scripts.items() for key, text in texts.items()}
    assert {key: problem for key, problem in problems.items() if problem} == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "capital"),
        ("Of sgd.", "three words"),
        ("Interleaved rounds.", "three words"),
        ("Threads (of all that there are).", "three words"),
        ("infobatch: share of samples below the mean.", "capital"),
        ("Show the traceback of a failure", "full stop"),
        ("Show the traceback of a failure.", None),
        ("`thesis` reproduces the source.  [default: taylor]", None),
    ],
)
def test_the_check_of_phrases_can_tell(text: str | None, problem: str | None) -> None:
    found = phrase_problem(text)
    assert found is None if problem is None else problem in (found or "")


def test_pruning_methods_are_listed_from_the_registry() -> None:
    from fineprune.compressor.criteria import criteria

    table = succeed("methods").out
    told = "".join(succeed("compress", "--help").out.split())  # a name may go on in the next line
    assert len(criteria()) >= 8
    for method in criteria():
        row = next(line for line in table.splitlines() if line.split()[:2] == ["│", method.name] and f"--{method.unit.kind}-" in line)
        assert method.summary in row
        assert method.name in told
