"""What an operator can set, from `KEYLEDGER_*` variables or a TOML file, checked before anything starts.

A variable wins over the file, the file over the default. A setting's name in the file is the
variable's without `KEYLEDGER_`, in lower case.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

PREFIX: Final = "KEYLEDGER_"
CONFIG: Final = "KEYLEDGER_CONFIG"
DEFAULT_FILE: Final = "keyledger.toml"
MASTER_KEY_BYTES: Final = 32

SECRET_SETTINGS: Final = frozenset(
    {
        "database_url",
        "nats_url",
        "edge_nats_url",
        "edge_nats_issuer",
        "master_key",
        "root_key",
        "api_key",
        "edge_key",
    }
)
"""Settings that are never shown: a URL may contain a password."""


class SettingsError(Exception):
    """A setting is invalid; the sentence names it, and never shows a secret."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source} {problem}.")
        self.source = source


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; the defaults suit a single machine."""

    database_url: str | None = None
    """The operator's PostgreSQL, as a URL or libpq conninfo; unset: the embedded one."""
    nats_url: str | None = None
    """The operator's NATS; several with commas between them; unset: the embedded one."""
    edge_nats_url: str | None = None
    """The URL at which edges reach NATS; unset: `nats_url`, if that names no user."""
    edge_nats_issuer: str | None = None
    """Seed of the account key with which NATS asks the ledger about edges: a user for each root key."""
    edge_nats_account: str = "$G"
    """The account of NATS that edges are in."""
    nats_max_bytes: int = 1 << 30
    """The largest size of the stream of events; the oldest events are dropped first."""
    nats_max_age_hours: int = 168
    """How long the stream of events keeps them; 0: as long as there is room."""
    nats_replicas: int = 1
    """The number of replicas of the stream of events in a NATS cluster."""
    nats_republish_after: int = 0
    """The event after which a new or lost stream is filled from the log."""
    data_dir: Path = Path(".keyledger")
    """The folder of the embedded servers' data and of the first root key."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is every one."""
    port: int = 8700
    """The port to listen on."""
    advertise_url: str | None = None
    """Where other ledger processes reach this one; unset: http://host:port."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks (CIDR), or `unix`, whose X-Forwarded-For is trusted."""
    metrics: Literal["auto", "open", "key"] = "auto"
    """Who may read `/metrics`: everybody, or root keys; `auto`: everybody where it listens on loopback."""

    wait_seconds: int | None = None
    """How long a start waits for PostgreSQL; unset: until it answers, 0: not at all."""

    root_key: str | None = None
    """Bootstrap with this root key instead of a new one."""
    master_key: bytes | None = None
    """32 bytes as hex or base64: wraps the keys that encrypt personal fields."""
    edge_key: str | None = None
    """The root key that an edge uses: with `edges:connect`, and `charges:write` for uses with a cost."""

    url: str = "http://127.0.0.1:8700"
    """The ledger that the command line talks to."""
    api_key: str | None = None
    """The root key that it uses; unset: the file root-key in the data folder."""

    lease_ms: int = 1_000
    """How long an edge may rely on its memory without a renewal: the bound on stale answers."""
    ping_ms: int = 250
    """How often an edge renews its lease."""
    drift: float = 0.01
    """The allowance for clocks of two machines that run at different rates."""
    max_serve_stale_ms: int = 0
    """The longest `serve_stale` that an edge may choose; 0: none."""

    max_edges_per_root_key: int = 1_000
    """Edges that may take part with one root key; more are answered 429."""
    max_edges: int = 10_000
    """Edges that may take part in all; more are answered 429."""

    queue_limit: int = 20_000
    """Commands that may wait; more are answered 503."""
    max_body_bytes: int = 1_048_576
    """A request body longer than this is refused."""
    max_header_bytes: int = 32_768
    """A request whose headers, or trailers, are larger is refused."""
    max_headers: int = 100
    """One with more of them is refused."""
    max_url_bytes: int = 8_192
    """One with a longer URL is refused."""
    header_seconds: int = 10
    """How long a client may take to send its headers."""
    body_seconds: int = 30
    """How long it may take to send a body; each 16 KiB received allows a second more."""
    max_connections: int | None = None
    """Connections of clients at one time; unset: what the limit of open files leaves, at most 10,000."""
    max_streams: int = 100
    """Streams of events at one time."""
    max_streams_per_key: int = 10
    """Streams of events that one root key may have at one time."""
    idempotency_hours: int = 24
    """How long an answer is kept under its Idempotency-Key."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """`auto`: text on a terminal, else one JSON object per line."""
    log_granted: bool = False
    """A line for each verify, forward-auth and charge that was granted, too; refused ones always have one."""

    @property
    def address(self) -> str:
        """Where people reach this process: `http://host:port`."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{self.port}"

    @property
    def advertised(self) -> str:
        """Where other ledger processes reach this one."""
        return (self.advertise_url or self.address).rstrip("/")

    @property
    def metrics_need_a_key(self) -> bool:
        """Whether only root keys with `metrics:read` may read metrics, which reveal the amount of traffic."""
        return self.metrics == "key" or (self.metrics == "auto" and not _is_loopback(self.host))

    def __repr__(self) -> str:
        """All settings; of secret ones only whether they are set."""
        return f"Settings({', '.join(f'{name}={value}' for name, value in self.shown().items())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [*self.shown().items()]

    def shown(self) -> dict[str, str]:
        """Every setting as text for people; of a secret one only whether it is set."""
        return {name: self._shown(name) for name in self.__struct_fields__}

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        if name in SECRET_SETTINGS:
            return "(set)" if value is not None else "(unset)"
        if isinstance(value, tuple):
            return ",".join(value) or "(none)"
        if isinstance(value, bool):
            return str(value).lower()
        return "(unset)" if value is None else str(value)

    def environment(self) -> dict[str, str]:
        """The variables that give another process the same settings."""
        return {
            PREFIX + name.upper(): _written(value)
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not None and value != ()
        }


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_settings(
    environment: Mapping[str, str] | None = None,
    *,
    config: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read the settings; `overrides` are options of the command line, None if not given."""
    environment = os.environ if environment is None else environment
    found: dict[str, Any] = {}
    for name, value in _read_file(_config_file(environment, config)).items():
        found[name] = (value, name)
    for name in Settings.__struct_fields__:
        # An empty variable counts as unset: so the defaults of a container image can be removed.
        if text := environment.get(PREFIX + name.upper()):
            found[name] = (text, PREFIX + name.upper())
    for name, value in (overrides or {}).items():
        if value is not None:
            found[name] = (value, f"--{name.replace('_', '-')}")
    settings = Settings(**{name: _READ[name](value, source) for name, (value, source) in found.items()})
    _check_together(settings)
    if "url" not in found and settings.port:
        # If the ledger here listens on another port, the command line calls that one.
        settings = msgspec.structs.replace(settings, url=settings.address)
    return settings


def unknown_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Variables with the ledger's prefix that are not settings: most likely mistyped."""
    environment = os.environ if environment is None else environment
    known = {PREFIX + name.upper() for name in Settings.__struct_fields__} | {CONFIG}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def _config_file(environment: Mapping[str, str], config: Path | str | None) -> Path | None:
    chosen = config or environment.get(CONFIG)
    if chosen:
        if not Path(chosen).is_file():
            raise SettingsError("--config" if config else CONFIG, f"names {chosen}, which does not exist")
        return Path(chosen)
    usual = Path(DEFAULT_FILE)
    return usual if usual.is_file() else None


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(str(path), f"is not TOML: {error}") from None
    for name in found:
        if name not in Settings.__struct_fields__:
            raise SettingsError(str(path), f"sets {name}, which is not a setting")
    return found


def _check_together(settings: Settings) -> None:
    if settings.ping_ms * 2 > settings.lease_ms:
        raise SettingsError(
            "KEYLEDGER_PING_MS",
            f"must be at most half of KEYLEDGER_LEASE_MS ({settings.lease_ms}): one lost ping ends no lease",
        )


_SWITCHES: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_Reader = Callable[[Any, str], Any]


def _text(value: Any, source: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(source, "must be text")
    return value.strip()


def _path(value: Any, source: str) -> Path:
    return value if isinstance(value, Path) else Path(_text(value, source)).expanduser()


def _integer(low: int, high: int) -> _Reader:
    def read(value: Any, source: str) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise SettingsError(source, f"must be a whole number from {low} to {high}")
        return value

    return read


def _fraction(low: float, high: float) -> _Reader:
    def read(value: Any, source: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = high + 1
        if isinstance(value, bool) or not low <= number <= high:
            raise SettingsError(source, f"must be a number from {low:g} to {high:g}")
        return number

    return read


def _one_of(*choices: str) -> _Reader:
    def read(value: Any, source: str) -> str:
        text = _text(value, source).lower()
        if text not in choices:
            raise SettingsError(source, f"must be one of {', '.join(choices)}")
        return text

    return read


def _yes_or_no(value: Any, source: str) -> bool:
    if isinstance(value, bool):  # from a file
        return value
    found = _SWITCHES.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise SettingsError(source, "must be true or false")
    return found


def _web_address(value: Any, source: str) -> str:
    text = _text(value, source).rstrip("/")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise SettingsError(source, "must be an http or https address such as http://127.0.0.1:8700")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise SettingsError(source, "must be an address without user, password, query or fragment")
    return text


def _database_address(value: Any, source: str) -> str:
    text = _text(value, source)
    if not text.startswith(("postgresql://", "postgres://")) and "=" not in text:
        raise SettingsError(source, "must be an address such as postgresql://user@host/database")
    return text


def _nats_address(value: Any, source: str) -> str:
    text = _text(value, source)
    for one in text.split(","):
        if not one.strip().startswith(("nats://", "tls://", "ws://", "wss://")):
            raise SettingsError(source, "must be an address such as nats://host:4222")
    return text


def _issuer_seed(value: Any, source: str) -> str:
    text = _text(value, source)
    if re.fullmatch(r"SA[A-Z2-7]{56}", text, re.ASCII) is None:
        raise SettingsError(source, "must be the seed of an account key, which begins with SA (nsc, nk)")
    return text


def _networks(value: Any, source: str) -> tuple[str, ...]:
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)):
        raise SettingsError(source, "must be a list of networks such as 10.0.0.0/8")
    return tuple(_network(one, source) for one in listed if one != "")


def _network(value: Any, source: str) -> str:
    text = _text(value, source)
    if text == "unix":
        return text
    try:
        return str(ip_network(text))
    except ValueError:
        raise SettingsError(source, f"lists {text}, which is not a network such as 10.0.0.0/8") from None


def _master_key(value: Any, source: str) -> bytes:
    text = _text(value, source)
    key = _from_hex(text) or _from_base64(text)
    if key is None or len(key) != MASTER_KEY_BYTES:
        raise SettingsError(source, f"must be {MASTER_KEY_BYTES} bytes as hex or base64")
    return key


def _root_key(value: Any, source: str) -> str:
    # Imported only when it is needed: a command without a root key starts faster.
    from domain.keyspaces import ROOT_SHAPE  # noqa: PLC0415

    text = _text(value, source)
    if not ROOT_SHAPE.recognises(text):
        raise SettingsError(
            source, f"must be a complete root key ({ROOT_SHAPE.describe()}), as the ledger makes them"
        )
    return text


def _from_hex(text: str) -> bytes | None:
    return bytes.fromhex(text) if re.fullmatch(r"[0-9A-Fa-f]{64}", text) else None


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_" if {"-", "_"} & {*text} else None
        )
    except (binascii.Error, ValueError):
        return None


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


