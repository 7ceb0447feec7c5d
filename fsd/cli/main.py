"""Entry point of the `fsd` command: finds the command, loads only its module, and turns errors into exit codes.

A command is a module with `add_arguments(parser)` and `run(args) -> int`. Exit codes: 0 done, 1 failed, 2 usage,
3 findings, 4 busy, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from fsd import __version__
from fsd.cli.common import add_globals, printable
from fsd.core.errors import INTERRUPTED, USAGE, UserError


class Command(NamedTuple):
    """Where a command lives and what it does, in a line."""

    module: str
    help: str


COMMANDS = {
    "init": Command("fsd.cli.init", "set up a data root: configuration, keys, the first administrator"),
    "serve": Command("fsd.cli.serve", "serve a data root: HTTP workers, watcher and jobs"),
    "status": Command("fsd.cli.status", "is everything up to date?"),
    "user": Command("fsd.cli.user", "users: add, list, passwd, set, disable, enable, delete"),
    "group": Command("fsd.cli.group", "groups: add, list, join, leave, delete"),
    "space": Command("fsd.cli.space", "spaces: create, adopt, list, set, members, disable, restore, delete"),
    "scan": Command("fsd.cli.scan", "verify a tree against the index now"),
    "check": Command("fsd.cli.check", "verify every invariant, repair what can be repaired"),
    "doctor": Command("fsd.cli.doctor", "is this host fit?"),
    "token": Command("fsd.cli.token", "app tokens: a password of its own for each program"),
    "link": Command("fsd.cli.link", "public links: create, list, revoke"),
    "versions": Command(
        "fsd.cli.versions", "what files held before they were replaced: list, restore, delete"
    ),
    "uploads": Command("fsd.cli.uploads", "uploads in several requests that are under way: list, drop"),
    "trash": Command("fsd.cli.trash", "what was deleted: list, restore, empty"),
    "mount": Command("fsd.cli.mount", "a space, or all of them, as a filesystem"),
    "umount": Command("fsd.cli.umount", "end a mount"),
    "config": Command("fsd.cli.config", "the settings, and where each came from"),
    "key": Command("fsd.cli.key", "the service key: export, import"),
    "cluster": Command("fsd.cli.cluster", "several hosts: export the registry, join with it"),
    "completion": Command("fsd.cli.completion", "completion for bash, zsh or fish"),
}
_VALUED = ("--data", "--state", "--config")


class _Parser(argparse.ArgumentParser):
    # argparse gives an optional positional up at the first option behind it; then options go first.
    options_first = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.options_first and args is not None:
            args = self._sorted(list(args))
        return super().parse_known_args(args, namespace)

    def _sorted(self, args: list[str]) -> list[str]:
        """Options with their values, then the rest in its order."""
        options: list[str] = []
        rest: list[str] = []
        while args and args[0] != "--":
            word = args.pop(0)
            action = self._option_string_actions.get(word)
            (options if word.startswith("-") and word != "-" else rest).append(word)
            if action is not None and action.nargs is None and args:
                options.append(args.pop(0))
        return options + rest + args

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')", USAGE)


def build(name: str | None) -> argparse.ArgumentParser:
    """The parser; the arguments of command `name` only, those of all commands for None."""
    parser = _Parser(prog="fsd", description="A file server over plain directories.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fsd {__version__}")
    add_globals(parser, default=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for each, command in COMMANDS.items():
        sub = commands.add_parser(
            each, help=command.help, description=command.help.capitalize(), allow_abbrev=False
        )
        if name in (None, each):
            _load(command).add_arguments(sub)
            _globals_everywhere(sub)
    return parser


def _globals_everywhere(parser: argparse.ArgumentParser) -> None:
    add_globals(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _globals_everywhere(sub)


def _load(command: Command) -> ModuleType:
    return importlib.import_module(command.module)


def command_of(argv: list[str]) -> str | None:
    """The command in an argument list: the first word that is not a global option or its value."""
    skip = False
    for word in argv:
        if skip or word.startswith("-"):
            skip = not skip and word in _VALUED
            continue
        return word
    return None


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Never a traceback for a mistake of the person."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        _open_standard_files()
        code = _run(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`fsd … | head`); nothing more can be said, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        return _fail(f"{error.strerror or error}{where}", 1)


def _open_standard_files() -> None:
    """Give the standard descriptors that the caller closed to /dev/null: else the next database that is opened would
    get such a number, and whatever is printed would be written into it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, and those below are taken
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


def _run(argv: list[str]) -> int:
    name = command_of(argv)
    if name is not None and name not in COMMANDS:
        raise UserError(f"There is no command '{name}' (there are: {', '.join(COMMANDS)}).", USAGE)
    parser = build(name or "")
    if name is None and not any(word in ("-h", "--help", "--version") for word in argv):
        parser.print_help(sys.stderr)
        return USAGE
    args = parser.parse_args(argv)
    assert name is not None
    code: int = _load(COMMANDS[name]).run(args)
    return code


def _fail(message: str, code: int) -> int:
    print(f"fsd: {printable(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
