"""The settings: one typed schema; default < file < `FSD_…` environment < flag, with the origin of each.

The file is TOML; `${VAR}` in its strings is replaced, unknown keys are errors. The data root comes from `--data`,
`FSD_DATA` or the file; the file from `--config`, `FSD_CONFIG`, else `fsd.toml` in the state directory, else
`/etc/fsd/fsd.toml`. Secrets may be given as a file: `key_file` in TOML, `FSD_KEY_FILE` in the environment.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from fsd.core.errors import USAGE, UserError
from fsd.service import options
from fsd.service.options import Address, Kind, MountLine

T = TypeVar("T")
CONFIG_NAME = "fsd.toml"
_OUR_ENVIRONMENT = frozenset({"FSD_CONFIG", "FSD_VENV", "FSD_PYTHON", "FSD_ROOT", "FSD_PY"})
_POLLED = tuple(
    "nfs nfs4 cifs smb3 smbfs ceph 9p virtiofs afs gpfs lustre glusterfs beegfs orangefs ocfs2 gfs2 fuse".split()
)
_PARTS = ("web", "watcher", "jobs", "mounts")
WATCH_SOURCES = ("auto", "fanotify", "inotify", "poll", "gpfs-watchfolder", "gpfs-audit", "cephfs")


def _option(key: str, kind: Kind, default: T, text: str) -> T:
    made: T = field(default=default, metadata={"key": key, "kind": kind, "help": text})
    return made


@dataclass(frozen=True)
class Settings:
    """All settings. Paths are absolute. `origins` tells for each key where its value came from."""

    data: Path = _option("data", options.PATH, Path(), "the data root: users/ and projects/ lie in it")
    state: Path = _option(
        "state", options.PATH, Path(), "databases and keys, on a local disk (default: /var/lib/fsd/… as root)"
    )
    listen: Address = _option(
        "listen",
        options.ADDRESS,
        Address("127.0.0.1", 9200),
        "where HTTP is served; not on loopback: only with TLS",
    )
    workers: int = _option("workers", options.integer(1, 256), 2, "HTTP worker processes")
    only: tuple[str, ...] = _option("only", options.words(*_PARTS), _PARTS, "which parts this server runs")
    mounts: tuple[MountLine, ...] = _option(
        "mounts",
        options.MOUNTS,
        (),
        "local mounts that the server keeps up: 'SPACE /MOUNTPOINT [OPTION,…]' each, as in /etc/fstab",
    )
    mount_patience: int = _option(
        "mount_patience",
        options.SPAN,
        60,
        "a mount whose daemon gives no sign of life so long is replaced; 0: never",
    )
    behind_proxy: bool = _option(
        "behind_proxy",
        options.BOOLEAN,
        False,
        "a proxy in front does TLS: listening beyond loopback without is fine",
    )
    durability: str = _option(
        "durability",
        options.choice("fsync", "none"),
        "fsync",
        "whether a PUT is on the disk when it is answered; none: when the kernel writes it, whole files still",
    )
    tls_cert: Path | None = _option("tls.cert", options.OPTIONAL_PATH, None, "certificate chain (PEM)")
    tls_key: Path | None = _option("tls.key", options.OPTIONAL_PATH, None, "private key (PEM)")
    tls_self_signed: bool = _option(
        "tls.self_signed", options.BOOLEAN, False, "make and use a certificate of our own"
    )
    ops_listen: Address | None = _option(
        "ops.listen", options.OPTIONAL_ADDRESS, Address("127.0.0.1", 9209), "health and metrics; off for none"
    )
    log_level: str = _option(
        "log.level", options.choice("debug", "info", "warning", "error"), "info", "least level"
    )
    log_format: str = _option(
        "log.format", options.choice("text", "json", "journal"), "text", "for people, programs or journald"
    )
    http_loop: str = _option(
        "http.loop",
        options.choice("fsd", "stock"),
        "fsd",
        "who holds the connections: fsd, or cheroot's own loop",
    )
    http_fast: bool = _option(
        "http.fast",
        options.BOOLEAN,
        True,
        "keep what listings are made of; no: make each one anew, to compare",
    )
    http_threads: int = _option(
        "http.threads",
        options.integer(1, 512),
        64,
        "most threads of each HTTP worker; begun as they are needed",
    )
    http_timeout: int = _option(
        "http.timeout", options.SPAN, 60, "a connection that sends nothing is closed after it"
    )
    http_patience: int = _option(
        "http.patience",
        options.SPAN,
        60,
        "a web worker that gives no sign of life so long is replaced; 0: never",
    )
    http_per_address: int = _option(
        "http.per_address",
        options.integer(0, 1_000_000),
        1000,
        "most connections of one address in each worker; 0: any. Not for this machine and trusted proxies",
    )
    http_listeners: int = _option(
        "http.listeners",
        options.integer(0, 1_000_000),
        100,
        "most event streams of one user in each worker; 0: any",
    )
    http_public_url: str = _option(
        "http.public_url", options.TEXT, "", "the URL clients use, if it is another one"
    )
    http_trusted_proxies: tuple[str, ...] = _option(
        "http.trusted_proxies",
        options.words(),
        (),
        "addresses or networks whose Forwarded headers are believed",
    )
    http_max_body: int | None = _option("http.max_body", options.OPTIONAL_SIZE, None, "largest single upload")
    auth_realm: str = _option(
        "auth.realm", options.TEXT, "fsd", "what browsers show when they ask for a password"
    )
    auth_cache: int = _option(
        "auth.cache", options.SPAN, 300, "how long a verified password is not hashed again"
    )
    auth_cache_entries: int = _option(
        "auth.cache_entries", options.integer(1, 1_000_000), 4096, "and for how many"
    )
    auth_failures: int = _option(
        "auth.failures",
        options.integer(1, 10_000),
        5,
        "wrong passwords before an account or address is slowed",
    )
    auth_password_min: int = _option(
        "auth.password_min", options.integer(1, 1000), 1, "shortest new password"
    )
    admin_name: str = _option("admin.name", options.TEXT, "admin", "the first administrator")
    admin_password: str = _option("admin.password", options.SECRET, "", "their password, when they are made")
    watch_source: str = _option(
        "watch.source",
        options.choice(*WATCH_SOURCES),
        "auto",
        "how changes are heard, if a space does not say otherwise",
    )
    watch_polled: tuple[str, ...] = _option(
        "watch.polled",
        options.words(),
        _POLLED,
        "types of filesystems that don't tell what others change: they are polled",
    )
    watch_stats: int = _option(
        "watch.stats", options.integer(1, 1_000_000), 500, "stat calls a second for each polled space"
    )
    watch_max: int = _option(
        "watch.max", options.integer(0, 1 << 31), 0, "most inotify watches; 0: the kernel's limit"
    )
    watch_sweep: int = _option("watch.sweep", options.SPAN, 86400, "how often the whole tree is verified")
    kafka_brokers: tuple[str, ...] = _option(
        "kafka.brokers",
        options.words(),
        (),
        "brokers, host:port each, that tell what cluster storage changed",
    )
    kafka_group: str = _option("kafka.group", options.TEXT, "fsd", "consumer group; one for each watcher")
    kafka_security: str = _option(
        "kafka.security",
        options.choice("plaintext", "ssl", "sasl_plaintext", "sasl_ssl"),
        "plaintext",
        "how the brokers are reached",
    )
    kafka_mechanism: str = _option(
        "kafka.mechanism",
        options.choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
        "SCRAM-SHA-512",
        "how SASL proves who we are",
    )
    kafka_username: str = _option("kafka.username", options.TEXT, "", "the SASL user")
    kafka_password: str = _option("kafka.password", options.SECRET, "", "and their password")
    kafka_ca: Path | None = _option(
        "kafka.ca", options.OPTIONAL_PATH, None, "certificates that the brokers' are signed with (PEM)"
    )
    kafka_cert: Path | None = _option("kafka.cert", options.OPTIONAL_PATH, None, "our own certificate (PEM)")
    kafka_key: Path | None = _option("kafka.key", options.OPTIONAL_PATH, None, "and its key (PEM)")
    gpfs_watch_topics: tuple[str, ...] = _option(
        "gpfs.watch_topics", options.words(), (), "Kafka topics of clustered watch folders"
    )
    gpfs_audit_topics: tuple[str, ...] = _option(
        "gpfs.audit_topics", options.words(), (), "Kafka topics that file audit logs are shipped to"
    )
    gpfs_audit_logs: Path | None = _option(
        "gpfs.audit_logs", options.OPTIONAL_PATH, None, "directory of file audit logs, such as …/.audit_log"
    )
    gpfs_paths: tuple[str, ...] = _option(
        "gpfs.paths",
        options.words(),
        (),
        "where reported paths are here, such as /gpfs/fs1=/gpfs/fs1; the longest one that fits counts",
    )
    cephfs_topics: tuple[str, ...] = _option(
        "cephfs.topics", options.words(), (), "Kafka topics of CephFS change notifications"
    )
    cephfs_paths: tuple[str, ...] = _option(
        "cephfs.paths",
        options.words(),
        (),
        "likewise, such as /=/mnt/cephfs; =/mnt/cephfs/shared for paths without a leading slash",
    )
    cephfs_mask_table: str = _option(
        "cephfs.mask_table", options.choice("ceph", "inotify"), "ceph", "what the bits of a mask mean"
    )
    cluster_shared: bool = _option(
        "cluster.shared",
        options.BOOLEAN,
        False,
        "several hosts serve these spaces from one shared filesystem: one at a time works on each, by a lease",
    )
    cluster_name: str = _option(
        "cluster.name", options.TEXT, "", "how this host is called among them (default: its host name)"
    )
    cluster_address: str = _option(
        "cluster.address",
        options.TEXT,
        "",
        "the URL by which the other hosts reach this one's HTTP, to pass on what only the holder may do",
    )
    cluster_lease: int = _option(
        "cluster.lease", options.SPAN, 5, "how long a lease lasts; the same on all hosts, seconds"
    )
    cluster_journal: str = _option(
        "cluster.journal",
        options.TEXT,
        "",
        "a Kafka topic in which the host that works on a space tells the others what changed",
    )
    trash_keep: int = _option(
        "trash.keep", options.SPAN, 30 * 86400, "how long deleted files stay in the trash"
    )
    trash_limit: int | None = _option(
        "trash.limit", options.OPTIONAL_SIZE, None, "most bytes in a space's trash"
    )
    versions_keep: int = _option(
        "versions.keep",
        options.SPAN,
        90 * 86400,
        "how long replaced files are kept as versions; 0: none are made",
    )
    versions_limit: int | None = _option(
        "versions.limit", options.OPTIONAL_SIZE, None, "most bytes in a space's versions; the oldest go first"
    )
    checksums_rate: int = _option(
        "checksums.rate",
        options.SIZE,
        64 << 20,
        "bytes a second that are read in the background for checksums of files written straight to disk; 0: none",
    )
    spaces_quota: int | None = _option(
        "spaces.quota", options.OPTIONAL_SIZE, None, "quota of new personal spaces"
    )
    disk_reserve: int = _option(
        "disk.reserve",
        options.SIZE,
        64 << 20,
        "free bytes that uploads leave on a disk, at most a 32nd of it",
    )
    config: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    unknown_environment: tuple[str, ...] = ()

    def show(self) -> Iterator[tuple[str, str, str]]:
        """(key, value as text, origin) of each setting; secrets are masked."""
        for item in option_fields():
            kind: Kind = item.metadata["kind"]
            key = item.metadata["key"]
            yield key, kind.show(getattr(self, item.name)), self.origins.get(key, "default")


def option_fields() -> list[Field[Any]]:
    """The fields of Settings that are settings, in order."""
    return [item for item in fields(Settings) if item.metadata]


def env_name(key: str) -> str:
    """The environment variable of a key."""
    return "FSD_" + key.upper().replace(".", "_")


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Put the settings together. `flags` are by key; None there means not given. UserError for what is wrong."""
    environ = os.environ if environ is None else environ
    given: dict[str, tuple[Any, str]] = {}
    for key, value, origin in _from_environment(environ):
        given[key] = (value, origin)
    known = _by_key()
    for key, value in (flags or {}).items():
        if value is not None and key in known:
            given[key] = (
                _parse(known[key], key, value, f"--{key.replace('.', '-').replace('_', '-')}"),
                "flag",
            )
    path = _config_path(flags or {}, environ, given)
    values = dict(_from_file(path, environ)) if path is not None else {}
    values |= given
    if "data" not in values:
        raise UserError("No data root: give --data DIR, set FSD_DATA, or name a configuration file.", USAGE)
    data = _absolute(values["data"][0])
    state = _absolute(values["state"][0]) if "state" in values else default_state(data, environ)
    known_fields: dict[str, Any] = {
        known[key].name: _absolute(value) if isinstance(value, Path) else value
        for key, (value, _) in values.items()
    }
    known_fields |= {"data": data, "state": state}
    origins = {key: origin for key, (_, origin) in values.items()}
    return Settings(**known_fields, config=path, origins=origins, unknown_environment=_unknown(environ))


