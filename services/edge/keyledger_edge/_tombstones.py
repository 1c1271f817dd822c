"""Recent changes, by which a look-up that was under way at the time is recognised as stale."""

from __future__ import annotations

from keyledger_language.facts import KeyFacts
from keyledger_language.messages import Change


class Tombstones:
    """The last change of each key, organization, project, plan and keyspace that changed recently.

    Bounded: below `floor`, changes may have been dropped, so nothing that old is trusted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._positions: dict[str, int] = {}
        self.floor = 0
        self.last_wide = 0
        """The last change that does not list fingerprints: older entries must be checked again."""
        self.last_key = 0
        """The last change of a key: the key may have been created or rotated."""

    def add(self, change: Change) -> None:
        """Store the change. Ids are unique across kinds."""
        positions = self._positions
        position = max(change.position, positions.pop(change.id, 0))
        if len(positions) >= self._capacity:
            self._forget_oldest()
        positions[change.id] = position
        if change.kind == "key":
            self.last_key = max(self.last_key, change.position)
        if change.kind != "key" or not change.fingerprints:
            self.last_wide = max(self.last_wide, change.position)

    def outdates(self, facts: KeyFacts, as_of: int) -> bool:
        """Whether anything that these facts depend on changed after `as_of`."""
        return (
            as_of < self.floor
            or self._changed(facts.key_id, as_of)
            or self._changed(facts.organization_id, as_of)
            or self._changed(facts.plan_id, as_of)
            or self._changed(facts.keyspace_id, as_of)
            or any(self._changed(project, as_of) for project in facts.projects)
        )

    def outdates_keyspace(self, keyspace_id: str, as_of: int) -> bool:
        """Whether the keyspace itself changed after `as_of`."""
        return as_of < self.floor or self._changed(keyspace_id, as_of)

    def _changed(self, subject: str | None, as_of: int) -> bool:
        return subject is not None and self._positions.get(subject, 0) > as_of

    def start_from(self, position: int) -> None:
        """Remove all; nothing older than `position` is trusted."""
        self._positions.clear()
        self.floor = self.last_wide = self.last_key = position

    def disbelieve_after(self, position: int, *, wide: int) -> None:
        """Discard changes that no grant has confirmed; everything is checked again up to `wide`.

        Such a tombstone may have replaced a true, older one, so it is moved back, not dropped.
        """
        self._positions = {subject: min(at, position) for subject, at in self._positions.items()}
        self.floor = min(self.floor, position)
        self.last_wide = self.last_key = wide

    def _forget_oldest(self) -> None:
        for subject in list(self._positions)[: max(1, self._capacity // 8)]:
            self.floor = max(self.floor, self._positions.pop(subject))
