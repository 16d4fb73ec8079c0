"""How closed the seams of a checkout are: counts of what one must touch to add a kind, and of what makes code hard to read.

    python benchmarks/seams.py FOLDER [FOLDER] [--json FILE] [--list COUNT]

Prints a Markdown table, two checkouts side by side; --list prints the places of one count (its number in the table). Only product code
is read: the packages, without tests and benchmarks. Names of criteria and mask kinds (NAMES) are counted in three ways, each in files: a
string that is the name; the name as a word of a longer string that is no docstring (messages and help texts, too); the name as a word of an
identifier (`ffp_mask`). Compiled functions are those under a decorator of Numba or Triton, and the functions inside them. An import circle
is a set of modules that import each other while they are loaded; imports inside functions and under TYPE_CHECKING are counted apart.
"""

import argparse
import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    **{f"fineprune.{name}": name for name in ("common", "ops", "models", "calibrate", "compressor", "export")},
    "fineprune": "src/fineprune",
}
"""Dotted name -> folder of a checkout; earlier checkouts have `common` within src/fineprune, and no `ops`."""
NAMES = ("ffp", "fwp", "taylor", "l1", "l2", "apoz", "wis", "wis-signed", "magnitude", "fpgm")
PRIVATE = ("numba.core", "numba.np", "numba.misc", "numba.extending", "numba.cpython", "llvmlite")
COMPILED = re.compile(r"^_*(n?jit(_\w+)?|intrinsic|operation|overload(_\w+)?|kernel)$", re.IGNORECASE)
"""The last part of the name of a decorator that compiles."""
PARAMETERS, LINES = 8, 60
ENGINE = "export/engine/"

Function = ast.FunctionDef | ast.AsyncFunctionDef
Places = list[str]
"""FILE:LINE and what is there."""


@dataclass(frozen=True)
class Module:
    """A file of the product."""

    name: str
    path: str
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        """The dotted name of the package that relative imports start from."""
        return self.name if self.path.endswith("__init__.py") else self.name.rpartition(".")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="One checkout to count, or two to compare.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all counts with their places into this JSON file.")
    parser.add_argument("--list", type=int, metavar="COUNT", help="Print the places of the count with this number.")
    arguments = parser.parse_args()
    found = {str(folder): counts(modules(folder)) for folder in arguments.folders}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.list is not None:
        for folder, places in found.items():
            print("\n".join([folder, *list(places.values())[arguments.list - 1]]))
        return
    print(table(found))


def table(found: Mapping[str, Mapping[str, Places]]) -> str:
    """Markdown: a row for each count, a column for each checkout."""
    rows = [["", "count", *found], ["---:", "---", *["---:"] * len(found)]]
    names = next(iter(found.values()))
    rows += [[str(number), name, *(str(len(places[name])) for places in found.values())] for number, name in enumerate(names, 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def modules(checkout: Path) -> list[Module]:
    """All product modules of a checkout."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted((checkout / folder).rglob("*.py")):
            parts = path.relative_to(checkout / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            source = path.read_text()
            found.append(Module(name, path.relative_to(checkout).as_posix(), ast.parse(source), len(source.splitlines())))
    return found


def counts(found: list[Module]) -> dict[str, Places]:
    """Every count by its name, as the list of what is counted."""
    circles, with_lazy = import_circles(found, lazy=False), import_circles(found, lazy=True)
    engine = [module for module in found if module.path.startswith(ENGINE)]
    return {
        "lines of product code": [module.path for module in found for _ in range(module.lines)],
        "modules": [module.path for module in found],
        "modules of the engine": [module.path for module in engine],
        "folders of the engine": sorted({module.path.rpartition("/")[0] for module in engine}),
        "imports between modules of the engine": [arrow for module in engine for arrow in arrows(module, engine)],
        **named(found),
        "isinstance(layer": [place for module in found for place in isinstance_layer(module)],
        "isinstance(layer outside engine/ops and fusion": [
            place for module in found if not _knows_layers(module) for place in isinstance_layer(module)
        ],
        "meta[... + number]": [place for module in found for place in meta_numbers(module)],
        f"functions with more than {PARAMETERS} parameters": list(functions(found, compiled=False, wide=True)),
        f"compiled functions with more than {PARAMETERS} parameters": list(functions(found, compiled=True, wide=True)),
        f"functions of more than {LINES} lines": list(functions(found, compiled=False, wide=False)),
        f"compiled functions of more than {LINES} lines": list(functions(found, compiled=True, wide=False)),
        "import circles": circles,
        "import circles with imports in functions and for types": with_lazy,
        "aliases by DISABLE_JIT": [place for module in found for place in disable_jit(module)],
        "modules that import Numba's private parts": [module.path for module in found if imports_private(module)],
    }


def named(found: list[Module]) -> dict[str, Places]:
    """Files that name a criterion or a mask kind, in three ways."""
    ways: dict[str, Places] = {"that is one": [], "as a word of a longer string": [], "as a word of an identifier": []}
    for module in found:
        literals = list(strings(module.tree))
        words = {word for text in literals if text not in NAMES for word in re.findall(r"[a-z0-9]+(?:-[a-z]+)?", text)}
        parts = {part for name in identifiers(module.tree) for part in name.lower().split("_")}
        for places, names in zip(ways.values(), (set(literals), words, parts), strict=True):
            if hits := [name for name in NAMES if name in names]:
                places.append(f"{module.path}: {', '.join(hits)}")
    texts = {"that is one": "by a string that is the name", **{way: way for way in list(ways)[1:]}}
    return {f"files that name a criterion or mask kind {texts[way]}": places for way, places in ways.items()}


def strings(tree: ast.AST) -> Iterator[str]:
    """String constants that are no docstrings."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.value


def identifiers(tree: ast.AST) -> Iterator[str]:
    """Names of all sorts."""
    for node in ast.walk(tree):
        for attribute in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, attribute, None), str):
                yield from name.split(".")


