"""Settings: precedence, origins, refusals, secrets, discovery."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsd.core.errors import USAGE, UserError
from fsd.service import config, options
from fsd.service.options import Address


def origins(settings: config.Settings) -> dict[str, str]:
    return {key: origin for key, _, origin in settings.show()}


def test_defaults(tmp_path: Path) -> None:
    settings = config.load({"data": str(tmp_path)}, {"XDG_STATE_HOME": str(tmp_path / "xdg")})
    assert settings.data == tmp_path and settings.listen == Address("127.0.0.1", 9200)
    assert settings.ops_listen == Address("127.0.0.1", 9209) and settings.only == (
        "web",
        "watcher",
        "jobs",
        "mounts",
    )
    assert origins(settings)["listen"] == "default" and origins(settings)["data"] == "flag"


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('workers = 3\nlisten = "127.0.0.1:1"\n[log]\nlevel = "debug"\n[trash]\nkeep = "2d"\n')
    environ = {
        "FSD_DATA": "/env",
        "FSD_LISTEN": "127.0.0.1:2",
        "FSD_LOG_LEVEL": "error",
        "FSD_CONFIG": str(file),
    }
    settings = config.load({"log.level": "warning"}, environ)
    assert (settings.workers, settings.listen.port, settings.log_level, settings.trash_keep) == (
        3,
        2,
        "warning",
        172800,
    )
    found = origins(settings)
    assert found["workers"] == f"file {file}" and found["listen"] == "env FSD_LISTEN"
    assert found["log.level"] == "flag" and found["data"] == "env FSD_DATA"


@pytest.mark.parametrize(
    "text",
    [
        "nothing = 1",
        "[log]\nlevle = 'x'",
        "[log]\nlevel = 'loud'",
        "workers = 0",
        "workers = true",
        "workers = 1.5",
        "listen = 'nowhere'",
        "listen = '::1:9'",
        "listen = 9200",
        "only = ['web', 'mail']",
        "only = 3",
        "behind_proxy = 'perhaps'",
        "[trash]\nkeep = 'long'",
        "[disk]\nreserve = '1X'",
        "not toml",
        "data = ''",
        "[data]\nx = 1",
        "admin = 'x'",
        "x = " + "[" * 5000,
        "[disk]\nreserve = '" + "9" * 5000 + "'",
        "[disk]\nreserve = '" + "9" * 19 + "P'",
        "[http]\ntimeout = '" + "9" * 12 + "w'",
        "mounts = ['ann \"/m']",
        '[http]\npublic_url = "a\\nb"',
    ],
)
def test_wrong_files_are_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        config.load({"data": "/d", "config": str(file)}, {})
    assert (
        caught.value.exit_code == USAGE
        and str(file) in str(caught.value)
        and "\n" not in str(caught.value)[:-1]
    )


def test_wrong_environment_and_flags_name_themselves() -> None:
    with pytest.raises(UserError, match="FSD_WORKERS"):
        config.load({"data": "/d"}, {"FSD_WORKERS": "many"})
    with pytest.raises(UserError, match="--ops-listen"):
        config.load({"data": "/d", "ops.listen": "x"}, {})


def test_variables(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('data = "${HOME}/d"\nlisten = "127.0.0.1:${PORT}"\n[auth]\nrealm = "$${not} $5"\n')
    settings = config.load({"config": str(file)}, {"HOME": "/h", "PORT": "99"})
    assert (str(settings.data), settings.listen.port, settings.auth_realm) == ("/h/d", 99, "${not} $5")
    with pytest.raises(UserError, match="PORT"):
        config.load({"config": str(file)}, {"HOME": "/h"})


def test_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret\n")
    file = tmp_path / "c.toml"
    file.write_text('[admin]\npassword_file = "pw"\n')
    settings = config.load({"data": "/d", "config": str(file)}, {})
    assert settings.admin_password == "s3cret"
    shown = {key: value for key, value, _ in settings.show()}
    assert shown["admin.password"] == "********"
    settings = config.load({"data": "/d"}, {"FSD_ADMIN_PASSWORD_FILE": str(tmp_path / "pw")})
    assert settings.admin_password == "s3cret" and settings.unknown_environment == ()
    with pytest.raises(UserError):
        config.load({"data": "/d"}, {"FSD_ADMIN_PASSWORD_FILE": "/nowhere"})
    file.write_text('[log]\nlevel_file = "pw"\n')
    with pytest.raises(UserError, match="level_file"):
        config.load({"data": "/d", "config": str(file)}, {})


def test_paths_are_relative_to_where_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "c.toml").write_text('data = "d"\n[tls]\ncert = "c.pem"\nkey = ""\n')
    settings = config.load({"config": "etc/c.toml", "state": "s"}, {})
    assert settings.data == tmp_path / "etc" / "d" and settings.tls_cert == tmp_path / "etc" / "c.pem"
    assert settings.state == tmp_path / "s" and settings.tls_key is None


def test_the_file_in_the_state_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "fsd.toml").write_text("workers = 7\n")
    assert config.load({"data": "/d", "state": str(tmp_path)}, {}).workers == 7


@pytest.mark.parametrize("what", ["directory", "dangling", "fifo"])
def test_a_file_that_is_none_is_not_passed_over(tmp_path: Path, what: str) -> None:
    """Where somebody put settings, the defaults are not what is meant."""
    file = tmp_path / "state" / "fsd.toml"
    file.parent.mkdir()
    if what == "directory":
        file.mkdir()
    elif what == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to("/nowhere/at/all")
    with pytest.raises(UserError, match="fsd.toml is not a file that can be read"):
        config.load({"data": str(tmp_path), "state": str(tmp_path / "state")}, {})


def test_no_data_root() -> None:
    with pytest.raises(UserError, match="--data") as caught:
        config.load({}, {})
    assert caught.value.exit_code == USAGE
    with pytest.raises(UserError, match="no configuration file"):
        config.load({"config": "/nowhere.toml"}, {})


def test_the_state_directory_is_the_same_for_each_way_to_write_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    environ = {"XDG_STATE_HOME": "/xdg"}
    ways = [
        config.load({"data": way}, environ).state
        for way in ("data", "./data/", "link", str(tmp_path / "data"))
    ]
    assert len(set(ways)) == 1
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert str(config.default_state(tmp_path, environ)).startswith("/xdg/fsd/")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(config.default_state(tmp_path, environ)).startswith("/var/lib/fsd/")


def test_unknown_variables_are_told() -> None:
    assert config.load({"data": "/d"}, {"FSD_LISTN": "x", "FSD_TEST_STRICT": "1"}).unknown_environment == (
        "FSD_LISTN",
    )


def test_the_template_is_the_defaults(tmp_path: Path) -> None:
    text = config.template()
    assert tomllib.loads(text) == {name: {} for name in tomllib.loads(text)}
    file = tmp_path / "c.toml"
    file.write_text(re.sub(r"(?m)^#(?=\w)", "", text))
    settings = config.load({"data": "/d", "state": "/s", "config": str(file)}, {})
    assert settings == config.Settings(data=Path("/d"), state=Path("/s"), config=file)


@given(st.integers(0, 1 << 60))
def test_sizes_are_shown_exactly(size: int) -> None:
    assert options.parse_size(options.show_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10", 10), ("1K", 1024), ("1.5k", 1536), ("2 GiB", 2 << 30), ("3MB", 3 << 20), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.parse_size(text) == size


@given(st.text(max_size=30))
def test_addresses_come_back(text: str) -> None:
    try:
        found = options.parse_address(text)
    except ValueError:
        return
    assert options.parse_address(str(found)) == found


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("127.0.0.1.evil.org:1", False),
    ],
)
def test_loopback(text: str, loopback: bool) -> None:
    assert options.parse_address(text).is_loopback is loopback
