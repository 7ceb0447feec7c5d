"""The leases of the spaces that several hosts share: a thread for each storage takes, keeps and gives them back.

A storage that hangs holds up its own leases, which then run out, and nobody else's. What this host may do is told by
`fsd.core.lease` alone; here is only who keeps it up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fsd.core.lease import Host, Lease, Record

if TYPE_CHECKING:
    from fsd.core.space import Space

log = logging.getLogger(__name__)

STEPS = 4
"""Steps in the length of a lease."""
END = 3.0
"""Seconds to wait for what a storage says at the end."""


class Leases:
    """All leases of this host. `taken(space, old)`: another one had it before (`old`), or nobody: see `Lease`."""

    def __init__(
        self,
        host: Host,
        taken: Callable[[Space, Record | None], None],
        registry: Callable[[], str] = lambda: "",
    ) -> None:
        """`registry`: what the others are told of this host's users and spaces; once a second at most."""
        self._host = host
        self._registry = registry
        self._taken = taken
        self._guard = threading.Lock()
        self._groups: dict[str, dict[str, Lease]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._ending = threading.Event()
        self._said: dict[str, str] = {}

    def follow(self, spaces: Mapping[str, tuple[str, Space]]) -> None:
        """Keep exactly these spaces' leases: by key, the storage and the space. What is no longer wanted is given
        back by its thread."""
        with self._guard:
            for group in self._groups.values():
                for key in [
                    key for key in group if key not in spaces or group[key].space is not spaces[key][1]
                ]:
                    self._leave(group.pop(key))
            for key, (storage, space) in spaces.items():
                group = self._groups.setdefault(storage, {})
                if key not in group and not space.record.read_only:
                    group[key] = self._lease(space)
                if storage not in self._threads:
                    thread = threading.Thread(
                        target=self._keep, args=(group,), name=f"leases {storage}", daemon=True
                    )
                    self._threads[storage] = thread
                    thread.start()

    def _lease(self, space: Space) -> Lease:
        return Lease(space, self._host, lambda old: self._taken(space, old), registry=self._registry)

    def _leave(self, lease: Lease) -> None:
        threading.Thread(target=self._release, args=(lease,), name="lease", daemon=True).start()

    def told(self, key: str) -> dict[str, Any] | None:
        """For `status`; asks no storage."""
        with self._guard:
            lease = next((group[key] for group in self._groups.values() if key in group), None)
        if lease is None:
            return None
        seen = lease.seen
        return {
            "held": lease.held,
            "host": seen.name if seen is not None else None,
            "address": seen.address if seen is not None else None,
            "token": seen.token if seen is not None else 0,
            "age": round(lease.age, 1),
            "trouble": f"it cannot be looked at ({said})" if (said := self._said.get(key)) else lease.trouble,
        }

    def close(self) -> None:
        """Give all back, so that others need not wait; a storage that hangs is not waited for."""
        self._ending.set()
        for thread in self._threads.values():
            thread.join(END)

    def _keep(self, group: dict[str, Lease]) -> None:
        while not self._ending.is_set():
            for key, lease in self._copy(group):
                self._step(key, lease)
            self._ending.wait(self._host.ttl / STEPS)
        for _, lease in self._copy(group):
            self._release(lease)

    def _copy(self, group: dict[str, Lease]) -> list[tuple[str, Lease]]:
        with self._guard:
            return list(group.items())

    def _step(self, key: str, lease: Lease) -> None:
        held = lease.held
        try:
            now = lease.step()
        except OSError as error:
            now = lease.held
            text = str(error)
            if self._said.get(key) != text:
                self._said[key] = text
                log.warning("space %s: its lease cannot be looked at: %s", lease.space.record.id, text)
        else:
            self._said.pop(key, None)
        if now != held:
            who = lease.seen.name if lease.seen is not None else "nobody"
            log.info(
                "space %s: %s",
                lease.space.record.id,
                "this host works on it" if now else f"held by {who} now",
            )

    def _release(self, lease: Lease) -> None:
        try:
            lease.release()
        except OSError as error:
            log.info("space %s: its lease runs out by itself: %s", lease.space.record.id, error)
