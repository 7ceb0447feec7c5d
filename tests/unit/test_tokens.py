"""App tokens: whose they are, and when they end."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from fsd.core import tokens as module
from fsd.core.errors import NameRefused
from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.core.tokens import PREFIX, Tokens


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    Installation.initialise(tmp_path / "state", tmp_path / "data")
    made = Registry(tmp_path / "state")
    made.add_user("ann", None)
    made.add_user("bob", None)
    return made


@pytest.fixture
def tokens(registry: Registry) -> Tokens:
    return Tokens(registry.accounts)


def test_a_token_stands_for_its_user_alone(registry: Registry, tokens: Tokens, tmp_path: Path) -> None:
    token, text = tokens.create("ann", "laptop")
    assert text.startswith(PREFIX) and len(text) > 40
    assert tokens.verify(text) is not None and tokens.verify(text, "ANN") is not None
    found = tokens.verify(text, "ann")
    assert found is not None and found[0] == registry.accounts.get("ann") and found[1].id == token.id
    for wrong in ("", PREFIX, text[:-1], text + "A", "x" + text, text.upper(), "fsd_\udcff"):
        assert tokens.verify(wrong) is None
    assert tokens.verify(text, "bob") is None and tokens.verify(text, "nobody") is None
    assert text.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "state").glob("fsd.db*"))


def test_names_are_unique_for_each_user(tokens: Tokens) -> None:
    tokens.create("ann", "laptop")
    tokens.create("bob", "laptop")
    with pytest.raises(FileExistsError):
        tokens.create("ann", "laptop")
    for bad in ("", "  ", "a\nb", "x" * 101):
        with pytest.raises(NameRefused):
            tokens.create("ann", bad)
    with pytest.raises(FileNotFoundError):
        tokens.create("nobody", "laptop")


def test_revoked_expired_disabled_and_deleted(
    registry: Registry, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = registry.accounts
    (_, first), (_, second) = tokens.create("ann", "one"), tokens.create("ann", "two", int(time.time()) + 100)
    epoch = accounts.get("ann").epoch
    assert tokens.revoke("ann", "one").name == "one"
    assert tokens.verify(first) is None and tokens.verify(second) is not None
    assert accounts.get("ann").epoch != epoch, "remembered credentials must not outlive it"
    with pytest.raises(FileNotFoundError):
        tokens.revoke("ann", "one")
    accounts.set_password("ann", "another password")
    assert tokens.verify(second) is not None
    accounts.disable("ann")
    assert tokens.verify(second) is None
    accounts.enable("ann")
    assert tokens.verify(second) is not None
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "time", lambda now=time.time(): now + 101)
        assert tokens.verify(second) is None
    with pytest.raises(NameRefused):
        tokens.create("ann", "late", int(time.time()) - 1)
    registry.delete_user("ann")
    registry.add_user("ann", None, take_over=True)
    assert tokens.verify(second) is None and tokens.of(accounts.get("ann")) == []


def test_the_last_use_is_told_once_an_hour(registry: Registry, tokens: Tokens) -> None:
    _, text = tokens.create("ann", "laptop")
    before = registry.generation()
    assert tokens.of(registry.accounts.get("ann"))[0].used == 0
    tokens.verify(text)
    used = tokens.of(registry.accounts.get("ann"))[0].used
    assert abs(used - time.time()) < 5
    tokens.verify(text)
    assert registry.generation() == before, "a use is not a change that processes must notice"


def test_a_registry_of_an_earlier_release_gets_the_table(registry: Registry) -> None:
    path = registry.state_dir / "fsd.db"
    registry.accounts.installation.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE tokens")
    _, text = Tokens(registry.accounts).create("ann", "laptop")
    assert Tokens(Registry(registry.state_dir).accounts).verify(text) is not None
