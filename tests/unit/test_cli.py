"""The commands: what they print, what they change, and their exit codes."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from fsd.cli import main as main_module
from fsd.cli.main import COMMANDS, build, command_of, main
from fsd.core import passwords
from fsd.core.errors import UserError
from fsd.core.registry import Registry

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fsd(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    for name in [name for name in os.environ if name.startswith("FSD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FSD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FSD_STATE", str(tmp_path / "state"))
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "_cached", cheap)

    def run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape")))
        )
        code = main(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    audit = logging.getLogger("fsd.audit")
    before = audit.handlers[:]
    yield run
    for handler in audit.handlers[:]:
        if handler not in before:
            audit.removeHandler(handler)
            handler.close()


@pytest.fixture
def ready(fsd: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FSD_ADMIN_PASSWORD", "given")
    assert fsd("init")[0] == 0
    return fsd


@pytest.fixture
def registry(ready: Run, tmp_path: Path) -> Registry:
    return Registry(tmp_path / "state")


def loaded(fsd: Run, *argv: str) -> Any:
    code, out, _ = fsd(*argv)
    assert code == 0
    return json.loads(out)


# ---- the frame


def test_without_command_it_explains_itself(fsd: Run) -> None:
    code, _, err = fsd()
    assert code == 2 and "space" in err and "COMMAND" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["nope"],
        ["space"],
        ["space", "nope"],
        ["user", "add"],
        ["user", "list", "--nope"],
        ["doctor", "extra"],
    ],
)
def test_usage_is_2_and_one_line(fsd: Run, argv: list[str]) -> None:
    code, out, err = fsd(*argv)
    assert code == 2 and out == "" and err.startswith("fsd: ") and err.count("\n") == 1


def test_failures_are_1_and_one_line(ready: Run) -> None:
    for argv in (
        ["user", "passwd", "nobody"],
        ["space", "disable", "nothing"],
        ["space", "adopt", "/nowhere"],
    ):
        code, out, err = ready(*argv)
        assert code == 1 and out == "" and err.startswith("fsd: ") and err.count("\n") == 1, argv


def test_not_set_up_says_what_to_do(fsd: Run, tmp_path: Path) -> None:
    code, _, err = fsd("user", "list")
    assert code == 1 and "fsd init" in err and not (tmp_path / "state").exists()


def test_interrupted_is_130(ready: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("fsd.cli.user.run", interrupt)
    assert ready("user", "list")[0] == 130


def test_codes_of_errors(ready: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (1, 2, 3, 4):

        def fail(_: object, code: int = code) -> int:
            raise UserError("no", code)

        monkeypatch.setattr("fsd.cli.user.run", fail)
        assert ready("user", "list")[0] == code


def test_a_reader_that_goes_away_is_no_traceback(ready: Run) -> None:
    script = f"{sys.executable} -m fsd completion bash | head -c 1"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_help_of_every_command() -> None:
    parser = build(None)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            parser.parse_args([name, "--help"])
        assert caught.value.code == 0


def test_only_the_module_that_is_called_is_loaded() -> None:
    code = (
        "import sys; from fsd.cli.main import main; main(['config', 'template']); print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "'fsd.cli.config'" in done.stdout
    for heavy in ("fsd.cli.space", "wsgidav", "cheroot", "argon2", "sqlite3", "lxml", "prometheus_client"):
        assert f"'{heavy}'" not in done.stdout


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--data", "space", "user", "list"], "user"),
        (["--data=space", "user"], "user"),
        (["-h"], None),
        (["--config", "x", "--state", "y", "check"], "check"),
        ([], None),
    ],
)
def test_command_of(argv: list[str], expected: str | None) -> None:
    assert command_of(argv) == expected


def test_global_options_on_either_side(ready: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSD_DATA")
    monkeypatch.delenv("FSD_STATE")
    where = ["--data", str(tmp_path / "data"), "--state", str(tmp_path / "state")]
    assert ready(*where, "user", "list")[0] == ready("user", "list", *where)[0] == 0


# ---- init


def test_init_makes_an_admin_and_tells_the_password_once(fsd: Run, tmp_path: Path) -> None:
    code, out, _ = fsd("init")
    password = out.split("password: ")[1].strip()
    registry = Registry(tmp_path / "state")
    admin = registry.accounts.verify("admin", password)
    assert code == 0 and admin is not None and admin.role == "admin"
    again = fsd("init")
    assert again[0] == 0 and "nothing was changed" in again[1] and "password" not in again[1]
    assert registry.accounts.verify("admin", password) is not None
    assert tomllib.loads((tmp_path / "state" / "fsd.toml").read_text())["log"] == {}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_given_password_is_not_shown(ready: Run, tmp_path: Path, fsd: Run) -> None:
    assert Registry(tmp_path / "state").accounts.verify("admin", "given") is not None
    assert "given\n" not in (tmp_path / "state" / "audit.log").read_text()


def test_a_data_root_argument(fsd: Run, tmp_path: Path) -> None:
    assert fsd("init", "--data", str(tmp_path / "a"), str(tmp_path / "b"))[0] == 2
    assert fsd("init", str(tmp_path / "b"))[0] == 0 and (tmp_path / "b" / "users" / "admin").is_dir()


@pytest.mark.parametrize("state", ["data/users/x", "data/projects", "."])
def test_state_and_data_must_not_mix(fsd: Run, tmp_path: Path, state: str) -> None:
    code, _, err = fsd("init", "--state", str(tmp_path / state))
    assert code == 1 and "must not lie" in err and not (tmp_path / "data" / "users").exists()


def test_one_volume_for_both_is_fine(fsd: Run, tmp_path: Path) -> None:
    assert fsd("init", "--state", str(tmp_path / "data" / ".state"))[0] == 0


# ---- users and groups


def test_user_life(ready: Run, registry: Registry) -> None:
    code, out, _ = ready("user", "add", "ann", "--password-stdin", "--email", "a@b", stdin="pw one\n")
    assert code == 0 and "ann" in out and "users/ann" in out
    assert registry.accounts.verify("ann", "pw one") is not None
    assert ready("user", "passwd", "ann", "--password-stdin", stdin="two")[0] == 0
    assert (
        registry.accounts.verify("ann", "pw one") is None
        and registry.accounts.verify("ann", "two") is not None
    )
    assert ready("user", "set", "ann", "--display-name", "Ann A.", "--role", "admin")[0] == 0
    assert ready("user", "disable", "ann")[0] == 0
    (row,) = [row for row in loaded(ready, "user", "list", "--json") if row["name"] == "ann"]
    assert (row["display_name"], row["role"], row["state"], row["email"]) == (
        "Ann A.",
        "admin",
        "disabled",
        "a@b",
    )
    assert ready("user", "enable", "ann")[0] == 0
    assert ready("user", "delete", "ann")[0] == 0
    assert registry.accounts.find("ann") is None
    assert [
        space["state"] for space in loaded(ready, "space", "list", "--json") if space["alias"] == "ann"
    ] == ["disabled"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("", True), ("y", False)])
def test_a_person_is_asked(
    ready: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch, answer: str, left: bool
) -> None:
    ready("user", "add", "ann", "--password-stdin", stdin="x")
    monkeypatch.setattr(sys, "stdin", Terminal(answer + "\n"))
    assert main(["user", "delete", "ann"]) == int(left)
    assert (registry.accounts.find("ann") is not None) is left


def test_no_password_no_user(ready: Run, registry: Registry) -> None:
    assert ready("user", "add", "ann")[0] == 2
    assert ready("user", "add", "ann", "--password-stdin", stdin="\n")[0] == 1
    assert registry.accounts.find("ann") is None


def test_the_password_policy(ready: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSD_AUTH_PASSWORD_MIN", "12")
    code, _, err = ready("user", "add", "ann", "--password-stdin", stdin="short\n")
    assert code == 1 and "12" in err and registry.accounts.find("ann") is None


def test_groups(ready: Run) -> None:
    assert ready("group", "add", "team")[0] == 0
    assert ready("group", "join", "team", "admin")[0] == 0
    assert loaded(ready, "group", "list", "--json") == [{"name": "team", "members": ["admin"]}]
    assert ready("group", "leave", "team", "admin")[0] == 0
    assert ready("group", "delete", "team")[0] == 0
    assert loaded(ready, "group", "list", "--json") == []
    joined = ready("user", "add", "ann", "--password-stdin", "--group", "lab", stdin="secret\n")
    assert joined[0] == 0 and "group 'lab' (new)" in joined[1] + joined[2]
    assert loaded(ready, "group", "list", "--json") == [{"name": "lab", "members": ["ann"]}]


# ---- spaces


def test_space_list_is_the_contract(ready: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"x" * 100)
    assert ready("space", "adopt", str(tmp_path / "there"), "--name", "There", "--quota", "1M")[0] == 0
    rows = loaded(ready, "space", "list", "--json")
    assert all(
        set(row)
        == {"id", "name", "alias", "type", "path", "quota", "used", "members", "state", "label", "ids"}
        for row in rows
    )
    (row,) = [row for row in rows if row["type"] == "project"]
    assert (row["name"], row["alias"], row["quota"], row["state"]) == ("There", "there", 1 << 20, "active")
    assert row["path"] == str((tmp_path / "there").resolve())
    assert row["members"] == [{"type": "user", "name": "admin", "role": "manager"}]
    code, out, _ = ready("space", "list")
    assert code == 0 and "There" in out


def test_an_unmounted_space_is_unavailable(ready: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert ready("space", "adopt", str(tmp_path / "there"))[0] == 0
    (tmp_path / "there").rename(tmp_path / "away")
    code, out, err = ready("space", "list", "--json")
    (row,) = [row for row in json.loads(out) if row["type"] == "project"]
    assert code == 0 and row["state"] == "unavailable" and row["used"] is None and "there" in err


def test_space_life(ready: Run, registry: Registry, tmp_path: Path) -> None:
    assert (
        ready("space", "create", "Team", "--quota", "none", "--file-mode", "0664", "--dir-mode", "2775")[0]
        == 0
    )
    record = registry.find("team")
    assert (record.file_mode, record.dir_mode) == (0o664, 0o2775)
    assert ready("space", "set", "team", "--name", "Our Team", "--quota", "5G", "--gid", "0")[0] == 0
    record = registry.find("team")
    assert (record.name, record.gid, record.file_mode) == ("Our Team", 0, 0o664)
    assert registry.grants.quota(record) == 5 << 30
    assert ready("space", "set", "team", "--alias", "crew", "--yes")[0] == 0
    assert registry.find("crew").path.endswith(b"/projects/crew")
    assert ready("space", "disable", "crew")[0] == 0 and registry.find("crew").state == "disabled"
    assert ready("space", "restore", "crew")[0] == 0 and registry.find("crew").state == "active"
    assert ready("space", "delete", "crew")[0] == 0
    assert os.path.isdir(record.path.replace(b"team", b"crew"))
    assert ready("space", "restore", "crew")[0] == 0
    assert ready("space", "delete", "crew", "--purge", "--yes")[0] == 0
    assert not os.path.exists(record.path.replace(b"team", b"crew"))


def test_what_is_made_is_told_as_json_too(ready: Run, tmp_path: Path) -> None:
    made = loaded(ready, "space", "create", "Team", "--json")
    assert made in loaded(ready, "space", "list", "--json") and made["alias"] == "team"
    (tmp_path / "there").mkdir()
    assert loaded(ready, "space", "adopt", str(tmp_path / "there"), "--json")["name"] == "there"
    code, out, _ = ready("user", "add", "ann", "--password-stdin", "--json", stdin="x")
    assert code == 0 and json.loads(out)["name"] == "ann"


@pytest.mark.parametrize("bad", [["--quota", "lots"], ["--file-mode", "9"], ["--label", "x"]])
def test_bad_values_make_no_space(ready: Run, registry: Registry, bad: list[str]) -> None:
    assert ready("space", "create", "Team", *bad)[0] == 2
    assert [record.type for record in registry.spaces()] == ["personal"]


def test_members(ready: Run, registry: Registry) -> None:
    ready("space", "create", "Team", "--manager", "admin")
    ready("group", "add", "crew")
    ready("user", "add", "ann", "--password-stdin", stdin="x")
    assert ready("space", "members", "team", "--add", "ann:viewer")[0] == 0
    rows = loaded(ready, "space", "members", "team", "--group", "--add", "crew:editor", "--json")
    assert {(row["type"], row["name"], row["role"]) for row in rows} == {
        ("user", "admin", "manager"),
        ("user", "ann", "viewer"),
        ("group", "crew", "editor"),
    }
    for bad in ("ann", "ann:god", "nobody:viewer"):
        assert ready("space", "members", "team", "--add", bad)[0] in (1, 2)
    assert ready("space", "members", "team", "--remove", "ann")[0] == 0
    assert ready("space", "members", "team", "--remove", "ann")[0] == 1
    assert len(registry.grants.members(registry.find("team"))) == 2


def test_members_that_were_deleted_are_not_listed(ready: Run) -> None:
    ready("space", "create", "Team")
    for _ in range(2):
        ready("user", "add", "gast", "--role", "guest", "--password-stdin", stdin="x")
        rows = loaded(ready, "space", "members", "team", "--add", "gast:viewer", "--json")
        assert [row["name"] for row in rows] == ["admin", "gast"]
        ready("user", "delete", "gast", "--yes")
        assert [row["name"] for row in loaded(ready, "space", "members", "team", "--json")] == ["admin"]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")
def test_root_acts_as_the_service(ready: Run, tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 65534, 65534)
    os.chmod(tmp_path.parent, 0o755)
    os.chmod(tmp_path.parent.parent, 0o755)
    environ = dict(os.environ, FSD_DATA=str(tmp_path / "data"), FSD_STATE=str(tmp_path / "state"))
    call = [sys.executable, "-m", "fsd", "space", "create", "Team"]
    done = subprocess.run(call, env=environ, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "cannot read this program" in done.stderr, done.stderr
    else:
        assert "Acting as" in done.stderr
    assert {path.lstat().st_uid for path in tmp_path.rglob("*")} == {65534}


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")
def test_strangers_are_told_who_may(ready: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    code, _, err = ready("user", "list")
    assert code == 1 and "belongs to 'root'" in err


def test_a_foreign_space_is_shown_before_it_is_accepted(ready: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    where = ["--data", str(tmp_path / "d2"), "--state", str(tmp_path / "s2")]
    assert ready("init", *where)[0] == 0
    assert ready("space", "adopt", str(home), *where)[0] == 0
    code, _, err = ready("space", "adopt", str(home))
    assert code == 1 and "--accept-acl" in err
    code, out, _ = ready("space", "adopt", str(home), "--accept-acl")
    assert code == 0 and "user 'admin': manager" in out


# ---- the rest


def test_key_export_and_import(ready: Run, registry: Registry) -> None:
    code, out, _ = ready("key", "export")
    assert code == 0 and bytes.fromhex(out.strip()) == registry.installation.key
    assert ready("key", "import", stdin="ab" * 32)[0] == 0
    assert registry.installation.key == b"\xab" * 32
    assert ready("key", "import", stdin="nonsense")[0] == 1
    assert ready("key", "import", stdin="abcd")[0] == 1
    assert registry.installation.key == b"\xab" * 32
    assert registry.grants.verify(registry.spaces()[0]) is None


def test_config_show(ready: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSD_WORKRES", "1")
    code, out, err = ready("config", "show", "--origin")
    assert code == 0 and "env FSD_DATA" in out and "FSD_WORKRES" in err
    found = loaded(ready, "config", "show", "--json")
    assert found["admin.password"] == {"value": "********", "origin": "env FSD_ADMIN_PASSWORD"}
    assert tomllib.loads(ready("config", "template")[1])["log"] == {}


def test_doctor(ready: Run, tmp_path: Path) -> None:
    rows = loaded(ready, "doctor", "--json")
    assert all(row["level"] in ("ok", "warning", "problem") for row in rows)
    assert all(row["todo"] for row in rows if row["level"] != "ok")
    os.chmod(tmp_path / "state" / "service.key", 0o644)
    code, out, _ = ready("doctor")
    assert code == 3 and "service.key" in out


def test_doctor_finds_a_displaced_space(ready: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "users" / "admin").rename(tmp_path / "away")
    code, out, _ = ready("doctor")
    assert code == 3 and "not available" in out


def test_check_finds_and_mends_grants(ready: Run, registry: Registry) -> None:
    assert ready("check")[0] == 0
    (record,) = registry.spaces()
    Path(os.fsdecode(record.path), ".fsd", "acl.json").unlink()
    code, out, _ = ready("check", "--json")
    assert code == 3 and [row["code"] for row in json.loads(out)] == ["grants"]
    code, out, _ = ready("check", "admin", "--repair")
    assert code == 0 and "repaired" in out
    assert ready("check")[0] == 0


def test_trash(ready: Run, registry: Registry) -> None:
    from fsd.core import operations, tree

    space = registry.open(registry.spaces()[0].id)
    Path(os.fsdecode(space.root), "file").write_text("x")
    tree.listing(space, b"")
    operations.delete(space, b"file")
    (item,) = loaded(ready, "trash", "list", "admin", "--json")
    assert item["path"] == "file"
    assert ready("trash", "restore", "admin", item["key"])[0] == 0
    assert Path(os.fsdecode(space.root), "file").read_text() == "x"
    operations.delete(space, b"file")
    assert ready("trash", "restore", "admin", "nothing")[0] == 1
    assert ready("trash", "empty", "admin", "--yes")[0] == 0
    assert loaded(ready, "trash", "list", "admin", "--json") == []


def test_completion_knows_every_command(ready: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = ready("completion", shell)
        assert code == 0 and all(name in out for name in COMMANDS) and "--read-only" in out or shell == "fish"
    script = (
        ready("completion", "bash")[1]
        + '\nCOMP_WORDS=(fsd space ad); COMP_CWORD=2; _fsd; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == "adopt"


def test_every_change_leaves_an_audit_line(ready: Run, tmp_path: Path) -> None:
    ready("space", "create", "Team")
    ready("space", "members", "team", "--add", "admin:editor")
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["init", "space create", "space grant"]
    assert all(line["actor"].startswith("cli:") for line in lines)


def test_commands_name_modules() -> None:
    assert all(command.module.startswith("fsd.cli.") for command in main_module.COMMANDS.values())
