"""Directories by their handles."""

from __future__ import annotations

import ctypes
import errno

import pytest

from watcher.sources import fanotify_abi


class Kernel:
    """open_by_handle_at(2) with answers made before."""

    def __init__(self, *answers: int) -> None:
        self.answers, self.asked = answers, 0

    def open_by_handle_at(self, mount_fd: int, handle: bytes, flags: int) -> int:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        ctypes.set_errno(max(0, -answer))
        return answer if answer >= 0 else -1


def test_a_number_that_is_being_given_away_is_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    kernel = Kernel(-errno.ENOMEM, -errno.ENOMEM, -errno.ENOMEM, -errno.ESTALE)
    monkeypatch.setattr(fanotify_abi, "_libc", kernel)
    with pytest.raises(OSError) as told:
        fanotify_abi.open_handle(3, b"")
    assert told.value.errno == errno.ESTALE
    kernel.answers, kernel.asked = (-errno.ENOMEM, 7), 0
    assert fanotify_abi.open_handle(3, b"") == 7


def test_a_kernel_without_memory_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch):
    kernel = Kernel(-errno.ENOMEM)
    monkeypatch.setattr(fanotify_abi, "_libc", kernel)
    with pytest.raises(OSError) as told:
        fanotify_abi.open_handle(3, b"")
    assert told.value.errno == errno.ENOMEM and kernel.asked < 20
