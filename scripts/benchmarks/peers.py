"""The servers that fsd is compared with, each on a directory of its own: with a password and an access log, as people
run them."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.serving import free_port
from tests.support.waiting import wait_for

USER, PASSWORD = "bench", "bench-password"

APACHE = """ServerRoot {base}
ServerName localhost
PidFile {base}/apache.pid
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authn_core_module {modules}/mod_authn_core.so
LoadModule authn_file_module {modules}/mod_authn_file.so
LoadModule authn_socache_module {modules}/mod_authn_socache.so
LoadModule socache_shmcb_module {modules}/mod_socache_shmcb.so
LoadModule auth_basic_module {modules}/mod_auth_basic.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule authz_user_module {modules}/mod_authz_user.so
LoadModule mime_module {modules}/mod_mime.so
LoadModule dav_module {modules}/mod_dav.so
LoadModule dav_fs_module {modules}/mod_dav_fs.so
TypesConfig /etc/mime.types
ErrorLog {base}/error.log
LogFormat "%h %l %u %t \\"%r\\" %>s %b" common
CustomLog {base}/access.log common
StartServers 1
ServerLimit 1
ThreadsPerChild 64
MaxRequestWorkers 64
MaxKeepAliveRequests 0
DocumentRoot {root}
DAVLockDB {base}/locks
<Directory {root}>
Dav On
DavDepthInfinity Off
AuthType Basic
AuthName bench
AuthBasicProvider socache file
AuthnCacheProvideFor file
AuthUserFile {base}/users
Require valid-user
</Directory>
"""

NGINX = """load_module {modules}/ngx_http_dav_ext_module.so;
worker_processes 1;
pid {base}/nginx.pid;
error_log {base}/error.log;
daemon off;
events {{ worker_connections 8192; }}
http {{
include /etc/nginx/mime.types;
access_log {base}/access.log;
keepalive_requests 100000000;
client_body_temp_path {base}/body; proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;
uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;
client_max_body_size 0;
sendfile on;
tcp_nopush on;
server {{
listen 127.0.0.1:{port};
root {root};
auth_basic bench;
auth_basic_user_file {base}/users;
dav_methods PUT DELETE MKCOL COPY MOVE;
dav_ext_methods PROPFIND OPTIONS;
}} }}
"""


def _users(base: Path) -> None:
    """A password file whose hash costs the peers next to nothing, so that it is not the hash that is measured."""
    import hashlib

    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
    (base / "users").write_text(f"{USER}:{{SHA}}{digest}\n")
    (base / "users").chmod(0o644)


def _wsgidav(base: Path, root: Path, port: int) -> list[str]:
    config = base / "wsgidav.json"
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "provider_mapping": {"/": str(root)},
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "verbose": 3,
        "server_args": {"numthreads": 10},
    }
    config.write_text(json.dumps(settings))
    return [str(Path(sys.executable).parent / "wsgidav"), "--config", str(config)]


def commands(base: Path, root: Path, port: int) -> dict[str, list[str]]:
    """The command line of each peer that is installed."""
    _users(base)
    found = {"wsgidav": _wsgidav(base, root, port)}
    apache = shutil.which("apache2", path="/usr/sbin:/usr/bin")
    modules = Path("/usr/lib/apache2/modules")
    if apache and modules.is_dir():
        config = base / "apache.conf"
        config.write_text(APACHE.format(base=base, root=root, port=port, modules=modules))
        found["mod_dav"] = [apache, "-f", str(config), "-DFOREGROUND"]
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    modules = Path("/usr/lib/nginx/modules")
    if nginx and (modules / "ngx_http_dav_ext_module.so").exists():
        config = base / "nginx.conf"
        config.write_text(NGINX.format(base=base, root=root, port=port, modules=modules))
        found["nginx"] = [nginx, "-c", str(config)]
    if rclone := shutil.which("rclone"):
        found["rclone"] = [
            *(rclone, "serve", "webdav", str(root), "--addr", f"127.0.0.1:{port}"),
            *("--user", USER, "--pass", PASSWORD, "-v"),
        ]
    return found


@contextmanager
def running(name: str, base: Path) -> Iterator[tuple[int, Path, int] | None]:
    """The peer `name`, ready: its port, its root and its process id. None when it isn't installed."""
    base.mkdir(parents=True, exist_ok=True)
    root = base / "root"
    root.mkdir(exist_ok=True)
    for path in (base, root, *base.parents[:2]):
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
        yield port, root, process.pid
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


PEERS = ("mod_dav", "nginx", "rclone", "wsgidav")
