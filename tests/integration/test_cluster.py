"""Several hosts serve one CephFS: each with a client, a server, a network and a mount namespace of its own."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fsd.core.lease import Record
from tests.support.ceph import Ceph, running
from tests.support.davclient import Dav
from tests.support.hosts import Host, network
from tests.support.serving import ADMIN, ADMIN_PASSWORD
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

LOCK = (
    b'<?xml version="1.0"?><d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope>'
    b"<d:locktype><d:write/></d:locktype></d:lockinfo>"
)


@dataclass
class Cluster:
    """Two hosts on one filesystem."""

    ceph: Ceph
    hosts: list[Host]
    record: dict[str, Any]

    def lease(self, host: Host) -> dict[str, Any]:
        """What a host says of the lease of the space."""
        (space,) = [each for each in host.json_any("status")["spaces"] if each["name"] == "p"]
        return dict(space.get("lease") or {})

    def holder(self) -> Host:
        """Who has the space, once both say so."""

        def found() -> Host | None:
            told = {host.name: self.lease(host) for host in self.hosts}
            held = [host for host in self.hosts if told[host.name].get("held")]
            agreed = len(held) == 1 and all(each.get("host") == held[0].name for each in told.values())
            return held[0] if agreed else None

        return wait_for(found, timeout=30, what="a holder")

    def other(self, host: Host) -> Host:
        """The other one."""
        return self.hosts[1 - self.hosts.index(host)]

    def dav(self, host: Host) -> Dav:
        """The space through a host."""
        return host.space_dav(self.record)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts, both serving."""
    base = tmp_path_factory.mktemp("cluster")
    shared = base / "shared"
    with network() as net, running(base / "ceph", net.address) as ceph:
        hosts: list[Host] = []
        try:
            for name in ("one", "two"):
                hosts.append(Host(base / name, net, name, shared))
                hosts[-1].mount(ceph)
            hosts[0].start()
            hosts[0].fsd("space", "create", "p")
            record = hosts[0].space("p")
            hosts[1].like(hosts[0])
            hosts[1].start()
            yield Cluster(ceph, hosts, record)
        finally:
            for host in hosts:
                host.close()


def put(dav: Dav, path: bytes, data: bytes) -> int:
    """The status; 503 while nobody works on the space."""
    return dav.request("PUT", path, data).status


def test_each_host_answers_and_one_works_on_the_space(cluster: Cluster) -> None:
    holder = cluster.holder()
    other = cluster.other(holder)
    here, there = cluster.dav(holder), cluster.dav(other)
    assert put(here, b"a", b"one") == 201
    assert there.request("GET", b"a").body == b"one"
    assert put(there, b"b", b"two") == 201
    assert there.request("PUT", b"c", [b"in ", b"pieces"]).status == 201
    assert here.request("GET", b"c").body == b"in pieces"
    assert here.request("MKCOL", b"d").status == 201 and there.request("MKCOL", b"d/e").status == 201
    for path, depth in ((b"", 1), (b"d", 1), (b"b", 0)):
        assert here.propfind(path, depth) == there.propfind(path, depth)
    assert here.request("PUT", b"b", b"x", {"If-Match": f'"{there.propfind(b"b", 0)[0].etag}"'}).status == 204
    assert there.request("DELETE", b"d").status == 204
    assert sorted(os.listdir(other.path(Path(cluster.record["path"])))) == [".fsd", "a", "b", "c"]