_READ: Final[dict[str, _Reader]] = {
    "database_url": _database_address,
    "nats_url": _nats_address,
    "edge_nats_url": _nats_address,
    "edge_nats_issuer": _issuer_seed,
    "edge_nats_account": _text,
    "nats_max_bytes": _integer(1 << 20, 1 << 50),
    "nats_max_age_hours": _integer(0, 876_000),
    "nats_replicas": _integer(1, 5),
    "nats_republish_after": _integer(0, 10**17),
    "data_dir": _path,
    "host": _text,
    "port": _integer(0, 65_535),
    "advertise_url": _web_address,
    "trusted_proxies": _networks,
    "metrics": _one_of("auto", "open", "key"),
    "wait_seconds": _integer(0, 86_400),
    "root_key": _root_key,
    "master_key": _master_key,
    "edge_key": _root_key,
    "url": _web_address,
    "api_key": _text,
    "lease_ms": _integer(100, 60_000),
    "ping_ms": _integer(10, 30_000),
    "drift": _fraction(0, 0.2),
    "max_serve_stale_ms": _integer(0, 3_600_000),
    "max_edges_per_root_key": _integer(1, 100_000),
    "max_edges": _integer(1, 1_000_000),
    "queue_limit": _integer(1, 1_000_000),
    "max_body_bytes": _integer(1_024, 67_108_864),
    "max_header_bytes": _integer(4_096, 1_048_576),
    "max_headers": _integer(20, 10_000),
    "max_url_bytes": _integer(1_024, 65_536),
    "header_seconds": _integer(1, 3_600),
    "body_seconds": _integer(1, 3_600),
    "max_connections": _integer(1, 1_000_000),
    "max_streams": _integer(0, 100_000),
    "max_streams_per_key": _integer(0, 100_000),
    "idempotency_hours": _integer(1, 8_760),
    "log_level": _one_of("debug", "info", "warning", "error"),
    "log_format": _one_of("auto", "text", "json"),
    "log_granted": _yes_or_no,
}
