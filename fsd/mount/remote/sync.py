"""Keeping the tree as the server has it: folders are listed when they are first used, and again after the server told
that something in them changed.

While events are heard a listing holds until one says otherwise. Without them it holds for a few seconds, and then the
folder's etag is asked for. After a time without a connection etags are compared from the spaces' roots downwards:
below one that did not change nothing did.

An echo is an event about what this mount did itself. One that tells what is known already changes nothing; of changed
contents, which carry no news, as many are taken for echoes as uploads were answered, and the folder is looked at later.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import trio

from fsd.mount.coherence import forget_all
from fsd.mount.loop import away
from fsd.mount.remote.dav import HOME, Dav, address
from fsd.mount.remote.errors import Offline, Refused
from fsd.mount.remote.multistatus import Found
from fsd.mount.remote.nodes import ROOT, Node, Order, Tree

if TYPE_CHECKING:
    from fsd.mount.remote.ledger import Ledger
    from fsd.mount.remote.uploads import Uploader

_log = logging.getLogger(__name__)

POLLED = 3.0
"""Seconds a listing holds where changes are not heard."""
ECHO = 10.0
"""Seconds within which an event may be an echo."""
_LOOK_LATER = 2.0
_SECOND = 1_000_000_000
_WALK_SLICE = 8


class Sync:
    """The tree, and what keeps it right. `live`: events are heard."""

    def __init__(self, tree: Tree, dav: Dav, ledger: Ledger) -> None:
        self.tree, self.dav, self._ledger = tree, dav, ledger
        self.live = False
        self.uploader: Uploader | None = None
        self._echoes: dict[str, list[float]] = {}
        self._busy: dict[tuple[int, bytes], list[dict[str, Any]]] = {}
        self._later: dict[Node, float] = {}
        self._unsaved: dict[str, Node] = {}
        self._orders: list[Order] = []
        self._ordered = trio.Event()

    # -- listing

    def fresh(self, folder: Node) -> bool:
        """Whether the children of a folder can be told without asking the server."""
        if folder.children is None:
            return False
        if self.dav.client.away is not None:
            return True
        if folder.stale:
            return False
        return self.live or folder.dead or time.monotonic() - folder.listed_at < POLLED

    async def load(self, folder: Node) -> None:
        """Make a folder fresh. Offline only if nothing of it is known; FileNotFoundError: the server proves it gone."""
        while folder.loading is not None:
            await folder.loading.wait()
        if self.fresh(folder):
            return
        folder.loading = trio.Event()
        try:
            await self._load(folder)
        except Offline:
            if folder.children is None and not self._from_memory(folder):
                raise
        finally:
            folder.loading.set()
            folder.loading = None

    async def _load(self, folder: Node) -> None:
        since = self.tree.clock
        folder.stale = False  # what is heard from now on counts
        place = HOME if folder.ino == ROOT else address(folder.id or "")
        try:
            if folder.children is not None and not self.live and await self._unchanged(folder, place):
                return
            found = await self.dav.listing(place)
        except Refused as error:
            folder.stale = True
            if error.status == 404 and folder.ino != ROOT:
                self._gone(folder)
            raise
        except BaseException:
            folder.stale = True
            raise
        own, *rest = found
        if folder.ino == ROOT:
            rest = [each for each in rest if "!" in each.id or each.name in (folder.children or {})]
        self.order(self.tree.apply(folder, own, [(each, 0) for each in rest], since))
        self._adopt(folder)
        folder.listed_at = time.monotonic()
        self._unsaved[folder.id or ""] = folder
        self.tree.shrink()

    async def _unchanged(self, folder: Node, place: str) -> bool:
        own = await self.dav.one(place)
        if own is None or own.etag != folder.listed:
            return False
        folder.listed_at = time.monotonic()
        return True

    def _from_memory(self, folder: Node) -> bool:
        """What an earlier mount saw of the folder; it is asked for anew once the server is there."""
        known = self._ledger.remembered(folder.id or "")
        if known is None:
            return False
        self.tree.apply(folder, None, known, self.tree.clock)
        folder.stale = True
        self._adopt(folder)
        return True

    def _adopt(self, folder: Node) -> None:
        if self.uploader is not None:
            self.uploader.adopt(folder)

    def _gone(self, folder: Node) -> None:
        if folder.parent is not None:
            folder.parent.stale = True
            self.order([(folder.parent.ino, folder.name)])

    def save(self) -> None:
        """Write down the listings that are new, for a time without the server."""
        unsaved, self._unsaved = self._unsaved, {}
        with self._ledger.batch():
            for ident, folder in unsaved.items():
                self._ledger.remember(ident, [
                    (Found(name, c.is_dir, c.size, c.mtime_ns // _SECOND, c.etag, c.id, c.permissions), c.mtime_ns)
                    for name, c in (folder.children or {}).items() if c.id is not None and c.pending is None
                ])  # fmt: skip

    def changed(self, folder: Node) -> None:
        """What is known of the folder is to be written down again."""
        if folder.id is not None or folder.ino == ROOT:
            self._unsaved[folder.id or ""] = folder

    # -- events

    def busy(self, folder: Node, name: bytes) -> None:
        """A request is about to change a name: what is heard of it until `done` may be its echo."""
        self._busy.setdefault((folder.ino, name), [])

    def done(self, folder: Node, name: bytes, *, echoes: str | None = None) -> None:
        """The request is answered and the tree says so. `echoes`: the id of a file whose content it changed."""
        if echoes is not None:
            self._echoes.setdefault(echoes, []).append(time.monotonic() + ECHO)
        for event in self._busy.pop((folder.ino, name), []):
            self.heard(event)

    def heard(self, event: dict[str, Any]) -> None:
        """The server tells of a change."""
        if event.get("kind") == "many":
            self.suspect(str(event.get("space", "")))
            return
        ident, parent = str(event.get("id", "")), str(event.get("parent", ""))
        name = str(event.get("name", "")).encode("utf-8", "surrogateescape")
        folder, node, kind = self.tree.by_id.get(parent), self.tree.by_id.get(ident), event.get("kind")
        if folder is None or folder.children is None:
            if folder is not None:
                folder.stale = True  # a listing on its way may be from before
            if node is not None and node.parent is not None and kind != "deleted":
                self._stale(node.parent, node.name, node)
            return
        if (folder.ino, name) in self._busy:
            self._busy[folder.ino, name].append(event)
            return
        here = folder.children.get(name)
        if kind == "metadata" or self._known(str(kind), folder, here, node, ident):
            return
        if node is not None and node.parent is not None and node.parent is not folder:
            self._stale(node.parent, node.name, None)
        self._stale(folder, name, here)

    def _known(self, kind: str, folder: Node, here: Node | None, node: Node | None, ident: str) -> bool:
        if kind == "deleted":
            return here is None or here.id != ident
        if kind in ("created", "moved"):
            return here is not None and here.id == ident
        now = time.monotonic()
        echoes = [until for until in self._echoes.get(ident, []) if until > now]
        if echoes:
            self._later[folder] = now + _LOOK_LATER
            echoes.pop(0)
        if echoes:
            self._echoes[ident] = echoes
        else:
            known = self._echoes.pop(ident, None)
            return known is not None and folder in self._later
        return True

    def _stale(self, folder: Node, name: bytes, node: Node | None) -> None:
        folder.stale = True
        orders: list[Order] = [(folder.ino, None), (folder.ino, name)]
        if node is not None:
            orders.append((node.ino, None))
        self.order(orders)

    def suspect(self, space: str = "") -> None:
        """Something in a space (or any) changed: compare etags from its root downwards."""
        for root in (self.tree.root.children or {}).values():
            if not space or root.space == space:
                root.stale = True
                self._later[root] = 0.0

    # -- in the background

    async def look(self) -> None:
        """Look at what is due, for ever."""
        while True:
            await trio.sleep(0.25)
            if self.dav.client.away is not None:
                continue
            now = time.monotonic()
            due = [folder for folder, at in self._later.items() if at <= now][:_WALK_SLICE]
            for folder in due:
                del self._later[folder]
                if folder.children is None or folder.dead:
                    continue
                folder.stale = True
                try:
                    with away():
                        await self.load(folder)
                except OSError as error:
                    _log.debug("not looked at: %s", error)
                    continue
                for child in folder.children.values():
                    if child.children is not None and child.etag != child.listed:
                        self._later.setdefault(child, 0.0)

    def order(self, orders: list[Order]) -> None:
        """Have the kernel forget, soon and not from within a handler."""
        if orders:
            self._orders += orders
            self._ordered.set()

    async def forget(self) -> None:
        """Have the kernel forget what it was ordered to, for ever."""
        while True:
            await self._ordered.wait()
            self._ordered = trio.Event()
            orders, self._orders = list(dict.fromkeys(self._orders)), []
            with away():
                await trio.to_thread.run_sync(forget_all, orders)
