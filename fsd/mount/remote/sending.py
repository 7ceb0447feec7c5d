"""One change on its way to the server: a PUT, or for large ones a resumable upload (TUS 1.0) in several requests."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import trio

from fsd.mount.remote.client import Answer
from fsd.mount.remote.dav import Dav, address, seconds
from fsd.mount.remote.errors import Refused

LARGE = 16 << 20
"""From this size on what arrived stays when the connection breaks."""
PART = 16 << 20
_INLINE = 1 << 18
_VERSION = ("Tus-Resumable", "1.0.0")
_LOST = (404, 409, 410)


class Bytes:
    """`size` bytes of an open file. One that becomes shorter meanwhile is filled up: it will be sent again anyway."""

    def __init__(self, fd: int, start: int, size: int, told: Callable[[int], None]) -> None:
        self._fd, self._start, self._size, self._told = fd, start, size, told

    def whole(self) -> bytes:
        """All of it, for small ones."""
        return os.pread(self._fd, self._size, self._start).ljust(self._size, b"\0")

    async def pieces(self) -> AsyncIterator[bytes]:
        """In pieces; the disk is read by a thread."""
        at, end = self._start, self._start + self._size
        while at < end:
            count = min(_INLINE, end - at)
            data = await trio.to_thread.run_sync(os.pread, self._fd, count, at)
            data = data.ljust(count, b"\0")
            self._told(len(data))
            yield data
            at += count


async def put(
    dav: Dav, path: str, fd: int, size: int, base: str | None, mtime_ns: int, told: Callable[[int], None]
) -> Answer:
    """One request."""
    source = Bytes(fd, 0, size, told)
    return await dav.put(path, source.whole() if size <= _INLINE else source.pieces(), size, base, mtime_ns)


class Resumable:
    """An upload in several requests. `place`: its address, None before it is begun; `saved` hears of it."""

    def __init__(self, dav: Dav, place: str | None, saved: Callable[[str | None], None]) -> None:
        self._dav, self._place, self._saved = dav, place, saved

    async def send(
        self, folder: str, name: bytes, fd: int, size: int, base: str | None, mtime_ns: int,
        told: Callable[[int], None],
    ) -> Answer:  # fmt: skip
        """Send what is missing; the last answer. Refused 412: what is there is not what was seen."""
        offset = await self._resume(size)
        if offset is None:
            await self._begin(folder, name, size, base, mtime_ns)
            offset = 0
        told(offset)
        while True:
            count = min(PART, size - offset)
            assert self._place is not None
            headers = [
                _VERSION, ("Upload-Offset", str(offset)), ("Content-Length", str(count)),
                ("Content-Type", "application/offset+octet-stream"),
            ]  # fmt: skip
            try:
                body = Bytes(fd, offset, count, told).pieces()
                answer = await self._dav.client.ask("PATCH", self._place, headers, body)
            except Refused as error:
                if error.status in (*_LOST, 412):
                    self._forget()
                raise
            offset += count
            if offset == size:
                return answer

    async def _resume(self, size: int) -> int | None:
        """Where to go on; None if it has to be begun (again)."""
        if self._place is None:
            return None
        answer = await self._dav.client.ask("HEAD", self._place, [_VERSION], also=_LOST)
        offset, length = (answer.headers.get(name, "") for name in ("upload-offset", "upload-length"))
        if answer.status in _LOST or length != str(size) or not offset.isdigit() or int(offset) >= size:
            self._forget()
            return None
        return int(offset)

    async def _begin(self, folder: str, name: bytes, size: int, base: str | None, mtime_ns: int) -> None:
        fields = {"filename": name, "mtime": seconds(mtime_ns).encode()}
        metadata = ",".join(f"{key} {base64.b64encode(value).decode()}" for key, value in fields.items())
        condition = ("If-None-Match", "*") if base is None else ("If-Match", f'"{base}"')
        headers = [_VERSION, ("Upload-Length", str(size)), ("Upload-Metadata", metadata), condition]
        answer = await self._dav.client.ask("POST", address(folder) + "/", headers)
        self._place = urlsplit(answer.headers.get("location", "")).path or None
        if self._place is None:
            raise Refused(502, "it does not say where the upload goes")
        self._saved(self._place)

    def _forget(self) -> None:
        self._place = None
        self._saved(None)