def test_uploads_in_pieces_trash_and_versions_are_the_holders_too(cluster: Cluster) -> None:
    holder = cluster.holder()
    other, ident = cluster.other(holder), cluster.record["id"]
    there = cluster.dav(other)
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "10", "Upload-Metadata": "filename cGllY2Vz"}
    made = there.request("POST", b"", headers=tus)
    assert made.status == 201
    upload = other.dav(urlsplit(made.headers["location"]).path)
    for offset, piece in ((0, b"01234"), (5, b"56789")):
        assert upload.request("HEAD", b"", headers=tus).headers["upload-offset"] == str(offset)
        more = tus | {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        assert upload.request("PATCH", b"", piece, more).status == 204
    assert there.request("GET", b"pieces").body == b"0123456789"
    assert there.request("DELETE", b"pieces").status == 204
    bins = [host.dav(f"/dav/spaces/trash-bin/{ident}").propfind(b"", 1) for host in (holder, other)]
    assert bins[0] == bins[1]
    (item,) = [each for each in bins[0] if each.size == 10 and not each.is_dir]
    target = {"Destination": there.url(b"back")}
    trashed = other.dav(f"/dav/spaces/trash-bin/{ident}").request("MOVE", item.path, headers=target)
    assert trashed.status in (201, 204) and there.request("GET", b"back").body == b"0123456789"


def test_live_updates_reach_the_clients_of_each_host(cluster: Cluster) -> None:
    holder = cluster.holder()
    other = cluster.other(holder)
    stream = http.client.HTTPConnection(other.address, other.port, timeout=30)
    try:
        who = base64.b64encode(f"{ADMIN}:{ADMIN_PASSWORD}".encode()).decode()
        stream.request(
            "GET", "/events", headers={"Accept": "text/event-stream", "Authorization": f"Basic {who}"}
        )
        answer = stream.getresponse()
        assert answer.status == 200
        assert put(cluster.dav(holder), b"live", b"1") == 201
        while b'"live"' not in (line := answer.readline()):
            assert line, "the stream ended"
    finally:
        stream.close()


def continues(cluster: Cluster, host: Host, path: bytes, data: bytes) -> float:
    """Wait until a host takes a file; the seconds it took."""
    began = time.monotonic()
    dav = cluster.dav(host)
    wait_for(lambda: put(dav, path, data) in (201, 204), timeout=60, every=0.1, what="the other host")
    return time.monotonic() - began


def agree(cluster: Cluster) -> None:
    """Both hosts show the same, which is what is on the disk."""

    def same() -> bool:
        shown = [cluster.dav(host).propfind(b"", 1) for host in cluster.hosts]
        root = cluster.hosts[0].path(Path(cluster.record["path"]))
        names = {os.fsencode(name) for name in os.listdir(root)} - {b".fsd"}
        assert shown[0] == shown[1]
        assert {each.path for each in shown[0][1:]} == names
        assert shown[0][0].size == sum((root / os.fsdecode(name)).stat().st_size for name in names)
        return True

    wait_for(same, timeout=30, what="two hosts that agree")


def test_a_holder_that_is_killed_is_followed_by_the_other(cluster: Cluster) -> None:
    continues(
        cluster, cluster.holder(), b"before", b"1"
    )  # on a busy machine a lease may run out for a moment
    holder = cluster.holder()
    other = cluster.other(holder)
    before = cluster.dav(other).propfind(b"", 0)[0].etag
    locked = cluster.dav(holder).request("LOCK", b"before", LOCK, {"Timeout": "Second-600"})
    assert locked.status == 200
    internals = holder.path(Path(cluster.record["path"]) / ".fsd" / "lease")
    token = locked.headers["lock-token"].strip("<>")
    wait_for(
        lambda: any(token in each.read_text() for each in internals.glob("state-*")), what="the lock's copy"
    )
    holder.kill()
    took = continues(cluster, other, b"after", b"22")
    print(f"taken over {took:.1f} s after the kill; a lease lasts 3 s")
    wait_for(lambda: cluster.lease(other)["held"], what="status")
    assert cluster.dav(other).propfind(b"", 0)[0].etag != before
    assert put(cluster.dav(other), b"before", b"2") == 423, "the lock went over"
    assert cluster.dav(other).request("UNLOCK", b"before", headers={"Lock-Token": f"<{token}>"}).status == 204
    holder.start()
    continues(cluster, holder, b"again", b"333")  # until it has heard of the new holder it says 503
    agree(cluster)


def test_a_holder_that_is_stopped_is_fenced_when_it_goes_on(cluster: Cluster) -> None:
    holder = cluster.holder()
    other = cluster.other(holder)
    token = cluster.lease(holder)["token"]
    tree = [holder._pid, *holder.children()]
    for pid in tree:
        os.kill(pid, signal.SIGSTOP)
    try:
        took = continues(cluster, other, b"while-stopped", b"4444")
        print(f"taken over {took:.1f} s after the stop")
        wait_for(lambda: cluster.lease(other)["token"] > token, what="status")
    finally:
        for pid in tree:
            os.kill(pid, signal.SIGCONT)
    # From its first request on, it passes on what it may not do any more.
    assert put(cluster.dav(holder), b"stopped", b"55555") in (201, 503)
    wait_for(lambda: cluster.lease(holder).get("host") == other.name, what="the fenced host to notice")
    assert put(cluster.dav(holder), b"stopped", b"55555") in (201, 204)
    assert cluster.holder() is other
    agree(cluster)


def test_a_holder_that_is_cut_off_changes_nothing_more(cluster: Cluster) -> None:
    """The last one: afterwards the host's mount is of no use any more, as Ceph has shut its client out."""
    holder = cluster.holder()
    other = cluster.other(holder)
    found = json.loads((other.state / f"{cluster.record['id'].partition('$')[2]}.holder").read_text())
    client = Record(*found).client.removeprefix("client")
    holder.cut_off()
    try:
        # What the metadata server does by itself after its session_timeout (60 s).
        cluster.ceph.command("tell", "mds.0", "client", "evict", f"id={client}")
        took = continues(cluster, other, b"cut-off", b"666666")
        print(f"taken over {took:.1f} s after the cut, with its client evicted")
    finally:
        holder.reconnect()
    place = f"{cluster.record['path']}/from-the-grave"
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        holder.inside("timeout", "5", "sh", "-c", f"echo x > '{place}'")
    names = {each.path for each in cluster.dav(other).propfind(b"", 1)}
    assert b"cut-off" in names and b"from-the-grave" not in names
    holder.allow_log(".*")
