"""The command reference (docs/cli.md), written from argparse's own knowledge: `python -m fsd.cli.reference`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fsd.cli.main import COMMANDS, build
from fsd.service import config

_HEAD = """\
# Commands

Written by `scripts/gen_cli_docs`; change the commands, not this page.

Every command finds its data root by `--data DIR`, else `FSD_DATA`, else the configuration file (`--config FILE`,
`FSD_CONFIG`, `fsd.toml` in the state directory, `/etc/fsd/fsd.toml`); `--state DIR` or `FSD_STATE` names the state
directory. These options may stand before or after the command's name. Commands work beside a running server and
without one.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; one sentence on stderr says why, nothing was changed |
| 2 | usage: the arguments or the settings are wrong |
| 3 | findings: `check` or `doctor` found something |
| 4 | busy: somebody else is at it, such as a server on the same data |
| 130 | interrupted |
"""
_GLOBAL = frozenset({"--data", "--state", "--config", "--help"})


def render() -> str:
    """The whole page."""
    sections = [_HEAD]
    for name, parser in _subparsers(build(None)):
        verbs = list(_subparsers(parser))
        text = COMMANDS[name].help
        sections.append(f"## fsd {name}\n\n{text[:1].upper()}{text[1:]}{'' if text.endswith('?') else '.'}\n")
        if not verbs:
            sections.append(_usage(parser, f"fsd {name}"))
        for verb, sub in verbs:
            sections.append(_usage(sub, f"fsd {name} {verb}", _help_of(parser, verb)))
    return "\n".join([*sections, *_settings()])


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield "In the file a dot separates section and key. A flag beats the environment, which beats the file."
    yield "\n| key | environment | default | what |\n|---|---|---|---|"
    for item in config.option_fields():
        key, kind = item.metadata["key"], item.metadata["kind"]
        default = "" if key in ("data", "state") else kind.show(item.default)
        yield f"| `{key}` | `{config.env_name(key)}` | {f'`{default}`' if default else ''} | {item.metadata['help']} |"
    yield ""


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _help_of(parser: argparse.ArgumentParser, verb: str) -> str:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return next((each.help or "" for each in action._choices_actions if each.dest == verb), "")
    return ""


def _usage(parser: argparse.ArgumentParser, call: str, text: str = "") -> str:
    shown = [action for action in parser._actions if not _GLOBAL & set(action.option_strings)]
    positional = [_value(action) for action in shown if not action.option_strings]
    head = f"`{' '.join([call, *positional])}`" + (f": {text}" if text else "")
    rows = [f"- `{_option(action)}` {_explain(action)}".rstrip() for action in shown if _worth_a_row(action)]
    return "\n".join([head, "", *rows, ""] if rows else [head, ""])


def _worth_a_row(action: argparse.Action) -> bool:
    return bool(action.option_strings or action.help)


def _option(action: argparse.Action) -> str:
    if not action.option_strings:
        return _value(action)
    value = "" if action.nargs == 0 else " " + _name(action)
    return ", ".join(action.option_strings) + value


def _name(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    metavar = action.metavar if isinstance(action.metavar, str) else None
    return metavar or action.dest.upper().replace("_", "-")


def _value(action: argparse.Action) -> str:
    name = _name(action)
    return {"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} …"}.get(str(action.nargs), name)


def _explain(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default} if action.help else ""


if __name__ == "__main__":
    print(render(), end="")
