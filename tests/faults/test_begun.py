"""What a host had begun, as the next one finds it: intents and what is staged, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsd.core import bequest, intents, lease
from fsd.core.errors import Elsewhere
from fsd.core.places import internal, source
from fsd.core.space import Space
from tests.faults.two_hosts import Clock, Pair
from tests.unit.core_space import on_disk, put, read


def stage(space: Space, name: bytes, into: bytes) -> int:
    """As a move that was cut off: the only copy lies in staging, and its intent beside it. The number."""
    with (
        source(space, name) as place,
        internal(space, "staging") as staging,
        intents.of(space).begin() as ticket,
    ):
        binding = place.binding()
        assert binding is not None
        body: intents.Body = {"path": into.hex(), "new": binding.hex(), "only": True, "overwrite": False}
        ticket.record("place", body)
        os.rename(place.name, ticket.name, src_dir_fd=place.fd, dst_dir_fd=staging)
        return ticket.number


def test_it_is_the_next_hosts_to_end(tmp_path: Path, clock: Clock) -> None:
    pair = Pair(tmp_path / "pair", clock)
    one, two = (spaces[0] for spaces in pair.hosts)
    put(one, b"f", b"the only copy")
    with internal(one, "staging") as staging:
        stage(one, b"f", b"g")
        pair.hand_over(1)
        pair.replay(1)
        assert read(two, b"g") == b"the only copy" and intents.of(two).pending() == []
        # The filesystem's own fence: no call that was under way puts anything in.
        with pytest.raises(FileNotFoundError):
            os.rename(on_disk(one, b"g"), b"x", dst_dir_fd=staging)
    pair.hand_over(0)
    pair.replay(0)
    assert read(one, b"g") == b"the only copy" and intents.of(one).pending() == []
    pair.close()


def test_nobody_has_the_lease_while_half_of_it_is_taken_over(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent has come, what it is about has not: a replay would take it for done, and sweep the only copy."""
    pair = Pair(tmp_path / "pair", clock)
    one, two = (spaces[0] for spaces in pair.hosts)
    put(one, b"f", b"the only copy")
    number = stage(one, b"f", b"g")
    real = os.rename

    def fails(src: bytes, *args: object, **options: int) -> None:
        if src == intents.staged_name(number):
            raise OSError(5, "the storage fails")
        real(src, *args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", fails)
        with pytest.raises(OSError, match="storage fails"):
            pair.hand_over(1)
        assert not lease.may_write(two)
        pair.replay(1)
        assert intents.of(two).get(number) is not None
    pair.hand_over(1)
    pair.replay(1)
    assert read(two, b"g") == b"the only copy"
    pair.close()


def test_what_an_earlier_release_has_staged_is_its_own_hosts(tmp_path: Path, clock: Clock) -> None:
    """Its intents are in that host's database."""
    pair = Pair(tmp_path / "pair", clock)
    one = pair.hosts[0][0]
    old = os.path.join(one.root, b".fsd/staging", bequest.OLD_PREFIX + lease.host_id(one.state_dir).encode())
    os.mkdir(old)
    Path(os.fsdecode(old), "0123456789abcdef").write_bytes(b"the only copy")
    pair.hand_over(1)
    pair.replay(1)
    assert os.listdir(old) == [b"0123456789abcdef"]
    pair.hand_over(0)
    with internal(one, "staging") as staging:
        assert os.listdir(b"/proc/self/fd/%d" % staging) == [b"0123456789abcdef"]
    assert not os.path.exists(old)
    pair.close()


def test_an_intent_that_is_damaged_is_kept(
    tmp_path: Path, clock: Clock, allow_log: Callable[[str], None]
) -> None:
    allow_log("unknown kind .damaged.")
    with pytest.raises(Elsewhere), bequest.fenced():
        raise FileNotFoundError
    pair = Pair(tmp_path / "pair", clock)
    space = pair.hosts[0][0]
    Path(os.fsdecode(on_disk(space, b".fsd/staging")), "work-nobody").mkdir()
    with internal(space, "staging") as staging:
        Path(f"/proc/self/fd/{staging}", f"{7:016x}.intent").write_text("{")
    (damaged,) = intents.of(space).pending()
    assert damaged.kind == "damaged"
    pair.replay(0)
    assert [each.kind for each in intents.of(space).pending()] == ["damaged"], "it is kept, and said"
    pair.close()
