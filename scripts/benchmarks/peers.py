"""The servers that fsd is compared with, each on a directory of its own, without authentication (which only
helps them)."""

from __future__ import annotations

import http.client
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.serving import free_port
from tests.support.waiting import wait_for

APACHE = """ServerRoot {base}
ServerName localhost
PidFile {base}/apache.pid
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule dav_module {modules}/mod_dav.so
LoadModule dav_fs_module {modules}/mod_dav_fs.so
ErrorLog {base}/error.log
DocumentRoot {root}
DAVLockDB {base}/locks
<Directory {root}>
Dav On
DavDepthInfinity Off
Require all granted
</Directory>
"""


def commands(base: Path, root: Path, port: int) -> dict[str, list[str]]:
    """The command line of each peer that is installed."""
    found = {
        "wsgidav": [
            str(Path(sys.executable).parent / "wsgidav"),
            *("--host", "127.0.0.1", "--port", str(port), "--root", str(root), "--auth", "anonymous", "-q"),
        ]
    }
    apache = shutil.which("apache2", path="/usr/sbin:/usr/bin")
    modules = Path("/usr/lib/apache2/modules")
    if apache and modules.is_dir():
        config = base / "apache.conf"
        config.write_text(APACHE.format(base=base, root=root, port=port, modules=modules))
        found["Apache mod_dav"] = [apache, "-f", str(config), "-DFOREGROUND"]
    if rclone := shutil.which("rclone"):
        found["rclone"] = [rclone, "serve", "webdav", str(root), "--addr", f"127.0.0.1:{port}", "-q"]
    return found


@contextmanager
def running(name: str, base: Path) -> Iterator[tuple[int, Path] | None]:
    """The peer `name`, ready: its port and its root. None when it isn't installed."""
    base.mkdir(parents=True, exist_ok=True)
    root = base / "root"
    root.mkdir(exist_ok=True)
    for path in (base, root):
        path.chmod(0o777)
    port = free_port()
    command = commands(base, root, port).get(name)
    if command is None:
        yield None
        return
    with open(base / "log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=base)
    try:
        wait_for(lambda: _answers(port), timeout=20, what=name)
        yield port, root
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("OPTIONS", "/")
        return connection.getresponse().status < 500
    finally:
        connection.close()


PEERS = ("wsgidav", "Apache mod_dav", "rclone")
