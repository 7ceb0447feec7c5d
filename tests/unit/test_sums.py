"""The database of checksums, and the thread that writes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsd.core.sums import Sums, of_bytes


@pytest.fixture
def sums(tmp_path: Path) -> Iterator[Sums]:
    made = Sums(tmp_path / "s.sums.db", tmp_path / "s.sums-lock")
    yield made
    made.close()


def test_closing_waits_for_what_is_being_written(sums: Sums, tmp_path: Path) -> None:
    failed: list[BaseException] = []
    over = threading.Event()

    def writing() -> None:
        try:
            while not over.is_set():
                sums.flush()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=writing)
    thread.start()
    etags = [f"{number:032x}" for number in range(150)]
    for etag in etags:
        sums.note(etag, "00", of_bytes(etag.encode()))
        sums.close()
    over.set()
    thread.join()
    assert failed == []
    again = Sums(tmp_path / "s.sums.db", tmp_path / "s.sums-lock")
    assert len(again.known(etags)) == len(etags)
    again.close()
