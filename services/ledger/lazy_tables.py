"""Tables whose rows stay encoded, as they were saved, until they are looked up.

Most of a million keys are not used between two restarts: decoding them would take most of a start,
and most of the memory.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from typing import Any, Final, TypeVar

from domain.accounts import Counters, Wallet
from domain.keys import Key
from domain.organizations import Organization, Project
from domain.state import State, Table
from keyledger_language.instants import Instant
from services.ledger.jobs import DataKeyring
from services.ledger.row_format import decode_later

K = TypeVar("K")
V = TypeVar("V")

_get: Final = dict.get
_put: Final = dict.setdefault
"""What is in a table is never older than its encoded row."""


class EncodedRows:
    """Rows of one kind that have not been looked up yet."""

    def __init__(self, table: str, settle: Callable[[str, Any], None], keyring: DataKeyring) -> None:
        self.rows: dict[str, bytes] = {}
        self._table = table
        self._settle = settle
        self._keyring = keyring

    def decode(self, subject: str) -> None:
        """Decode the row into its tables, if it is here."""
        row = self.rows.get(subject)
        if row is not None:
            self._settle(subject, decode_later(self._table, subject, row, self._keyring))
            del self.rows[subject]

    def decode_all(self) -> None:
        """Decode all rows into their tables."""
        for subject in list(self.rows):
            self.decode(subject)


class LazyTable(Table[K, V]):
    """Committed rows by id: those that are decoded, and those that will be when they are looked up.

    `decode` adds a row that a look-up did not find, if it exists encoded. `own`: the encoded rows that
    correspond one to one to this table's; without it, ids are known only once all rows are decoded.
    """

    def __init__(
        self,
        decode: Callable[[Any], None],
        sources: Sequence[EncodedRows],
        own: EncodedRows | None = None,
    ) -> None:
        super().__init__()
        self._decode = decode
        self._sources = sources
        self._own = own

    def get(self, key: K, default: Any = None) -> Any:
        """The row, or the default."""
        row = _get(self, key)
        if row is None:
            self._decode(key)
            row = _get(self, key, default)
        return row

    def __missing__(self, key: K) -> V:
        self._decode(key)
        row: V | None = _get(self, key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None  # type: ignore[arg-type]  # anything may be looked up

    def __iter__(self) -> Iterator[K]:
        """Ids, those of decoded rows first; rows that are decoded meanwhile do no harm."""
        if self._own is None:
            self._decode_all()
            return super().__iter__()
        encoded: list[Any] = list(self._own.rows)
        return iter([*super().__iter__(), *encoded])

    def __len__(self) -> int:
        if self._own is None:
            self._decode_all()
            return super().__len__()
        return super().__len__() + len(self._own.rows)

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __ne__(self, other: object) -> bool:
        return dict(self) != other

    __hash__ = None  # type: ignore[assignment]  # as dict's own

    def keys(self) -> KeysView[K]:  # type: ignore[override]  # a view as good as dict's own
        """All ids."""
        return KeysView(self)

    def values(self) -> ValuesView[V]:  # type: ignore[override]
        """All rows, decoded one by one as they are reached."""
        return ValuesView(self)

    def items(self) -> ItemsView[K, V]:  # type: ignore[override]
        """All ids and rows, decoded one by one as they are reached."""
        return ItemsView(self)

    def pop(self, key: K, *default: Any) -> Any:
        """Remove a row."""
        self._decode(key)
        return super().pop(key, *default)

    def setdefault(self, key: K, default: Any = None) -> Any:
        """The row, or the default, which is the row from now on."""
        self._decode(key)
        return super().setdefault(key, default)

    def __delitem__(self, key: K) -> None:
        self._decode(key)
        super().__delitem__(key)

    def _decode_all(self) -> None:
        for source in self._sources:
            source.decode_all()


class LazyTables:
    """The tables of a state that is being loaded, and their rows that have not been looked up yet."""

    def __init__(self, state: State, keyring: DataKeyring) -> None:
        self._encoded = {
            "organizations": EncodedRows("organizations", self._settle_organization, keyring),
            "projects": EncodedRows("projects", self._settle_project, keyring),
            "keys": EncodedRows("keys", self._settle_key, keyring),
            "wallets": EncodedRows("wallets", self._settle_wallet, keyring),
            "counters": EncodedRows("counters", self._settle_counters, keyring),
        }
        self._key_of: dict[bytes, str] = {}
        """The keys of secrets that are not decoded, by fingerprint."""
        organizations, projects, keys, wallets, counters = self._encoded.values()
        self._tables: dict[str, LazyTable[Any, Any]] = {
            "organizations": LazyTable(organizations.decode, (organizations,), organizations),
            "members": LazyTable(organizations.decode, (organizations,)),
            "projects": LazyTable(projects.decode, (projects,), projects),
            "keys": LazyTable(keys.decode, (keys,), keys),
            "secrets": LazyTable(self._decode_secret, (keys,)),
            "wallets": LazyTable(wallets.decode, (wallets,), wallets),
            "counters": LazyTable(counters.decode, (counters,)),
            "last_used": LazyTable(counters.decode, (counters,)),
            "versions": LazyTable(self._decode_stream, (keys, wallets)),
        }
        for name, table in self._tables.items():
            setattr(state, name, table)

    def add(self, table: str, rows: dict[str, bytes]) -> None:
        """Add rows, to be decoded when they are looked up."""
        self._encoded[table].rows.update(rows)

    def add_keys(self, rows: Iterable[tuple[str, bytes]], key_of: Iterable[tuple[bytes, str]]) -> None:
        """The same for keys, which are also found by the fingerprints of their secrets."""
        self._encoded["keys"].rows.update(rows)
        self._key_of.update(key_of)

    def release(self) -> None:
        """Release rows and tables, which refer to each other: the state is about to be forgotten."""
        for encoded in self._encoded.values():
            encoded.rows.clear()
        self._key_of.clear()
        self._tables.clear()

    def _decode_secret(self, fingerprint: bytes) -> None:
        key_id = self._key_of.get(fingerprint)
        if key_id is not None:
            self._encoded["keys"].decode(key_id)

    def _decode_stream(self, stream: str) -> None:
        self._encoded["keys"].decode(stream)
        self._encoded["wallets"].decode(stream)

    def _settle_organization(self, organization_id: str, parts: tuple[Organization]) -> None:
        _put(self._tables["organizations"], organization_id, parts[0])
        _put(self._tables["members"], organization_id, frozenset())

    def _settle_project(self, project_id: str, parts: tuple[Project]) -> None:
        _put(self._tables["projects"], project_id, parts[0])

    def _settle_key(self, key_id: str, parts: tuple[Key, int]) -> None:
        key, version = parts
        _put(self._tables["keys"], key_id, key)
        _put(self._tables["versions"], key_id, version)
        for secret in key.secrets:
            _put(self._tables["secrets"], secret.fingerprint, secret)
            self._key_of.pop(secret.fingerprint, None)

    def _settle_wallet(self, organization_id: str, parts: tuple[Wallet, int]) -> None:
        wallet, version = parts
        _put(self._tables["wallets"], organization_id, wallet)
        _put(self._tables["versions"], organization_id, version)

    def _settle_counters(self, subject: str, parts: tuple[Counters | None, Instant | None]) -> None:
        counters, last_used = parts
        if counters is not None:
            _put(self._tables["counters"], subject, counters)
        if last_used is not None:
            _put(self._tables["last_used"], subject, last_used)
