"""`fsd completion`: completion of commands, verbs and options for a shell, generated from the commands themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fsd.cli.common import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from fsd.cli.main import build

    words = dict(_words(build(None), ()))
    say({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](words))
    return 0


def _words(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    words = [text for action in parser._actions for text in action.option_strings if text.startswith("--")]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words += action.choices
            for name, sub in action.choices.items():
                yield from _words(sub, (*path, name))
    yield path, words


def _bash(words: dict[tuple[str, ...], list[str]]) -> str:
    cases = "\n".join(
        f'    "{" ".join(path)}") words="{" ".join(found)}" ;;' for path, found in sorted(words.items())
    )
    known = " ".join(sorted({word for path in words for word in path}))
    return f"""\
_fsd() {{
  local word path="" words=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case " {known} " in *" $word "*) path="${{path:+$path }}$word" ;; esac
  done
  case "$path" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  [ ${{#COMPREPLY[@]}} -gt 0 ] || COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -F _fsd fsd"""


def _zsh(words: dict[tuple[str, ...], list[str]]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(words)


def _fish(words: dict[tuple[str, ...], list[str]]) -> str:
    lines = []
    for path, found in sorted(words.items()):
        seen = " && ".join(f"__fish_seen_subcommand_from {word}" for word in path) or "__fish_use_subcommand"
        for word in found:
            what = f"-l {word[2:]}" if word.startswith("--") else f"-f -a {word}"
            lines.append(f"complete -c fsd -n '{seen}' {what}")
    return "\n".join(lines)
