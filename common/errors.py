"""The two kinds of expected failure. Anything else that escapes is a bug and keeps its traceback.

A message says what was wrong, where (file, layer, shape) and what to do, in one line.
"""


class FinepruneError(Exception):
    """Base of every error that fineprune raises on purpose; `exit_code` is the command line's."""

    exit_code = 1


class UsageError(FinepruneError, ValueError):
    """The request itself cannot be met: an unknown name, a value out of range, a file that is not there."""

    exit_code = 2


class RunError(FinepruneError, RuntimeError):
    """The request was sound and its execution failed: broken file content, NaN, a full disk, mismatched weights."""

    exit_code = 1


def said_by(error: BaseException) -> str:
    """The first line of an error of foreign code, its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
