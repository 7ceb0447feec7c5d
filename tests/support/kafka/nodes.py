"""GPFS watch-folder messages made from real activity: inotify hears the tree, and what it says goes out in the
documented shape, as if several nodes had reported it.

So moves, cookies, directories and their order are those of a real kernel; which node says what, and how the nodes'
messages interleave, is chosen by the seed.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable

from inotify_simple import Event, INotify, flags

_MASK = (
    flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.CLOSE_WRITE | flags.ATTRIB
    | flags.DELETE_SELF | flags.MOVE_SELF | flags.MODIFY | flags.OPEN | flags.CLOSE_NOWRITE | flags.ACCESS
)  # fmt: skip
Send = Callable[[list[bytes]], None]


class Nodes:
    """Listens to a directory on a thread of its own and gives messages to `send`, in batches.

    What happens in a directory before it has a watch is made up for, as a cluster's filesystem would have reported it:
    its entries are said to have been created.
    """

    def __init__(self, root: bytes, reported: str, send: Send, *, nodes: int = 3, seed: int = 0) -> None:
        self._root, self._reported, self._send = root, reported, send
        self._random = random.Random(seed)
        self._nodes = nodes
        self._paths: dict[int, bytes] = {}
        self._inotify = INotify()
        self._stop = threading.Event()
        self._way = threading.Lock()
        self._held: list[list[bytes]] = [[] for _ in range(nodes)]
        self.said = 0
        self._watch(b"", announce=False)
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)
        self._thread.start()

    def _at(self, path: bytes) -> bytes:
        return self._root + b"/" + path if path else self._root

    def _watch(self, path: bytes, *, announce: bool) -> None:
        try:
            wd = self._inotify.add_watch(os.fsdecode(self._at(path)), _MASK)
            entries = list(os.scandir(self._at(path)))
        except OSError:
            return
        self._paths[wd] = path
        for entry in entries:
            below = path + b"/" + entry.name if path else entry.name
            if below == b".fsd":
                continue
            is_dir = entry.is_dir(follow_symlinks=False)
            if announce:
                self._say(int(flags.CREATE | (flags.ISDIR if is_dir else 0)), below, 0)
            if is_dir:
                self._watch(below, announce=announce)

    def _run(self) -> None:
        while not self._stop.is_set():
            for event in self._inotify.read(timeout=50, read_delay=5):
                self._hear(event)
            self.flush()

    def pause(self) -> None:
        """Hold messages back; those that were on their way have arrived."""
        self._way.acquire()

    def go_on(self) -> None:
        """The way is free."""
        self._way.release()

    def _hear(self, event: Event) -> None:
        above = self._paths.get(event.wd)
        if event.mask & flags.Q_OVERFLOW:
            raise AssertionError("the generator was too slow")
        if above is None:
            return
        if event.mask & flags.IGNORED:
            del self._paths[event.wd]
            return
        name = os.fsencode(event.name)
        path = b"/".join(part for part in (above, name) if part)
        if path.split(b"/")[0] == b".fsd":
            return
        self._say(event.mask, path, event.cookie)
        if event.mask & flags.ISDIR and name:
            if event.mask & flags.CREATE:
                self._watch(path, announce=True)
            elif event.mask & flags.MOVED_TO:
                self._watch(path, announce=False)  # the content of what moves in is never announced

    def _say(self, mask: int, path: bytes, cookie: int) -> None:
        names = [f"IN_{flag.name}" for flag in flags.from_mask(mask)]
        node = self._random.randrange(self._nodes)
        message = {
            "WF_JSON": "0.0.2", "wd": "1", "cookie": str(cookie), "mask": hex(mask), "event": " ".join(names),
            "path": f"{self._reported}/{path.decode('utf-8', 'surrogateescape')}".rstrip("/"),
            "clusterName": "c1.example.org", "nodeName": f"n{node}", "nfsClientIp": "", "fsName": "fs1",
            "inode": "114297", "filesetID": "1", "linkCount": "1", "openFlags": "0", "poolName": "system",
            "fileSize": "5", "ownerUserId": "0", "ownerGroupId": "0", "atime": "2026-11-21_02:00:00.000+0000",
            "ctime": "2026-11-21_02:00:00.000+0000", "mtime": "2026-11-21_02:00:00.000+0000",
            "eventTime": "2026-11-21_02:00:00.100+0000", "clientUserId": "0", "clientGroupId": "0",
            "processId": "1", "bytesRead": "0", "bytesWritten": "0",
        }  # fmt: skip
        self._held[node].append(json.dumps(message).encode())

    def flush(self) -> None:
        """Send what the nodes hold: each in its own order, the nodes interleaved."""
        with self._way:
            self._flush()

    def _flush(self) -> None:
        batch: list[bytes] = []
        waiting = [queue for queue in self._held if queue]
        while waiting:
            queue = self._random.choice(waiting)
            batch.append(queue.pop(0))
            waiting = [queue for queue in waiting if queue]
        if batch:
            self.said += len(batch)
            self._send(batch)

    def close(self) -> None:
        """Hear what has happened so far, send it, and stop; a second time does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join(30)
        for event in self._inotify.read(timeout=0):
            self._hear(event)
        self.flush()
        self._inotify.close()
