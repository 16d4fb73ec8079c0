"""Commands whose help has sections and whose errors name the option that was meant."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fineprune.common.seeds import LARGEST_SEED

from . import hints

NETWORK, PRUNING, TARGET, CALIBRATION, TRAINING, RESULT, RESEARCH = (
    "Network and data",
    "What is pruned",
    "A target, which is searched for",
    "Calibration",
    "Training",
    "Result",
    "For research",
)
SEED = click.IntRange(0, LARGEST_SEED)
Function = TypeVar("Function", bound=Callable[..., Any])
_ORDER = (NETWORK, PRUNING, TARGET, CALIBRATION, TRAINING, RESULT, "Options", RESEARCH)


class Command(click.Command):
    """A command that shows its options by the section that `stack` gave them, those for research last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and record[1]:  # arguments have no line of their own: the text above says what they are
                rows.setdefault(getattr(param, "section", "Options"), []).append(record)
        for section in sorted(rows, key=_ORDER.index):
            with formatter.section(section):
                formatter.write_dl(rows[section])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "" in args:  # would be taken for the current folder
            ctx.fail("An argument is empty; perhaps a variable of the shell is not set.")
        if not ctx.resilient_parsing and not set(ctx.help_option_names) & set(args):
            values, rest, _ = self.make_parser(ctx).parse_args(list(args))
            bundle = values.get("bundle")
            if rest:
                takes_bundle = any(param.name == "bundle" for param in self.params)
                words = [*([bundle] if isinstance(bundle, str) else []), *rest]
                meant = hints.misplaced(ctx.info_name or "", words, takes_bundle)
                count = "argument" if len(rest) == 1 else "arguments"
                ctx.fail(f"Got unexpected extra {count} ({' '.join(map(str, rest))}){f': {meant}' if meant else ''}")
            if isinstance(bundle, str):  # before a missing option is named that belongs to another command line
                hints.check_bundle(Path(bundle), ctx.info_name or "")
        return super().parse_args(ctx, args)


def stack(*options: Callable[[Function], Function], section: str | None = None) -> Callable[[Function], Function]:
    """Several click options as one decorator, in reading order; `section` is that of all those that have none yet."""

    def decorate(function: Function) -> Function:
        before = len(getattr(function, "__click_params__", ()))
        decorated = functools.reduce(lambda inner, option: option(inner), reversed(options), function)
        for param in getattr(decorated, "__click_params__", [])[before:]:
            if section is not None and not hasattr(param, "section"):
                param.section = section
        return decorated

    return decorate
