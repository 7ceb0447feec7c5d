"""Worker threads: a bounded queue in front, and more threads when slow transfers hold the usual ones."""

import queue
import threading
from typing import Any

from cheroot.workers.threadpool import ThreadPool, WorkerThread


class Pool(ThreadPool):  # type: ignore[misc,unused-ignore]
    """Grows while requests wait and nobody is idle.  ``put`` never waits: queue.Full is the caller's 503."""

    _queue: "queue.Queue[Any]"
    _threads: list[threading.Thread]

    def __init__(self, server: Any, minimum: int, maximum: int, queued: int) -> None:
        super().__init__(server, min=minimum, max=maximum, accepted_queue_size=queued)

    def put(self, obj: Any) -> None:
        self._queue.put_nowait(obj)
        if self._queue.qsize() > self.idle and len(self._threads) < self.max:
            self.grow(1)

    @property
    def relaxed(self) -> bool:
        """Whether nothing waits and at least half of the usual threads are idle."""
        return not self._queue.queue and self.idle * 2 >= self.min

    def grow(self, amount: int) -> None:
        """Start threads without waiting until they run, as the base does in steps of 0.1 s."""
        for _ in range(min(amount, int(self.max) - len(self._threads))):
            worker = WorkerThread(self.server)  # type: ignore[no-untyped-call]
            worker.name = f"web-{len(self._threads) + 1}"
            worker.daemon = True
            worker.start()
            self._threads.append(worker)

    def stop(self, timeout: float | None = 5) -> None:
        """Let the requests under way and queued finish for ``timeout`` seconds, then cut their connections."""
        while self._queue.maxsize and self._queue.maxsize - self._queue.qsize() < len(self._threads):
            try:  # the base needs room for one end mark a thread
                self._queue.get_nowait().close()
            except queue.Empty:
                break
        super().stop(timeout)  # type: ignore[arg-type]
