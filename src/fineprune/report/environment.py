"""Where and how a bundle was made, and how to make it again."""

import json
from typing import Any

from .markup import code, details, note, section, table, text
from .recipe_of import CHECKPOINT, recipe_of
from .sources import Sources


def environment(sources: Sources) -> str:
    """Machines, packages, settings, and the commands."""
    facts, bench = sources.facts, sources.bench
    rows = [("fineprune", text(facts.get("fineprune", "not known")))]
    rows += [("network", text(_named(facts.get("model")))), ("data", text((facts.get("data") or {}).get("spec", "given in Python")))]
    rows += [("compressed on", text(_machine(facts["machine"])))]
    rows += [("latency on", text(_machine(bench["machine"])))] if bench else []
    packages = facts.get("packages") or {}
    rows += [("packages", text(", ".join(f"{name} {version}" for name, version in packages.items())))] if packages else []
    settings = details("All settings", code(json.dumps(facts.get("settings") or {}, indent=1)))
    return section("Environment and commands", table(["", ""], rows, kind="told"), _again(facts), settings, _commands(), name="environment")


def _machine(found: dict[str, Any]) -> str:
    """In one line, as far as it is known."""
    said = {"cpu": "{}", "usable_cores": "{} cores used", "system": "{}", "python": "Python {}", "commit": "commit {}"}
    return ", ".join(form.format(found[key]) for key, form in said.items() if found.get(key)) or "not known"


def _named(model: dict[str, Any] | None) -> str:
    if not model:
        return "given in Python"
    return " ".join([model["name"], *(f"{key}={value}" for key, value in model["args"].items())])


def _again(facts: dict[str, Any]) -> str:
    recipe = recipe_of(facts)
    if recipe is None:
        return note("No recipe can make this bundle again: its network or data were given in Python, or its settings belong to no recipe.")
    about = f"`fineprune run recipe.toml` compresses again; {CHECKPOINT} stands for the file of the trained network."
    return details("The recipe", note(about), code(recipe))


def _commands() -> str:
    lines = (
        "fineprune export BUNDLE --output network.onnx\n"
        "fineprune export BUNDLE --int8 --output int8.onnx\n"
        "fineprune bench BUNDLE --layers --json > bench.json\n"
        "fineprune report BUNDLE --bench bench.json --onnx network.onnx --onnx int8.onnx"
    )
    return details("The commands after it", code(lines))