def default_state(data: Path, environ: Mapping[str, str] | None = None) -> Path:
    """The state directory of a data root when none is named; the same for every way to write the root's path."""
    environ = os.environ if environ is None else environ
    mark = hashlib.blake2b(os.path.realpath(os.fsencode(data)), digest_size=8).hexdigest()
    if os.geteuid() == 0:
        return Path("/var/lib/fsd") / mark
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "fsd" / mark


def template() -> str:
    """A configuration file in which every default stands commented out."""
    lines = ["# Settings of fsd. Every line shows its default; take the '#' away to change one.", ""]
    section = ""
    for item in option_fields():
        head, dot, name = item.metadata["key"].rpartition(".")
        if dot and head != section:
            section = head
            lines += [f"[{section}]"]
        if item.metadata["key"] in ("data", "state"):
            continue
        kind: Kind = item.metadata["kind"]
        lines += [f"# {item.metadata['help']}", f"#{name} = {_toml(kind, item.default)}", ""]
    return "\n".join(lines)


def _toml(kind: Kind, value: Any) -> str:
    if (
        isinstance(value, bool | int)
        and kind.natives[0] is not str
        and kind not in (options.SIZE, options.SPAN)
    ):
        return kind.show(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return f'"{kind.show(value)}"'


def _by_key() -> dict[str, Field[Any]]:
    return {item.metadata["key"]: item for item in option_fields()}


def _parse(item: Field[Any], key: str, value: Any, where: str) -> Any:
    kind: Kind = item.metadata["kind"]
    if (
        not isinstance(value, str)
        and isinstance(value, type(item.default))
        and not isinstance(value, bool | int)
    ):
        return value  # already of the right type: a flag that argparse converted
    if not isinstance(value, kind.natives) and not isinstance(value, str):
        raise UserError(f"{where}: '{key}' must be a {kind.name}.", USAGE)
    try:
        return kind.parse(value)
    except ValueError as error:
        shown = "" if kind is options.SECRET else f", not {value!r}"
        raise UserError(f"{where}: '{key}' {error}{shown}.", USAGE) from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    for key, item in _by_key().items():
        name = env_name(key)
        if item.metadata["kind"] is options.SECRET and name + "_FILE" in environ:
            yield (
                key,
                _parse(item, key, _secret(Path(environ[name + "_FILE"])), name + "_FILE"),
                f"env {name}_FILE",
            )
        elif name in environ:
            yield key, _parse(item, key, environ[name], name), f"env {name}"


def _unknown(environ: Mapping[str, str]) -> tuple[str, ...]:
    ours = set(_OUR_ENVIRONMENT)
    for key, item in _by_key().items():
        ours |= (
            {env_name(key), env_name(key) + "_FILE"}
            if item.metadata["kind"] is options.SECRET
            else {env_name(key)}
        )
    return tuple(
        sorted(
            name for name in environ if name.startswith("FSD_") and name not in ours and "TEST" not in name
        )
    )


def _secret(path: Path) -> str:
    try:
        return path.expanduser().read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The secret in {path} cannot be read: {error}.", USAGE) from None


def _config_path(
    flags: Mapping[str, Any], environ: Mapping[str, str], given: Mapping[str, Any]
) -> Path | None:
    named = flags.get("config") or environ.get("FSD_CONFIG")
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise UserError(f"There is no configuration file {path}.", USAGE)
        return path
    places = [Path("/etc/fsd") / CONFIG_NAME]
    if "state" in given:
        places.insert(0, _absolute(given["state"][0]) / CONFIG_NAME)
    elif "data" in given:
        places.insert(0, default_state(_absolute(given["data"][0]), environ) / CONFIG_NAME)
    found = next((place for place in places if os.path.lexists(place)), None)
    if found is not None and not found.is_file():
        # Served with the defaults instead, it would be another server than the one that was set up.
        raise UserError(f"{found} is not a file that can be read.", USAGE)
    return found


def _from_file(path: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[Any, str]]]:
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {error}.", USAGE) from None
    except RecursionError:
        raise UserError(f"{path}: it is nested too deeply.", USAGE) from None
    known = _by_key()
    for key, raw in _flatten(tree, known):
        value = _expand(raw, environ, path)
        base = key.removesuffix("_file")
        if key not in known and base in known and known[base].metadata["kind"] is options.SECRET:
            key, value = base, _secret(path.parent / str(value))
        if key not in known:
            raise UserError(f"{path}: there is no setting '{key}'.", USAGE)
        parsed = _parse(known[key], key, value, str(path))
        if isinstance(parsed, Path):
            parsed = path.parent / parsed
        yield key, (parsed, f"file {path}")


def _flatten(tree: Mapping[str, Any], known: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, known, f"{head}{name}.")
        else:
            yield head + name, value


def _expand(value: Any, environ: Mapping[str, str], path: Path) -> Any:
    if isinstance(value, list):
        return [_expand(item, environ, path) for item in value]
    if not isinstance(value, str):
        return value

    def put(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        if found[1] not in environ:
            raise UserError(f"{path}: the environment has no variable '{found[1]}'.", USAGE)
        return environ[found[1]]

    return re.sub(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}", put, value)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))
