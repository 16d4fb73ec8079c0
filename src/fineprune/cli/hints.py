"""What was meant by a word that stands in the wrong place of a command line: the error names the corrected command."""

from collections.abc import Sequence
from pathlib import Path

from fineprune.common.errors import UsageError


def misplaced(command: str, words: Sequence[str], takes_bundle: bool) -> str:
    """Why `command` takes none of the positional `words`, and the options that they were meant for, as far as they can be told."""
    from fineprune.models.naming import MANIFEST

    if not takes_bundle and any((Path(word) / MANIFEST).is_file() for word in words):
        return "a bundle is compressed already; this command takes a network (--model NAME --checkpoint FILE)"
    meant = [option(word) for word in words]
    if not all(meant):
        return ""
    return f"did you mean `fineprune {command} {' '.join(meant)}`?"


def option(word: str) -> str:
    """`word` behind the option that takes it, or nothing where that is not clear."""
    from fineprune.models.data.load import TABLE
    from fineprune.models.naming import WEIGHTS, callables
    from fineprune.models.user_code import is_user_spec
    from fineprune.models.zoo import names

    path = Path(word)
    if word in names() or word.startswith("torchvision:") or path.suffix == ".onnx":
        return f"--model {word}"
    if word.partition(":")[0] in TABLE:
        return f"--data {word}"
    if path.suffix in WEIGHTS:
        return f"--checkpoint {word}"
    if path.is_dir():
        return f"--data imagefolder:{word}"
    if path.suffix == ".npz":
        return f"--data npz:{word}"
    if path.suffix == ".py" or is_user_spec(word):
        return f"--model {word}" if ":" in word else f"--model {word}:{next(iter(callables(path)), 'FACTORY')}"
    return f"--model-arg {word}" if word.partition("=")[0].isidentifier() and "=" in word else ""


def check_bundle(path: Path, command: str) -> None:
    """UsageError, with the corrected command, where `path` is clearly something else than a bundle."""
    from fineprune.models.naming import MANIFEST, WEIGHTS

    if (path / MANIFEST).is_file():
        return
    word = str(path)
    meant = what = ""
    if path.suffix == ".onnx" and command not in ("bench", "report", "compare"):
        return  # a network
    if path.suffix == ".onnx":
        what = "an ONNX file"
        meant = f"bench BUNDLE --onnx {word}" if command == "bench" else ""
    elif path.is_file() and path.name == MANIFEST:
        what, meant = "a file in a bundle", f"{command} {path.parent}"
    elif path.is_file() and path.suffix == ".toml":
        what, meant = "a recipe", f"run {word}"
    elif path.suffix in WEIGHTS:
        what, meant = "a file of weights", f"{command} --model NAME --checkpoint {word}"
    elif (path / "bundle" / MANIFEST).is_file():
        what, meant = "the folder of a recipe's run", f"{command} {path / 'bundle'}"
    elif (path / "model.safetensors").is_file():
        what, meant = "the folder of a training", f"{command} --model NAME --checkpoint {path / 'model.safetensors'}"
    elif not path.is_dir() and option(word).startswith("--model "):
        what, meant = "a network", f"{command} {option(word)}"
    if command == "report" and "--model" in meant:
        meant = ""
    if what:
        remedy = f"did you mean `fineprune {meant}`?" if meant else "name the output folder of `fineprune compress`"
        raise UsageError(f"{word} is {what} and no bundle; {remedy}")
