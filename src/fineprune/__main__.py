"""The command `fineprune`: one clear line for every expected failure, exit code 2 for usage and 1 for failure."""

import os
import re
import signal
import sys
from types import FrameType

import click

from fineprune.common.errors import FinepruneError
from fineprune.common.text import printable

from .cli import command

_OUT_OF_MEMORY = "out of memory; use a smaller --batch-size, --samples or image size"
_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
"""How torch says that there is none left: in a RuntimeError."""
_RESUMABLE = ("train", "calibrate", "compress", "front", "run")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. `--debug` anywhere (or FINEPRUNE_DEBUG=1) shows tracebacks."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("FINEPRUNE_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Threads of torch that spin while they wait take the core that the others need: beside one other busy process ResNet-20 took
    # 10-24 s an epoch of digits instead of 4.7 s; alone, the shorter spin costs nothing (1.7 s). Read when torch is first imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        # Not command.main(): it prints an empty line of its own when it is interrupted.
        with command.make_context("fineprune", arguments or ["--help"]) as context:
            command.invoke(context)
        return 0
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), 2 if isinstance(error, click.UsageError) else 1, _help_hint(error))
    except (KeyboardInterrupt, click.Abort) as error:
        return _fail(_interruption(error, arguments), 1)
    except FinepruneError as error:
        return _raise_or_fail(debug, " ".join(str(error).split()), error.exit_code)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - the reader left: nothing may be flushed to it at exit
        return 1
    except MemoryError:
        return _raise_or_fail(debug, _OUT_OF_MEMORY, 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _raise_or_fail(debug, f"{where}{error.strerror or error}; check the path, its permissions and free space", 1)
    except Exception as error:
        if isinstance(error, RuntimeError) and _MEMORY.search(str(error)):
            return _raise_or_fail(debug, _OUT_OF_MEMORY, 1)
        # A bug of ours: still one line, and how to see more.
        line = " ".join(str(error).split())[:300]
        return _raise_or_fail(debug, f"unexpected {type(error).__name__}: {line}; run again with --debug and report it", 1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _interruption(error: BaseException, arguments: list[str]) -> str:
    """What the trainer says about where it stopped, or else whether the command resumes."""
    if error.args:
        return str(error)
    if arguments and arguments[0] in _RESUMABLE:
        return "interrupted; what was done is kept, run the same command again to go on"
    return "interrupted; nothing was written, run the same command again"


def _raise_or_fail(debug: bool, message: str, code: int) -> int:
    if debug:
        import traceback

        for line in traceback.format_exc().splitlines():
            click.echo(printable(line), err=True)
    return _fail(message, code)


def _fail(message: str, code: int, hint: str = "") -> int:
    click.echo(f"fineprune: {printable(message)}{hint}", err=True)
    return code


def _help_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f" (see `{context.command_path} --help`)" if context else ""


if __name__ == "__main__":
    sys.exit(main())
