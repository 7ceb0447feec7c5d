"""Writing a file's content: aside, checked, durable, then at its path in one step.

The new bytes go into a nameless file in the target's own directory, which gives it the directory's group and default
ACLs; a crash leaves nothing of it. Three fsyncs at most: the file, the intent (only when something is replaced), the
directory; the last two are shared by all threads that wait for one.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Collection
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fsd.core import copying, ids, intents, labels, lease, quota, sums, waits
from fsd.core.arrivals import Arrival
from fsd.core.errors import Forbidden, NameRefused, ParentMissing, PreconditionFailed, QuotaExceeded
from fsd.core.index import FILE, LABELLED, READY, NodeRow
from fsd.core.places import binding_at, internal, open_destination, require_writable
from fsd.core.publish import Changed, Seen, is_file, retire, swap_in, swap_out
from fsd.core.settling import make_known, settle_quietly
from fsd.core.steps import Steps, Unsynced, run
from fsd.core.syscalls import O_TMPFILE, link_fd, statx
from fsd.core.tree import file_entry, lookup

if TYPE_CHECKING:
    from fsd.core.intents import Ticket
    from fsd.core.space import Space
    from fsd.core.sums import Sum
    from fsd.core.tree import Entry

_log = logging.getLogger(__name__)
_TRIES = 5
_ACL = "system.posix_acl_access"
_SHORT_S = 0.002
"""What took no longer than this was one step, as for the proof of the root."""
_DISK_EVERY = 16 << 20
"""Bytes between two looks at what the disk has left, because others write, too. Where no length was announced each
write looks."""


class Upload:
    """One file on its way. `commit` makes it appear whole; anything else leaves no trace. One thread at a time."""

    def __init__(
        self,
        space: Space,
        path: bytes,
        *,
        length: int | None,
        mtime_ns: int | None = None,
        if_match: Collection[str] | None = None,
        must_not_exist: bool = False,
        checksum: tuple[str, str] | None = None,
        durability: bool = True,
        reserved: int = 0,
    ) -> None:
        """Check quota, parent, kind of the target and preconditions now (they are checked again at the end).

        `length` in bytes, None if it isn't known; `if_match` unquoted etags, `{"*"}` for any; `checksum` (algorithm,
        hex); `reserved`: bytes that count as taken for this very upload. Raises ParentMissing,
        IsADirectoryError, Forbidden, PreconditionFailed, QuotaExceeded, NameRefused.
        """
        require_writable(space)
        self._space = space
        self._length = length
        self._mtime_ns = mtime_ns
        self._if_match = if_match
        self._must_not_exist = must_not_exist
        self._expected = checksum[1].strip().lower() if checksum else None
        self._algorithm = checksum[0].lower().replace("-", "") if checksum else None
        self._hashes = sums.upload_hashes(length, self._algorithm)
        self._sum: Sum | None = None
        self._durability = durability
        self._reserved = reserved
        self._written = 0
        self._look_at_disk = _DISK_EVERY if length is not None else 0
        self._attributes: dict[str, bytes] | None = None
        self._mode_bits = 0
        self._staged = False
        self._ticket: Ticket | None = None
        self._held = ExitStack()
        """The ticket."""
        self._fd = -1
        self._place = open_destination(space, path)
        self._opened = time.monotonic()
        try:
            self._old = old = None if self._place.met is None and if_match is None else self._look()
            before = (old.entry.size if old else 0) + reserved
            if length is not None:
                quota.check(space, length - before)
            room = quota.available(space)
            self._room = None if room is None else room + before
            self._fd = self._temporary()
        except BaseException:
            self.abort()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Append. NameRefused beyond the announced length, QuotaExceeded beyond the quota, OSError(ENOSPC)."""
        view = memoryview(data).cast("B")
        self._written += len(view)
        if self._length is not None and self._written > self._length:
            raise NameRefused(f"More than the announced {self._length} bytes arrived.")
        if self._room is not None and self._written > self._room:
            raise QuotaExceeded("The space has no room for this file.")
        if self._written > self._look_at_disk:
            quota.check_disk(self._space, len(view))
            self._look_at_disk = self._written + (_DISK_EVERY if self._length is not None else 0)
        for each in self._hashes.values():
            each.update(view)
        while view:
            view = view[os.write(self._fd, view) :]

    def fill_from(self, fd: int, known: Sum | None = None) -> None:
        """Take the content, the `user.*` attributes and the x bits of an open file instead of `write` (COPY); `known`:
        the checksums of what it holds."""
        self._hashes, self._sum = {}, known
        self._written = copying.copy_data(fd, self._fd)
        self._attributes = copying.user_attributes(fd)
        self._mode_bits = os.fstat(fd).st_mode & 0o111

    def commit(self) -> tuple[Entry, bool]:
        """Check length and checksum, publish durably, and return (entry, whether it is new).

        When it returns, the root's etag and sizes are right. On an error nothing has changed. The entry is that of the
        bytes which were written here, also if somebody has changed, moved or removed the file right after: an etag of
        theirs in our answer would tell a client that its own content is there.
        """
        return run(self.steps())

    def steps(self) -> Steps[tuple[Entry, bool]]:
        """`commit` for whoever settles files of several uploads together. Closed in between, what has its name by then
        is left to the watcher, as after a kill."""
        self._check_whole()
        try:
            with intents.of(self._space).alone(self._place.path):
                self._reopen()
                entry, created = yield from self._publish()
        finally:
            self.abort()
        self._space.sums.note(entry.etag, entry.id, sums.of_hashes(self._hashes) or self._sum)
        return entry, created

    def abort(self) -> None:
        """Drop everything; harmless when done already."""
        fd, self._fd = self._fd, -1
        try:
            if fd >= 0:
                if self._staged:
                    self._unstage(fd)
                os.close(fd)
        finally:
            self._held.close()
            self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _look(self) -> Seen | None:
        """What stands at the path, after the preconditions; None if nothing does."""
        place = self._place
        for _ in range(_TRIES):
            found = place.seen()
            if found is None:
                if self._if_match is not None:
                    raise PreconditionFailed(f"'{place.text}' does not exist.")
                return None
            if stat.S_ISDIR(found.mode):
                raise IsADirectoryError(errno.EISDIR, f"'{place.text}' is a directory")
            if self._must_not_exist:
                raise PreconditionFailed(f"'{place.text}' exists already.")
            if not is_file(found):
                raise Forbidden(f"'{place.text}' is a symbolic link or a special file; it is not written to.")
            try:
                entry = lookup(self._space, place.path)
            except FileNotFoundError:
                continue
            binding = place.binding()
            if binding is not None and (entry.ino, entry.ctime_ns) == (found.ino, found.ctime_ns):
                self._check_etag(entry)
                return Seen(entry, binding, found)
        raise PreconditionFailed(f"'{place.text}' is being changed by somebody else.")

    def _check_etag(self, entry: Entry) -> None:
        if self._if_match is not None and "*" not in self._if_match and entry.etag not in self._if_match:
            raise PreconditionFailed(f"'{self._place.text}' is not the version that was to be replaced.")

    def _temporary(self) -> int:
        mode = 0o666 if self._space.record.file_mode is None else self._space.record.file_mode
        try:
            fd = os.open(b".", O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self._place.fd)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            with internal(self._space, "staging") as staging:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                fd = os.open(self._staging_ticket().name, flags, mode, dir_fd=staging)
            self._staged = True
        return fd

    def _staging_ticket(self) -> Ticket:
        if self._ticket is None:
            self._ticket = self._held.enter_context(intents.of(self._space).begin())
        return self._ticket

    def _check_whole(self) -> None:
        if self._length is not None and self._written != self._length:
            raise NameRefused(
                f"{self._written} of {self._length} announced bytes arrived; nothing was changed."
            )
        if self._algorithm is not None and self._hashes[self._algorithm].hexdigest() != self._expected:
            raise NameRefused("The checksum does not fit the bytes that arrived; nothing was changed.")

    def _reopen(self) -> None:
        """The directory may have been moved or replaced during a long upload: the path counts, not the node. After a
        short one it is asked for once, at the end."""
        old = self._place
        if time.monotonic() - self._opened < _SHORT_S or old.is_at(old.parent):
            return
        self._place = open_destination(self._space, old.path)
        old.close()
        self._old = self._look()

    def _publish(self) -> Steps[tuple[Entry, bool]]:
        # What was seen first serves: both ways of publishing notice when it is no longer so.
        old = self._old
        # Bytes may come in for long; another host that had the lease meanwhile is noticed like any other writer.
        self._place.token = lease.token(self._space)
        for _ in range(_TRIES):
            grows = self._written - self._reserved - (old.entry.size if old else 0)
            try:
                with quota.alone(self._space, grows):
                    if old is not None:
                        return self._publish_over(old), False
                    return (yield from self._publish_new()), True
            except Changed:
                old = self._look()
        raise PreconditionFailed(f"'{self._place.text}' is being changed by somebody else.")

    def _publish_new(self) -> Steps[Entry]:
        space, place, fd = self._space, self._place, self._fd
        record = space.record
        if record.uid is not None or record.gid is not None:
            set_owner(fd, record.uid, record.gid, place.fd)
        if record.file_mode is not None and copying.get_attribute(fd, _ACL) is None:
            os.fchmod(fd, record.file_mode)
        finished = self._finish_file(None, 0)
        if self._durability:
            yield Unsynced(fd)
        lease.require(space)
        try:
            link_fd(fd, place.fd, place.name)
        except FileExistsError as error:
            raise Changed from error
        except FileNotFoundError as error:
            raise ParentMissing(f"The directory of '{place.text}' was deleted.") from error
        try:
            row = yield Arrival(place, fd, finished, self._durability)
            if row is None:
                row = make_known(space, place, new=True)
        except Exception:
            if place.binding() == finished.binding and lease.may_write(space):
                os.unlink(place.name, dir_fd=place.fd)
            settle_quietly(space, place.path)
            raise
        return self._entry(row, finished)

    def _publish_over(self, old: Seen) -> Entry:
        space, place, fd, ticket = self._space, self._place, self._fd, self._staging_ticket()
        try:
            if place.seen() != old.found:
                raise Changed
            like = os.stat(place.name, dir_fd=place.fd, follow_symlinks=False)
            if self._attributes is not None:
                copying.set_user_attributes(fd, copying.lasting_attributes(place.link, self._attributes))
            copying.dress_like(fd, place.link, like, user=self._attributes is None)
        except FileNotFoundError as error:
            raise Changed from error
        finished = self._finish_file(*labels.label_for_replacement(space, old.entry))
        if self._durability:
            with waits.aside:  # at once: what follows has waits of its own, which threads share
                os.fsync(fd)
        with internal(space, "staging") as staging:
            self._staged = True
            try:
                displaced = swap_in(ticket, fd, place, old, staging)
                row = make_known(space, place, new=True)
            except Changed:
                raise  # the tree is as it was, and the next try uses the staged name again
            except Exception:
                # else it is another host's: the intent waits until it is this one's again
                lease.require(space)
                swap_out(ticket, place, old, staging)
                ticket.finish()
                settle_quietly(space, place.path)
                raise
            try:
                retire(space, old.entry.id, staging, displaced, old.entry.etag)
            except OSError as error:
                # The change is made and durable; the intent knows what is left to do.
                _log.error("space %s: a replaced file is left to the next replay: %s", space.record.id, error)
            else:
                ticket.finish()
        return self._entry(row, finished)

    def _entry(self, row: NodeRow | None, finished: NodeRow) -> Entry:
        known = row is not None and row.binding == finished.binding
        if row is None or not known or (row.size, row.mtime_ns) != (finished.size, finished.mtime_ns):
            row = finished._replace(id=row.id if row is not None and known else finished.id)
        return file_entry(self._place.path, row)

    def _finish_file(self, node_id: str | None, rev: int) -> NodeRow:
        """Label (with the node's own id if none is given), attributes, times: all that has to be durable before there
        is a name. What its row will be."""
        fd = self._fd
        found = statx(fd, b"")
        binding = ids.node_binding(fd, b"", found)
        if node_id is None:
            node_id = ids.derived_id(self._space.key, binding).hex()
        labelled = labels.write_label(self._space, fd, node_id, rev, binding)
        if not labelled and rev:
            self._space.state.bind([(binding, b"", bytes.fromhex(node_id), rev)])
        if self._attributes is not None:
            copying.set_user_attributes(fd, self._attributes)
        if self._mode_bits:
            mode = os.fstat(fd).st_mode
            os.fchmod(fd, stat.S_IMODE(mode) | (self._mode_bits & (mode & 0o444) >> 2))
        if self._mtime_ns is not None:
            os.utime(fd, ns=(self._mtime_ns, self._mtime_ns))
            found = statx(fd, b"")
        return NodeRow(
            0, bytes.fromhex(node_id), None, self._place.name, FILE, binding, found.ino, found.size, found.mtime_ns,
            found.ctime_ns, found.mode, found.uid, found.gid, 1, rev, READY | (LABELLED if labelled else 0), 0,
        )  # fmt: skip

    def _unstage(self, fd: int) -> None:
        """Remove our own file's name in the staging directory, if it has one; never another's.

        A displaced file that is still there (a step failed) stays for `replay`, which has the intent.
        """
        if self._ticket is None:
            return
        try:
            with internal(self._space, "staging") as staging:
                if binding_at(staging, self._ticket.name) == binding_at(fd, b""):
                    os.unlink(self._ticket.name, dir_fd=staging)
        except OSError as error:
            _log.error("space %s: a staged file is left to the next replay: %s", self._space.record.id, error)


def set_owner(fd: int, uid: int | None, gid: int | None, parent: int) -> None:
    """The space's owner and group for something new; a directory with the setgid bit gives its own group."""
    if os.fstat(parent).st_mode & stat.S_ISGID:
        gid = None
    found = os.fstat(fd)
    uid, gid = found.st_uid if uid is None else uid, found.st_gid if gid is None else gid
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
