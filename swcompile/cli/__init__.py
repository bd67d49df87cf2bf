"""The command line: `swcompile transform`, `analyze`, `check`, `export` and `bench`, each in the file of its name.

    options      the options that commands share, and what their values are read as
    exit_codes   the exit codes, and what every help says of them
    signals      Ctrl-C and SIGTERM: how they end a command, and when they have to wait
    screen       what is shown: progress on stderr, the result on stdout, as text or as JSON
    models       what commands do alike with a model: load it, say what was found in it
    folder       what transform writes

Torch is imported inside the commands, and `models` and `folder` behind it, so that `--help` and a typing error answer at once, and
Ctrl-C during that import ends as cleanly as later. What a command found goes to stdout; progress, the prints of the user's code and
errors go to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from swcompile.cli import analyze, bench, check, exit_codes, export, screen, signals, transform
from swcompile.errors import NothingToDoError, SwnetError

BUG_REPORT = "This is a bug of swcompile, not of your model. Please report it with the lines above and, if you can, the model file."


@click.group(
    commands=(transform.transform, analyze.analyze, check.check, export.export, bench.bench),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=exit_codes.HELP,
)
@click.version_option(package_name="swcompile")
def cli() -> None:
    """Compile the topology of a PyTorch model: small-world long-range links in, redundant links out."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        with signals.interruptible():
            code = cli.main(list(arguments), prog_name="swcompile", standalone_mode=False)
            return code if isinstance(code, int) else exit_codes.DONE
    except click.Abort as abort:
        return _interrupted(abort.__cause__)
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt)
    except click.ClickException as error:
        error.show()
        return exit_codes.BAD_INPUT
    except SwnetError as error:
        _complain(f"error: {_printable(str(error))}")
        return exit_codes.NOTHING_TO_DO if isinstance(error, NothingToDoError) else exit_codes.BAD_INPUT
    except Exception:  # a bug of ours, whichever: said as one, with the traceback and an exit code of its own
        _complain(f"{traceback.format_exc()}{BUG_REPORT}")
        return exit_codes.BUG


def _complain(text: str) -> None:
    try:
        click.echo(text, err=True)
    except ValueError:  # the user's code has closed stderr, or stdout while that stood for it
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def _interrupted(cause: BaseException | None) -> int:
    terminated = isinstance(cause, signals.Terminated)
    click.echo("terminated" if terminated else "interrupted", err=True)
    return exit_codes.TERMINATED if terminated else exit_codes.INTERRUPTED


def _printable(text: str) -> str:
    """Return the text without what would steer a terminal: names in it may come from a file that somebody sent."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def main() -> NoReturn:
    """Run the command line of this process."""
    signals.end_quietly()
    code = run(sys.argv[1:])
    screen.flush()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what the user's code prints at its exit is no part of the result
    sys.exit(code)
