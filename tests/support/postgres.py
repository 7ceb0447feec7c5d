"""A PostgreSQL server of a test's own, with its data wherever the test wants it; it runs as `nobody`, never as root."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.support.waiting import wait_for

_PLACES = sorted(
    Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True
)
_UID = 65534


def available() -> bool:
    """Whether Debian's package is installed."""
    return bool(_PLACES)


class Postgres:
    """One server. Its socket lies in `base`, which nobody else uses."""

    def __init__(self, data: Path, base: Path) -> None:
        self.data, self.base = data, base / "pg"
        for made in (self.data, self.base):
            made.mkdir(mode=0o700)
            os.chown(made, _UID, _UID)
        self.process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", str(data), "-k", "--no-locale", "-E", "UTF8", "-U", "test", "-A", "trust", "-N"
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        with open(data / "postgresql.conf", "a", encoding="ascii") as conf:
            conf.write(f"unix_socket_directories=''\nlisten_addresses='127.0.0.1'\nport={self.port}\n")
            conf.write("max_wal_size=64MB\ncheckpoint_timeout=30s\nshared_buffers=16MB\n")

    def _command(self, *words: str) -> list[str]:
        return [str(_PLACES[0] / words[0]), *words[1:]]

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            self._command(*words), capture_output=True, text=True, cwd=self.base, user=_UID, group=_UID,
            extra_groups=[], timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start it (again); recovery is done when this returns."""
        with open(self.base / "log", "ab") as log:
            self.process = subprocess.Popen(
                self._command("postgres", "-D", str(self.data)), stdout=log, stderr=log, cwd=self.base, user=_UID,
                group=_UID, extra_groups=[],
            )  # fmt: skip
        wait_for(self._answers, timeout=120, what="a database")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.base / "log").read_text()[-2000:]
        done = subprocess.run(
            self._command("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)), check=False
        )
        return done.returncode == 0

    def _psql(self) -> list[str]:
        return self._command(
            "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-U",
            "test",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "postgres",
        )

    def sql(self, statement: str) -> str:
        """What a statement gives, as text."""
        done = subprocess.run([*self._psql(), "-c", statement], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def insert_until_killed(self, after: int) -> int:
        """Insert rows, one transaction each, and kill all of the server once `after` of them were answered; the
        number of the last one that was."""
        first = int(self.sql("SELECT coalesce(max(n), 0) FROM t")) + 1
        with subprocess.Popen(
            self._psql(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as client:
            assert client.stdin is not None and client.stdout is not None
            answered = 0
            for number in range(first, first + 1_000_000):
                client.stdin.write(f"INSERT INTO t VALUES ({number}, repeat('{number}', 200)) RETURNING n;\n")
                client.stdin.flush()
                answered = int(client.stdout.readline())
                if answered >= after:
                    break
            client.stdin.write(f"INSERT INTO t VALUES ({number + 1}, repeat('{number + 1}', 200));\n")
            client.stdin.flush()
            self.kill()
        return answered

    def stop(self) -> None:
        """End it in order, if it runs."""
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        process, self.process = self.process, None
        assert process is not None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(30)
        wait_for(
            lambda: not any(os.path.exists(f"/proc/{pid}") for pid in children), timeout=60, what="its end"
        )

    def checksums(self) -> str:
        """What pg_checksums says of all its pages."""
        return self._run("pg_checksums", "-D", str(self.data), "--check")
