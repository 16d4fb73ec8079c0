"""Every torchvision classifier by `torchvision:NAME`, untrained (weights come from a checkpoint file)."""

import difflib
import inspect
from typing import Any

from torch import nn

from fineprune.common.errors import RunError, UsageError

from ..user_code import describe
from ..vision import import_torchvision

PREFIX = "torchvision:"

# Without these the two return tuples while training, which no ordinary loss takes, and warn about their slow initialisation.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def classifier_names() -> list[str]:
    """torchvision's own names of its image classifiers."""
    models = import_torchvision().models
    return models.list_models(module=models)


def build(name: str, args: dict[str, Any]) -> nn.Module:
    """`torchvision:NAME` with `args` handed to its constructor; UsageError for an unknown name or argument."""
    short = _known(name)
    if "weights" in args:
        raise UsageError(f"{name}: weights are not downloaded; leave `weights` out and load a checkpoint file")
    models = import_torchvision().models
    merged = {**_DEFAULTS.get(short, {}), **args}
    try:
        return models.get_model(short, weights=None, **merged)
    except TypeError as error:
        if "argument" not in str(error):
            raise RunError(f"{name} failed: {describe(error)}") from error
        raise UsageError(f"{name}: {error}; it takes {', '.join(accepted_arguments(name))}") from error
    except (ValueError, RuntimeError, AttributeError) as error:
        raise UsageError(f"{name} with {args} failed: {describe(error)}") from error


def accepted_arguments(name: str) -> dict[str, inspect.Parameter]:
    """The constructor's arguments that the name leaves open (those with a default, and image_size where there is one)."""
    builder = import_torchvision().models.get_model_builder(_known(name))
    module = inspect.getmodule(builder)
    signatures = [
        inspect.signature(value).parameters
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == builder.__module__
    ]
    # Auxiliary heads take num_classes too; the network itself takes the most.
    parameters = max((p for p in signatures if "num_classes" in p), key=len)
    return {p.name: p for p in parameters.values() if p.default is not p.empty or p.name == "image_size"}


def _known(name: str) -> str:
    short = name.removeprefix(PREFIX)
    known = classifier_names()
    if short in known:
        return short
    close = difflib.get_close_matches(short, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "see torchvision.models.list_models()"
    raise UsageError(f"torchvision has no classifier {short!r}: {hint}")
