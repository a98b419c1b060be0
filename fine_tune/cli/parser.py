"""The parser that reports all problems of a command together, and what a script's end looks like to a user."""

import argparse
import atexit
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from fine_tune.cli.checks import Check, require
from fine_tune.cli.flags import REQUIRED, Flag, FlagGroup
from fine_tune.core import interrupt, memory, output, threads, torchrun
from fine_tune.core.errors import Stop, UserError, nearest

NO_VALUE = object()


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help in the shape `--lr LR`: the parser takes a value as optional only to report its absence with the rest."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        metavar = default_metavar if action.metavar is None else action.metavar
        return metavar if action.nargs == "?" else super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a UserError like all others, not argparse's usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def attach_values(argv: Sequence[str], groups: Sequence[FlagGroup]) -> list[str]:
    """Write `--lr -1e-3` as `--lr=-1e-3`: argparse takes a word like -1e-3 or -inf for a flag of its own."""
    valued = {f"--{flag.name}" for _, flags in groups for flag in flags if flag.read}
    result: list[str] = []
    for word in argv:
        if result and result[-1] in valued and re.match(r"-[^-]", word) and word != "-h":
            result[-1] += f"={word}"
        else:
            result.append(word)
    return result


def build_parser(description: str, groups: Sequence[FlagGroup], example: str) -> argparse.ArgumentParser:
    """Return the parser that prints the help; values stay text until `read_flags`."""
    every = [flag for _, flags in groups for flag in flags]
    required = [f"{flag.name.upper()} [...]" for flag in every if flag.positional]
    required += [f"--{flag.name} {flag.name.upper()}" for flag in every if is_required(flag)]
    parser = Parser(
        usage=f"{program()} " + " ".join(required) + " [more flags]",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    for title, flags in groups:
        group = parser.add_argument_group(title)
        for flag in flags:
            line = flag.help_line().replace("%", "%%")
            if flag.positional:
                group.add_argument(flag.name, nargs="*", metavar=flag.name.upper(), help=line)
                continue
            metavar = getattr(flag.read, "metavar", flag.name.upper()) if flag.read else ""
            group.add_argument(f"--{flag.name}", nargs="?", const=NO_VALUE, metavar=metavar, help=line)
    return parser


def is_required(flag: Flag) -> bool:
    """Tell whether a command must give `flag`."""
    return flag.read is not None and flag.default is REQUIRED and not flag.falls_back and not flag.positional


def program() -> str:
    """Return how a user calls the program that runs: a verb of the package by python -m."""
    called = Path(sys.argv[0])
    return f"python -m fine_tune.{called.stem}" if called.parent.name == "fine_tune" else called.name.replace("%", "%%")


def read_flags(raw: Namespace, groups: Sequence[FlagGroup], problems: list[str]) -> Namespace:
    """Return the flags' values; what is wrong is added to `problems` and left out of the result."""
    values = Namespace()
    for flag in (flag for _, flags in groups for flag in flags):
        text = getattr(raw, flag.name)
        if flag.positional:
            setattr(values, flag.name, read_words(flag, text, problems))
        elif flag.read is None:
            setattr(values, flag.name, text is NO_VALUE)
            if text not in (None, NO_VALUE):
                problems.append(f"--{flag.name} {text!r}: takes no value")
        elif text is NO_VALUE:
            problems.append(f"--{flag.name}: needs a value")
        elif text is None and is_required(flag):
            problems.append(f"--{flag.name}: is required")
        elif text is None and flag.falls_back.startswith("--"):
            if hasattr(values, flag.falls_back[2:]):  # absent where it is wrong itself; groups list it first
                setattr(values, flag.name, getattr(values, flag.falls_back[2:]))
        elif text is None and flag.falls_back:
            setattr(values, flag.name, None)
        else:
            try:
                setattr(values, flag.name, flag.read(flag.default if text is None else text))
            except ValueError as error:
                problems.append(f"--{flag.name} {text!r}: {error}")
    return values


def read_words(flag: Flag, words: list[str], problems: list[str]) -> list[Any]:
    """Return the values of a positional flag's words; what is wrong is added to `problems` and left out."""
    if not words:
        problems.append(f"{flag.name.upper()}: at least one is required")
    values = []
    for word in words:
        try:
            values.append(flag.read(word))
        except ValueError as error:
            problems.append(f"{flag.name.upper()} {word!r}: {error}")
    return values


def parse(
    description: str,
    groups: Sequence[FlagGroup],
    checks: Sequence[Check],
    example: str,
    argv: Sequence[str] | None = None,
    **facts: str,
) -> Namespace:
    """Read the command line into a namespace of checked values; `facts` are added to it.

    Raises UserError that names every problem of the command: unknown, missing and wrong flags, and what `checks` find.
    """
    raw, unknown = build_parser(description, groups, example).parse_known_args(
        attach_values(sys.argv[1:] if argv is None else argv, groups)
    )
    # What follows an unknown flag is its value.
    strange = [
        word for before, word in pairwise(["", *unknown]) if word[:1] == "-" or before[:2] != "--" or "=" in before
    ]
    for flag in (flag for _, own in groups for flag in own if flag.positional):
        # What stands behind the first flags, argparse leaves over.
        getattr(raw, flag.name).extend(word for word in strange if word[:1] != "-")
        strange = [word for word in strange if word[:1] == "-"]
    known = [f"--{flag.name}" for _, own in groups for flag in own if not flag.positional]
    problems = [f"{word!r}: is no flag of this script (see -h){nearest(word.split('=')[0], known)}" for word in strange]
    flags = Namespace(**vars(read_flags(raw, groups, problems)), **facts)
    for check in checks:
        problems.extend(check(flags))
    require(problems)
    return flags


def run_script(main: Callable[[], None]) -> NoReturn:
    """Call a script's main; a Stop becomes one line `<script>: error: <message>` and its exit code."""
    output.prepare()
    interrupt.listen()
    torchrun.end_with_parent()
    memory.prepare()  # both before main imports torch
    note = threads.prepare()
    if note and torchrun.is_main_process():
        print(note, file=sys.stderr)
    try:
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:  # who reads, as head does, has enough
            leave(128 + signal.SIGPIPE)
        except BaseException as error:
            stop = as_stop(error)
            if stop is None:
                raise
            raise stop from error
    except Stop as stop:
        if torchrun.LOCAL_RANK == 0:  # the others on this machine stop for the same reason
            print(f"{Path(sys.argv[0]).name}: {stop.word}: {stop}", file=sys.stderr)
        else:
            time.sleep(2)  # torchrun ends all when one has failed: let the one that speaks come first
        leave(stop.exit_code)
    leave(0)


def leave(code: int) -> NoReturn:
    """End the process; that of a rank without what C libraries do at an exit: threads of gloo's may abort it there."""
    if torchrun.WORLD_SIZE > 1:
        atexit._run_exitfuncs()
        with suppress(BrokenPipeError, UserError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def as_stop(error: BaseException) -> UserError | None:
    """Return the line for what the system or a library refused; None for what is a bug, or a Stop already."""
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error)
    if isinstance(error, OSError):
        return UserError(f"{error.filename}: {error.strerror}" if error.filename else f"the system refused: {error}")
    if type(error).__name__ == "PanicException":  # how Rust ends in Python; no Exception, so that nobody catches it
        return UserError(f"the tokenizers library broke off ({error}); is the tokenizer damaged?")
    return None


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """Return what to say of a package that is not installed; a module of our own that is missing is a bug."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "fine_tune"):
        return None
    cure = "activate the environment (. .venv/bin/activate, which bash scripts/setup.sh makes)"
    python = sys.executable or "this Python"
    return UserError(f"{python} has no package {package}; {cure}, or pip install -r requirements.txt there")
