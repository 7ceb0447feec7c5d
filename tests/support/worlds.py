"""A space without a server: a directory, its Space, hints as a kernel would give them, and what its rows
say."""

from __future__ import annotations

import math
import os
import secrets
import time
from pathlib import Path

from fsd.core import dirty, index, relabel
from fsd.core.reconcile import reconcile_item
from fsd.core.space import Space, SpaceRecord, initialise_root
from fsd.core.sweep import Sweep
from fsd.core.together import is_usual, reconcile_together
from tests.support.oracle import OnDisk, walk

Hint = tuple[bytes, bytes | None]


def make_space(base: Path, *, label: str = "now", root: Path | None = None) -> Space:
    """A new space on a directory of its own below `base`, or on `root`; its state is below `base`."""
    state = base / "state"
    root = root or base / "root"
    root.mkdir(parents=True)
    state.mkdir(parents=True)
    key = secrets.token_hex(16)
    space_id = f"00000000${key}"
    binding = initialise_root(os.fsencode(root), space_id, secrets.token_bytes(32))
    record = SpaceRecord(
        id=space_id,
        hex=key,
        name="model",
        alias="model",
        type="project",
        path=os.fsencode(root),
        owner=None,
        label=label,  # type: ignore[arg-type]
        read_only=False,
        state="active",
        uid=None,
        gid=None,
        file_mode=None,
        dir_mode=None,
        root_binding=binding,
        created=int(time.time()),
    )
    return Space(record, state)


def drain(space: Space, *, sweep: bool = False, together: bool = False, most: int = 3_000) -> int:
    """Serve the dirty set until it is empty (with `sweep`, its lower rank too; `together`: several directories at once,
    as the watcher does when many wait); how many items were served."""
    served = 0
    while True:
        items = dirty.pending(space, 50, sweep=False) or (
            dirty.pending(space, 50, sweep=True) if sweep else []
        )
        if not items:
            return served
        usual = [item for item in items if is_usual(item)] if together else []
        done = reconcile_together(space, usual, math.inf) if usual else {}
        for item in items:
            if item.path not in done:
                reconcile_item(space, item)
            served += 1
        assert served < most, "the dirty set never becomes empty"


def grow_quiet(space: Space) -> None:
    """What waits until nodes are quiet (labels, a second look at hard links) as if they had been quiet for long."""
    with space.index.write() as db:
        db.execute("UPDATE pending SET due=0")
    relabel.label_due(space)
    drain(space)


def sweep(space: Space) -> None:
    """Verify the whole tree once."""
    verifying = Sweep(space)
    verifying.begin()
    while not verifying.step(60).finished:
        pass
    while drain(space, sweep=True):
        verifying.step(60)


def rows(space: Space) -> dict[bytes, tuple[str, str, int]]:
    """What the index says of each path: (id, kind, size or tree size)."""
    found: dict[bytes, tuple[str, str, int]] = {}
    with space.index.read() as db:
        queue = [(index.ROOT, b"")]
        root = index.node(db, index.ROOT)
        assert root is not None
        found[b""] = (root.id.hex(), "d", _total(db, index.ROOT))
        while queue:
            n, path = queue.pop()
            for row in index.children(db, n):
                here = path + b"/" + row.name if path else row.name
                size = _total(db, row.n) if row.kind == index.DIRECTORY else row.size
                found[here] = (row.id.hex(), index.KIND_LETTERS[row.kind], size)
                if row.kind == index.DIRECTORY:
                    queue.append((row.n, here))
    return found


def _total(db: object, n: int) -> int:
    row = index.directory(db, n)  # type: ignore[arg-type]
    assert row is not None
    return row.total


def differences(space: Space) -> list[str]:
    """Where the rows and a walk of the disk differ, in words; two names with one id, too."""
    disk, known = walk(space.root), rows(space)
    wrong = [f"no row: {path!r}" for path in disk.keys() - known.keys()]
    wrong += [f"a row of nothing: {path!r}" for path in known.keys() - disk.keys()]
    for path in disk.keys() & known.keys():
        entry, (_, kind, size) = disk[path], known[path]
        if (entry.kind, entry.size) != (kind, size):
            wrong.append(f"{path!r}: {entry.kind} {entry.size} on disk, {kind} {size} in the index")
    ids: dict[str, bytes] = {}
    for path, (node_id, _, _) in known.items():
        if (other := ids.setdefault(node_id, path)) != path:
            wrong.append(f"one id for {other!r} and {path!r}")
    return wrong


def moved_ids(
    before: dict[bytes, OnDisk], old: dict, after: dict[bytes, OnDisk], new: dict, touched: set[bytes]
) -> list[str]:
    """Single-named nodes that nobody touched by name, but whose id changed, in words."""
    return [
        f"{path!r} was not touched, but lost its id"
        for path in before.keys() & after.keys() & old.keys() & new.keys()
        if path not in touched
        and before[path].node == after[path].node
        and before[path].kind == after[path].kind
        and (before[path].nlink == after[path].nlink == 1 or before[path].kind == "d")
        and old[path][0] != new[path][0]
    ]
