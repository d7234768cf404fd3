"""What the commands share: terminals, progress, the ``f.attn:name`` argument, and errors without tracebacks."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table

from attnc.errors import ArgumentError, BundleError, TargetError, UnsupportedError
from attnc.grammar.diagnostic import SpecError, render, to_json

out = Console(highlight=False, soft_wrap=True)
WIDEST = 240
"""Columns that a table may take."""
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Exit(enum.IntEnum):
    """What a command's exit code means."""

    DONE = 0
    SPEC = 1
    USAGE = 2
    TARGET = 3
    INTERRUPTED = 130


@contextmanager
def errors_reported(as_json: bool = False) -> Iterator[None]:
    """Turn every error of a user's making into a message and an exit code."""
    try:
        yield
    except SpecError as error:
        if as_json:
            print(to_json(error.diagnostics))
        else:
            print(render(error.diagnostics, colour=err.is_terminal), file=sys.stderr)
        raise typer.Exit(Exit.TARGET if isinstance(error, UnsupportedError) else Exit.SPEC) from None
    except TargetError as error:
        fail(str(error), Exit.TARGET if error.missing else Exit.USAGE, as_json)
    except (ArgumentError, BundleError) as error:
        fail(str(error), Exit.USAGE, as_json)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UnicodeDecodeError as error:
        fail(f"the spec is not UTF-8: {error.reason} at byte {error.start}", Exit.USAGE, as_json)
    except OSError as error:
        fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), Exit.USAGE, as_json)


def fail(message: str, code: Exit, as_json: bool = False) -> NoReturn:
    """Say what is wrong and leave."""
    if as_json:
        print(json.dumps([{"code": code.name.lower(), "message": message}], indent=2))
    else:
        err.print("[bold red]error[/]:", end=" ")
        err.print(message, markup=False)
    raise typer.Exit(code) from None


def print_table(table: Table) -> None:
    """Print a table with every row in one line, however wide the terminal is."""
    Console(highlight=False, width=max(out.width, WIDEST)).print(table, no_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """A spinner on a terminal while something long runs; nothing elsewhere."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        yield


def constants_of(definitions: Sequence[str]) -> dict[str, int | float | bool]:
    """The values of ``-D name=value`` options."""
    found: dict[str, int | float | bool] = {}
    for definition in definitions:
        name, equals, text = definition.partition("=")
        value = number(text.strip())
        if not equals or not name.strip().isidentifier() or value is None:
            fail(f"`-D {definition}`: write -D name=value, with a number, true or false", Exit.USAGE)
        found[name.strip()] = value
    return found


def number(text: str) -> int | float | bool | None:
    """A number or truth value written as in a spec; ``None`` if it is neither."""
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return None
