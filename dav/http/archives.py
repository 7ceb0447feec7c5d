"""zip and tar as streams of known length, pure: the same members in the same order are the same bytes.

zip: nothing is compressed, sizes and sums follow their data (as nobody knows the sum before), zip64 where it is needed.
tar: POSIX (pax), so that names of any bytes and sizes of any length are kept.
"""

from __future__ import annotations

import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, cast

_BLOCK = tarfile.BLOCKSIZE
_EARLIEST, _LATEST = 315_532_800, 4_354_819_198
"""What the times of a zip can say: from 1980 to 2107."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder; `name` is its path in the archive. Sizes in bytes, `mtime` in seconds since the epoch."""

    name: bytes
    folder: bool
    size: int
    mtime: int
    executable: bool = False


Read = Callable[[int], Iterable[bytes]]
"""The bytes of a member by its number, exactly as many as its size says."""


class _Sink:
    """Where zipfile writes to: it can't go back."""

    def __init__(self) -> None:
        self._held: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._held.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        return data


def zip_pieces(members: Sequence[Member], read: Read) -> Iterator[bytes]:
    """The bytes of a zip."""
    sink = _Sink()
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_STORED) as archive:
        for number, (member, name) in enumerate(zip(members, _texts(members), strict=True)):
            info = _zip_info(member, name)
            if member.folder:
                archive.mkdir(info)
            else:
                with archive.open(info, "w", force_zip64=_is_large(member.size)) as target:
                    for data in read(number):
                        target.write(data)
                        yield sink.take()
            yield sink.take()
    yield sink.take()


def zip_length(members: Sequence[Member]) -> int:
    """How many bytes `zip_pieces` gives (APPNOTE.TXT 4.3)."""
    offset = directory = 0
    for member, text in zip(members, _texts(members), strict=True):
        name = len(text.encode())
        large = not member.folder and _is_large(member.size)
        extra = (16 if member.size > zipfile.ZIP64_LIMIT else 0) + (8 if offset > zipfile.ZIP64_LIMIT else 0)
        directory += 46 + name + (extra + 4 if extra else 0)
        offset += 30 + name + member.size
        if not member.folder:
            offset += (20 + 24) if large else 16
    end = 22
    if len(members) > zipfile.ZIP_FILECOUNT_LIMIT or max(offset, directory) > zipfile.ZIP64_LIMIT:
        end += 56 + 20
    return offset + directory + end


def _is_large(size: int) -> bool:
    return size * 1.05 > zipfile.ZIP64_LIMIT


def _zip_info(member: Member, name: str) -> zipfile.ZipInfo:
    moment = time.gmtime(min(max(member.mtime, _EARLIEST), _LATEST))
    info = zipfile.ZipInfo(name, moment[:6])
    info.create_system = 3
    info.file_size = member.size
    info.CRC = info.compress_size = 0
    mode = 0o40755 if member.folder else 0o100755 if member.executable else 0o100644
    info.external_attr = mode << 16 | (0x10 if member.folder else 0)
    return info


def _texts(members: Sequence[Member]) -> Iterator[str]:
    """Names as text, unique: what is not UTF-8 has no other way into a zip."""
    seen: set[str] = set()
    for member in members:
        text = member.name.decode("utf-8", "replace")
        if "\N{REPLACEMENT CHARACTER}" in text:
            stem, number = text, 1
            while text in seen:
                number += 1
                text = f"{stem} ({number})"
            seen.add(text)
        yield text + ("/" if member.folder else "")


def tar_pieces(members: Sequence[Member], read: Read) -> Iterator[bytes]:
    """The bytes of a tar."""
    total = 0
    for number, member in enumerate(members):
        head = _tar_head(member)
        yield head
        total += len(head) + _padded(member.size)
        if not member.folder:
            yield from read(number)
            yield bytes(-member.size % _BLOCK)
    yield bytes(_tar_end(total))


def tar_length(members: Sequence[Member]) -> int:
    """How many bytes `tar_pieces` gives."""
    total = sum(len(_tar_head(member)) + _padded(member.size) for member in members)
    return total + _tar_end(total)


def _tar_head(member: Member) -> bytes:
    info = tarfile.TarInfo(member.name.decode("utf-8", "surrogateescape"))
    info.mtime = max(0, member.mtime)
    info.type = tarfile.DIRTYPE if member.folder else tarfile.REGTYPE
    info.mode = 0o755 if member.folder or member.executable else 0o644
    info.size = 0 if member.folder else member.size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return size + -size % _BLOCK


def _tar_end(total: int) -> int:
    """Two empty blocks, and what fills the last record."""
    return 2 * _BLOCK + -(total + 2 * _BLOCK) % tarfile.RECORDSIZE


def part(pieces: Iterator[bytes], offset: int, count: int) -> Iterator[bytes]:
    """`count` bytes of a stream, from `offset`."""
    for piece in pieces:
        if offset >= len(piece):
            offset -= len(piece)
            continue
        data = piece[offset : offset + count]
        offset = 0
        count -= len(data)
        if data:
            yield data
        if not count:
            return
