"""Programs that people already have, each against a real server: cadaver, curl, rclone, davfs2, gvfs; and what Finder
and Explorer send, as it was recorded of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_for
from tests.unit.dav.served import serving, tokens

USER, PASSWORD = "alice", "alice-secret"
FILES = "/dav/files/alice"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("programs")) as made:
        yield made


class Shell:
    """Programs with a home of their own, and a folder of the test's own on the server."""

    def __init__(self, served, home: Path, name: str) -> None:
        self.home, self.root = home, served.root() / name
        self.url = f"http://127.0.0.1:{served.port}{FILES}/{name}"
        served.dav().mkcol(name.encode())
        netrc = home / ".netrc"
        netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
        netrc.chmod(0o600)

    def run(self, *command: str | Path, text: str = "", status: int | None = 0) -> str:
        """Its output, of both kinds. An AssertionError for another exit status; None: any."""
        if shutil.which(str(command[0]), path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            pytest.fail(f"{command[0]} is not installed; scripts/test installs it")
        environment = {**os.environ, "HOME": str(self.home), "LC_ALL": "C.UTF-8"}
        environment["PATH"] += ":/usr/sbin:/sbin"
        done = subprocess.run(
            [str(part) for part in command], input=text, capture_output=True, text=True, timeout=100,
            env=environment, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert status is None or done.returncode == status, f"{command}: {done.returncode}\n{output}"
        return output


@pytest.fixture
def shell(served, request, tmp_path):
    return Shell(served, tmp_path, re.sub(r"\W", "", request.node.name))


def test_cadaver(shell):
    (shell.home / "f").write_text("hello\n")
    script = f"""mkcol dir
put {shell.home}/f dir/f
ls dir
get dir/f {shell.home}/back
move dir/f dir/g
copy dir/g dir/h
propset dir/h color blue
propget dir/h color
lock dir/h
discover dir/h
unlock dir/h
delete dir/h
ls missing
cat dir/g
quit
"""
    output = shell.run("cadaver", shell.url + "/", text=script)
    assert output.count("succeeded.") == 10 and "Value of color is: blue" in output and "urn:uuid:" in output
    assert "404 Not Found" in output and "hello" in output
    assert os.listdir(shell.root / "dir") == ["g"] and (shell.home / "back").read_text() == "hello\n"


def test_curl(shell):
    data = os.urandom(200_000)
    (shell.home / "f").write_bytes(data)
    curl = ["curl", "-sS", "-n", "-f"]
    shell.run(*curl, "-T", shell.home / "f", shell.url + "/")
    shell.run(*curl, "-T", "-", "-H", "X-OC-Mtime: 1500000000", shell.url + "/piped", text="streamed")
    assert (shell.root / "piped").read_text() == "streamed" and (
        shell.root / "piped"
    ).stat().st_mtime == 1.5e9
    (shell.home / "part").write_bytes(data[:70_000])
    shell.run(*curl, "-C", "-", "-o", shell.home / "part", shell.url + "/f")
    assert (shell.home / "part").read_bytes() == data
    said = shell.run(
        *curl, "-o", "/dev/null", "-w", "%{http_code}", "-z", shell.root / "piped", shell.url + "/piped"
    )
    assert said == "304"
    shell.run(*curl, "-o", shell.home / "all.zip", shell.url + "/?format=zip")
    shell.run("python3", "-m", "zipfile", "-e", shell.home / "all.zip", shell.home / "out")
    assert (shell.home / "out" / shell.root.name / "f").read_bytes() == data
    shell.run(*curl, "-X", "MOVE", "-H", f"Destination: {shell.url}/g", shell.url + "/f")
    assert shell.run(*curl, shell.url + "/f", status=22) and (shell.root / "g").read_bytes() == data


_NEW_RCLONE = os.path.join(os.path.dirname(sys.executable), "rclone")
"""Debian's is from 2022; this one, from PyPI, sends Nextcloud's chunks and, to Infinite Scale, TUS."""


@pytest.mark.parametrize(
    ("program", "vendor"),
    [
        ("rclone", "owncloud"),
        ("rclone", "nextcloud"),
        ("rclone", "other"),
        (_NEW_RCLONE, "owncloud"),
        (_NEW_RCLONE, "nextcloud"),
        (_NEW_RCLONE, "infinitescale"),
        (_NEW_RCLONE, "other"),
    ],
    ids=lambda value: value.replace(_NEW_RCLONE, "new"),
)
def test_rclone(served, shell, program, vendor):
    """Both ways: equal trees, a second run that moves nothing, renames that move nothing, wrong bytes found by sums."""
    url = f"http://127.0.0.1:{served.port}/remote.php/dav/files/alice/{shell.root.name}"
    secret = shell.run(program, "obscure", PASSWORD).strip()
    options = ["--webdav-url", url, "--webdav-vendor", vendor, "--webdav-user", USER, "--webdav-pass", secret]
    if (program, vendor) == (_NEW_RCLONE, "nextcloud"):
        options += ["--webdav-nextcloud-chunk-size", "100k"]
    sums = vendor != "other"
    rclone = [program, "-vv", "--config", shell.home / "none", *options]
    local = shell.home / "local"
    (local / "a/b").mkdir(parents=True)
    (local / "empty").mkdir()
    for index, name in enumerate(("a/ü +%#&;", "a/b/x", "zero", "a/b/großes Bild")):
        (local / name).write_bytes(os.urandom(300_000 * (index == 3)) or name.encode() * (index != 2))
        os.utime(local / name, (1_500_000_000 + index, 1_500_000_000 + index))

    def sync(source: str | Path, target: str | Path, *more: str) -> str:
        return shell.run(*rclone, "sync", "--create-empty-src-dirs", *more, source, target)

    said = sync(local, ":webdav:")
    assert said.count("Copied (new)") == 4
    if program == _NEW_RCLONE:
        assert ("the chunked upload strategy" in said) == (vendor == "nextcloud")
        assert ("the tus protocol" in said) == (vendor == "infinitescale")
    times = {path.relative_to(local): path.stat().st_mtime for path in local.rglob("*") if path.is_file()}
    assert sorted(path.relative_to(shell.root) for path in shell.root.rglob("*")) == sorted(
        path.relative_to(local) for path in local.rglob("*")
    )
    if sums:
        assert all((shell.root / path).stat().st_mtime == time for path, time in times.items())
        assert "Copied" not in sync(local, ":webdav:")
        (local / "a/b/großes Bild").rename(local / "renamed")
        said = sync(local, ":webdav:", "--track-renames")
        assert "Copied" not in said and (shell.root / "renamed").stat().st_size == 300_000
        address = f"{shell.root.name}/a/b/x".encode()
        served.dav().request("PUT", address, b"a/b/y", {"X-OC-Mtime": "1500000001"})
        assert "1 differences found" in shell.run(*rclone, "check", local, ":webdav:", status=1)
    (shell.root / "on disk").write_text("written beside it")
    back = shell.home / "back"
    sync(":webdav:", back)
    assert shell.run("diff", "-r", shell.root, back) == ""
    assert "Copied" not in sync(":webdav:", back)


def test_davfs2(shell):
    """Its listing of directories fails on new kernels with any server; names that are asked for work."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs root")
    mountpoint = shell.home / "mnt"
    mountpoint.mkdir()
    (shell.home / "secrets").write_text(f"{shell.url} {USER} {PASSWORD}\n")
    (shell.home / "conf").write_text(f"use_locks 1\ndelay_upload 0\nsecrets {shell.home}/secrets\n")
    for name in ("secrets", "conf"):
        (shell.home / name).chmod(0o600)
    (shell.root / "there").write_text("from the server")
    said = shell.run("mount.davfs", "-o", f"conf={shell.home}/conf", shell.url, mountpoint, status=None)
    if "not permitted" in said:
        pytest.skip("mounting is not allowed here")
    try:
        assert (mountpoint / "there").read_text() == "from the server"
        (mountpoint / "mine").write_text("from the mount")
        (mountpoint / "dir").mkdir()
        (mountpoint / "mine").rename(mountpoint / "dir/yours")
        (mountpoint / "there").unlink()
    finally:
        shell.run("umount", mountpoint)
    wait_for(lambda: (shell.root / "dir/yours").read_text() == "from the mount", what="the upload")
    assert sorted(path.name for path in shell.root.rglob("*")) == ["dir", "yours"]


def test_gvfs(shell):
    """As a file manager does it, over D-Bus."""
    (shell.home / "f").write_text("hello")
    url = shell.url.replace("http://", "dav://")
    steps = f"""set -e
printf '{USER}\\n{PASSWORD}\\n' | gio mount {url} >/dev/null
gio copy {shell.home}/f {url}/f
gio copy {shell.home}/f '{url}/ü b'
gio cat {url}/f
gio rename {url}/f g >/dev/null
gio mkdir {url}/new
gio move {url}/g {url}/new/h
gio remove '{url}/ü b'
gio list {url}
gio info -a standard::size {url}/new/h
gio mount -u {url}
"""
    output = shell.run("dbus-run-session", "--", "bash", "-c", steps)
    assert "hello" in output and "standard::size: 5" in output
    assert sorted(path.name for path in shell.root.rglob("*")) == ["h", "new"]


# -- recorded requests -----------------------------------------------------------------------------------------------

LOCK = (
    b'<?xml version="1.0" encoding="utf-8"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
    b"<D:locktype><D:write/></D:locktype><D:owner><D:href>someone</D:href></D:owner></D:lockinfo>"
)
FINDER = "User-Agent: WebDAVFS/3.0.0 (03008000) Darwin/23.4.0 (arm64)"
EXPLORER = "User-Agent: Microsoft-WebDAV-MiniRedir/10.0.19045"


def test_what_finder_does(served):
    """OPTIONS, quota, a copy of a file with its `._` companion: LOCK, empty PUT, PUT in chunks, UNLOCK; rename."""

    def ask(method, path, *lines, body=b""):
        return served.ask(method, f"{FILES}/{path}", FINDER, *lines, body=body)

    options = ask("OPTIONS", "")
    assert "2" in options.headers["dav"] and "LOCK" in options.headers["allow"]
    quota = (
        b'<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:"><D:prop><D:quota-available-bytes/>'
        b"<D:quota-used-bytes/><D:quota/><D:quotaused/></D:prop></D:propfind>"
    )
    assert b"<d:quota-available-bytes>" in ask("PROPFIND", "", "Depth: 0", body=quota).body
    for name in ("._.", ".DS_Store", "Icon%0D", "._Movie.mov", "Movie.mov", ".hidden", "mach_kernel"):
        assert ask("PROPFIND", name, "Depth: 0").status in (400, 404)
    for name, content in (("Movie.mov", b"x" * 70_000), ("._Movie.mov", b"\0\5\26\7" * 1000)):
        assert ask("PUT", name, "Content-Length: 0").status == 201
        lock = ask("LOCK", name, "Timeout: Second-600", "Depth: 0", body=LOCK)
        assert lock.status == 200
        token = f"If: (<{tokens(lock)}>)"
        lines = [token, f"X-Expected-Entity-Length: {len(content)}", "Transfer-Encoding: chunked"]
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:9000], content[9000:]) if part
        )
        with served.wire() as wire:
            wire.send(served.head("PUT", f"{FILES}/{name}", FINDER, *lines) + chunks + b"0\r\n\r\n")
            answer = wire.answer()
        assert answer is not None and answer.status == 204
        assert ask("LOCK", name, token, "Timeout: Second-600").status == 200
        assert ask("UNLOCK", name, f"Lock-Token: <{tokens(lock)}>").status == 204
        assert (served.root() / name).read_bytes() == content
    moved = ask("MOVE", "Movie.mov", f"Destination: http://localhost{FILES}/Film.mov", "Overwrite: F")
    assert moved.status == 201
    decomposed = "u%CC%88"
    assert ask("MKCOL", f"{decomposed}/").status == 201
    assert ask("PROPFIND", decomposed, "Depth: 1").status == 207 and ask("PROPFIND", "%C3%BC").status == 404
    for name in ("Film.mov", "._Movie.mov", f"{decomposed}/"):
        assert ask("DELETE", name).status == 204


def test_what_explorer_does(served):
    """OPTIONS and PROPFIND from the root down; a new file: PROPFIND, empty PUT, LOCK, PROPPATCH of times, HEAD, PUT."""

    def ask(method, path, *lines, body=b""):
        return served.ask(method, path, EXPLORER, "translate: f", *lines, body=body)

    for path in ("/", "/dav", "/dav/files", FILES):
        options = ask("OPTIONS", path)
        assert options.status == 200 and options.headers["ms-author-via"] == "DAV"
        assert ask("PROPFIND", path, "Depth: 0", "Content-Length: 0").status == 207
    assert ask("PROPFIND", f"{FILES}/desktop.ini", "Depth: 0").status == 404
    name = f"{FILES}/New%20Text%20Document.txt"
    assert ask("PROPFIND", name, "Depth: 0").status == 404
    assert ask("PUT", name, "Content-Length: 0").status == 201
    lock = ask("LOCK", name, "Timeout: Second-3600", "Content-Type: text/xml", body=LOCK)
    assert lock.status == 200
    token = f"If: (<{tokens(lock)}>)"
    times = (
        b'<?xml version="1.0" encoding="utf-8" ?><D:propertyupdate xmlns:D="DAV:" xmlns:Z="urn:schemas-microsoft-com:">'
        b"<D:set><D:prop><Z:Win32CreationTime>Sat, 21 Nov 2020 10:00:00 GMT</Z:Win32CreationTime>"
        b"<Z:Win32LastAccessTime>Sat, 21 Nov 2020 10:00:00 GMT</Z:Win32LastAccessTime>"
        b"<Z:Win32LastModifiedTime>Sat, 21 Nov 2020 10:00:00 GMT</Z:Win32LastModifiedTime>"
        b"<Z:Win32FileAttributes>00000020</Z:Win32FileAttributes></D:prop></D:set></D:propertyupdate>"
    )
    assert ask("HEAD", name).status == 200
    assert ask("PUT", name, token, body=b"text").status == 204
    patched = ask("PROPPATCH", name, token, body=times)
    assert patched.status == 207 and b"200 OK" in patched.body and b"403" not in patched.body
    assert ask("PROPPATCH", name, body=times).status == 423
    assert ask("UNLOCK", name, f"Lock-Token: <{tokens(lock)}>").status == 204
    assert ask("HEAD", name).headers["last-modified"] == "Sat, 21 Nov 2020 10:00:00 GMT"
    moved = ask("MOVE", name, f"Destination: http://localhost{FILES}/notes.txt", "Overwrite: F")
    assert moved.status == 201
    assert ask("GET", f"{FILES}/notes.txt").body == b"text"
    assert ask("DELETE", f"{FILES}/notes.txt").status == 204