def isinstance_layer(module: Module) -> Iterator[str]:
    """Calls of isinstance whose first argument is `layer`, or something of it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and _root(node.func) == "isinstance" and node.args and _root(node.args[0]) == "layer":
            yield f"{module.path}:{node.lineno}: {ast.unparse(node)}"


def meta_numbers(module: Module) -> Iterator[str]:
    """Subscripts meta[... + number]."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.BinOp) and isinstance(node.slice.op, ast.Add):
            right = node.slice.right
            if _last(node.value).endswith("meta") and isinstance(right, ast.Constant) and isinstance(right.value, int):
                yield f"{module.path}:{node.lineno}: {ast.unparse(node)}"


def disable_jit(module: Module) -> Iterator[str]:
    """Names that are bound to one thing or another by whether Numba compiles."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp) and "DISABLE_JIT" in ast.unparse(node.value.test):
            yield f"{module.path}:{node.lineno}: {ast.unparse(node.targets[0])}"


def imports_private(module: Module) -> bool:
    """Whether it imports something of PRIVATE, anywhere."""
    names = [name for name, _ in imports(module)]
    return any(name == part or name.startswith(f"{part}.") for name in names for part in PRIVATE)


def functions(found: Iterable[Module], *, compiled: bool, wide: bool) -> Iterator[str]:
    """Functions beyond the limit: of parameters where `wide`, else of lines; compiled ones, or the others."""
    for module in found:
        for function, is_compiled in every_function(module.tree):
            size = parameters(function) if wide else own_lines(function)
            if is_compiled == compiled and size > (PARAMETERS if wide else LINES):
                yield f"{module.path}:{function.lineno}: {function.name} ({size})"


def every_function(tree: ast.AST, compiled: bool = False) -> Iterator[tuple[Function, bool]]:
    """Each function of `tree`, also in classes and functions, and whether it is compiled."""
    handed = {argument.id for call in _compilations(tree) for argument in call.args if isinstance(argument, ast.Name)}
    for node in ast.iter_child_nodes(tree):
        inside = compiled
        if isinstance(node, Function):
            inside = compiled or node.name in handed or any(COMPILED.match(_last(decorator)) for decorator in node.decorator_list)
            yield node, inside
        yield from every_function(node, inside)


def own_lines(function: Function) -> int:
    """Lines of a function, without those of compiled functions within it where it is none itself: it only makes them."""
    inner = [node for node, compiled in every_function(function) if compiled]
    deeper = {id(node) for other in inner for node in ast.walk(other) if node is not other}
    return _span(function) - sum(_span(node) for node in inner if id(node) not in deeper)


def parameters(function: Function) -> int:
    """How many parameters a caller sees: keyword-only ones, *args and **kwargs count, `self` and `cls` do not."""
    arguments = function.args
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    own = positional[:1] in (["self"], ["cls"])
    return len(positional) - own + len(arguments.kwonlyargs) + (arguments.vararg is not None) + (arguments.kwarg is not None)


def imports(module: Module) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it is imported when the module is loaded); `from a import b` gives a.b."""
    later = {id(node) for branch in ast.walk(module.tree) if _is_later(branch) for node in ast.walk(branch)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in later) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{source}.{alias.name}", id(node) not in later) for alias in node.names)


def arrows(module: Module, others: Iterable[Module], *, lazy: bool = True) -> list[str]:
    """Names of `others` that it imports."""
    known = {other.name for other in others}
    found = set()
    for name, now in imports(module):
        target = name if name in known else name.rpartition(".")[0]
        if (now or lazy) and target in known and target != module.name:
            found.add(target)
    return sorted(found)


def import_circles(found: list[Module], *, lazy: bool) -> Places:
    """Sets of modules each of which imports, directly or not, all others of its set."""
    reached: dict[str, set[str]] = {module.name: set(arrows(module, found, lazy=lazy)) for module in found}
    changed = True
    while changed:
        changed = False
        for targets in reached.values():
            more = set().union(*(reached[target] for target in targets)) - targets
            targets |= more
            changed = changed or bool(more)
    circles = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in reached if name in reached[name]}
    return sorted(" <-> ".join(circle) for circle in circles)


def _is_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return _last(node.test) == "TYPE_CHECKING"
    return isinstance(node, Function)


def _knows_layers(module: Module) -> bool:
    return module.path.startswith(f"{ENGINE}ops/") or (module.path.startswith(ENGINE) and module.path.rpartition("/")[2].startswith("fus"))


def _compilations(tree: ast.AST) -> list[ast.Call]:
    """Calls such as njit(f) and njit(option=1)(f)."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if COMPILED.match(_last(call))]


def _span(function: Function) -> int:
    return 1 + (function.end_lineno or 0) - function.lineno


def _last(node: ast.expr) -> str:
    """a.b.c, a.b.c(...) and a.b.c(...)(...) -> c."""
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


if __name__ == "__main__":
    main()
