"""A broker for tests: Apache Kafka as one KRaft node, or, without Java and Maven, librdkafka's mock cluster.

`kind` says which. With CI=true only Apache Kafka will do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.kafka.classpath import classpath
from tests.support.serving import free_port
from tests.support.waiting import wait_for

_JAVA = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
_JAVA += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
_JAVA += ["-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"]
_CLUSTER = "4L6g3nShT-eMCtK--X86sw"
_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:{controller}{more_listeners}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
log.dirs={logs}
num.partitions=1
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.dedupe.buffer.size=2097152
file.delete.delay.ms=1000
"""


def kind_here() -> str:
    """`kafka` or `mock`; RuntimeError where only the mock could be had and CI asks for the whole."""
    if classpath():
        return "kafka"
    if os.environ.get("CI") == "true":
        raise RuntimeError(
            "CI needs Java 17 and Maven for Apache Kafka: apt-get install default-jre-headless maven"
        )
    return "mock"


class Broker:
    """One broker in a process of its own. It keeps its address and, if it is Apache Kafka, its data over `stop` and
    `start`."""

    def __init__(
        self,
        base: Path,
        *,
        properties: str = "",
        secure: bool = False,
        java: tuple[str, ...] = (),
        host: str = "127.0.0.1",
        scram: tuple[str, ...] = (),
    ) -> None:
        """`host`: the address of this machine where it listens. `properties`: lines added to server.properties, in
        which {secure_port} is a port for the SASL_SSL listener that `secure` adds, beside an SSL one at `tls_port`;
        `scram`: mechanisms in which the user `fsd` has the password `secret`."""
        self.kind = kind_here()
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        self.port, self.secure_port, self.tls_port = free_port(), free_port(), free_port()
        self._controller = free_port()
        self._more = properties
        self._secure = secure
        self._java = java
        self._host = host
        self._scram = scram
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"{self._host}:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process; it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 90) -> Broker:
        """Start and wait until it answers."""
        assert self._process is None
        command = self._kafka() if self.kind == "kafka" else self._mock()
        log = self.base / "broker.log"
        seen = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )

        def ready() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"the broker ended:\n{log.read_text()[-3000:]}")
            return b"Kafka Server started" in log.read_bytes()[seen:]

        wait_for(ready, timeout=timeout, what="a broker", every=0.05)
        if self.kind == "mock":
            self.port = int(log.read_bytes()[seen:].split(b"port ")[1].split()[0])
        return self

    def _kafka(self) -> list[str]:
        java = ["java", *_JAVA, *self._java, "-cp", classpath()]
        config, logs = self.base / "server.properties", self.base / "logs"
        if not config.exists():
            secure = f",SASL_SSL://127.0.0.1:{self.secure_port},SSL://127.0.0.1:{self.tls_port}"
            secure = secure if self._secure else ""
            text = _PROPERTIES.format(
                host=self._host, port=self.port, controller=self._controller, logs=logs, more_listeners=secure
            )
            config.write_text(text + self._more)
            command = [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(config)]
            for mechanism in self._scram:
                command += ["--add-scram", f"{mechanism}=[name=fsd,password=secret]"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        return [*java, "kafka.Kafka", str(config)]

    def _mock(self) -> list[str]:
        return [sys.executable, "-m", "tests.support.kafka.mock"]

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process; by default as a power cut would, but for what the kernel still writes."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def close(self) -> None:
        """End it and take its files away."""
        self.stop()
        shutil.rmtree(self.base, ignore_errors=True)


def keep(base: Path, owner: int) -> None:
    """Run a broker as long as the process `owner` runs; its address goes to the file `address` in `base`."""
    broker = Broker(base / "broker").start()
    aside = base / "address.new"
    aside.write_text(f"{broker.kind} {broker.port} {broker.pid}")
    aside.replace(base / "address")
    try:
        while os.path.exists(f"/proc/{owner}"):
            time.sleep(0.5)
    finally:
        broker.close()


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
