"""The loop's threads, in the place of cheroot's pool: as many as are busy at once, and no queue."""

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dav.server import Server


class Crew:
    """Begins with two threads and grows while all of them are busy, up to ``maximum``."""

    def __init__(self, server: "Server", maximum: int) -> None:
        self.server = server
        self.max = maximum
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """cheroot starts its pool before there is a loop: the server calls ``grow`` when there is one."""

    def grow(self) -> None:
        """One thread more, unless there are enough."""
        self._threads = [thread for thread in self._threads if thread.is_alive() or thread.ident is None]
        if len(self._threads) >= self.max:
            return
        thread = threading.Thread(
            target=self.server.loop.work, name=f"web-{len(self._threads) + 1}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    @property
    def size(self) -> int:
        return len(self._threads)

    @property
    def idle(self) -> int:
        """Threads that have nothing to do, the one that waits for clients included."""
        loop = self.server.loop
        return loop.waiting + loop.leader_rests

    def stop(self, timeout: float | None = 5) -> None:
        """Wait until the threads have ended; the loop is over already."""
        until = time.monotonic() + (timeout or 0)
        for thread in self._threads:
            thread.join(max(0.1, until - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self.server.loop.dispose()
