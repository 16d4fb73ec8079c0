"""The command line in this process, with its output caught."""

import contextlib
import io
import json
from typing import Any, NamedTuple

from fineprune.__main__ import main

TRAINING = ["--epochs", 8, "--batch-size", 16, "--optimizer", "adam", "--lr", 0.03, "--no-augment"]
"""Of the small network of tests/front."""


class Result(NamedTuple):
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout; fails with the error output where there is none."""
        if self.code:
            raise AssertionError(f"exit code {self.code}: {self.err}")
        return json.loads(self.out)


def fineprune(*arguments: object) -> Result:
    """Run `fineprune ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Result:
    """Run a command that must not fail."""
    result = fineprune(*arguments)
    assert result.code == 0, result.err
    return result
