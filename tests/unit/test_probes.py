"""What doctor finds, and that each finding says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsd.core.installation import Installation
from fsd.core.registry import Registry
from fsd.service import capabilities, config, probes
from fsd.service.config import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    Installation.initialise(tmp_path / "state", tmp_path / "data").close()
    return config.load({"data": str(tmp_path / "data"), "state": str(tmp_path / "state")}, {})


def by_probe(found: list[probes.Advice]) -> dict[str, probes.Advice]:
    assert all(advice.todo for advice in found if advice.level != "ok")
    return {advice.probe: advice for advice in found}


def test_a_fit_host(settings: Settings) -> None:
    found = by_probe(list(probes.host(settings)))
    for probe in ("versions", "file handles", "state directory", "secrets", "clock", "environment"):
        assert found[probe].level == "ok", found[probe]


def test_loose_secrets(settings: Settings) -> None:
    os.chmod(settings.state / "fsd.db", 0o640)
    assert by_probe(list(probes.host(settings)))["secrets"].level == "problem"


def test_small_limits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_number", lambda path: 8)
    found = by_probe(list(probes.host(settings)))
    assert "sysctl" in found["inotify watches"].todo and "sysctl" in found["inotify instances"].todo
    monkeypatch.setattr(probes, "_number", lambda path: None)
    assert by_probe(list(probes.host(settings)))["inotify watches"].level == "problem"


def test_missing_capabilities_are_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: 0)
    found = by_probe(list(probes.host(settings)))["capabilities"]
    assert found.level == "warning" and "CAP_DAC_READ_SEARCH" in found.found


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(os.statvfs(tmp_path))
    found[3] = found[4] = found[2] // 40  # blocks that are free
    full = os.statvfs_result(found)
    assert probes.disk("d", os.fsencode(tmp_path), 0).level == "ok"
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert probes.disk("d", os.fsencode(tmp_path), 1 << 60).level == "problem"
    monkeypatch.undo()
    assert probes.disk("d", os.fsencode(tmp_path / "missing"), 0).level == "warning"


def test_the_clock_and_the_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes.time, "time", lambda: 0.0)
    assert by_probe(list(probes.host(settings)))["clock"].level == "problem"
    odd = config.load({"data": str(settings.data), "state": str(settings.state)}, {"FSD_ODD": "1"})
    assert "FSD_ODD" in by_probe(list(probes.host(odd)))["environment"].found


def test_a_network_state_directory(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        probes.hosts, "NETWORK", frozenset({probes.hosts.place(os.fsencode(settings.state)).fstype})
    )
    assert by_probe(list(probes.host(settings)))["state directory"].level == "problem"


@pytest.mark.root
def test_a_sound_space(settings: Settings) -> None:
    registry = Registry(settings.state)
    found = list(probes.space(registry, registry.create("x"), 0))
    assert [advice.level for advice in found] == ["ok"] * len(found)


def test_spaces_in_trouble(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(settings.state)
    record = registry.create("x")
    home = Path(os.fsdecode(record.path))
    (home / ".fsd" / "acl.json").unlink()
    assert "grants" in " ".join(by_probe(list(probes.space(registry, record, 0))))
    registry.grants.mend(record)
    with monkeypatch.context() as patch:
        patch.setattr(probes, "takes_xattrs", lambda _: False)
        patch.setattr(probes.time, "time", lambda: 1_800_000_000.0 - 500_000_000)
        found = by_probe(list(probes.space(registry, record, 0)))
    assert found["space 'x', attributes"].level == "warning"
    assert found["space 'x', clock"].level == "problem"
    (home / ".fsd").rename(home / "displaced")
    (advice,) = probes.space(registry, record, 0)
    assert advice.level == "problem"


def test_a_read_only_space_is_not_written_to(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir()
    registry = Registry(settings.state)
    record = registry.adopt(os.fsencode(tmp_path / "ro"), "ro", read_only=True)
    found = list(probes.space(registry, record, 0))
    assert {advice.level for advice in found} == {"ok"} and not os.listdir(tmp_path / "ro")
