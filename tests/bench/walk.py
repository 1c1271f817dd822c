"""How far a reader walks to follow one request through the code.

    python -m tests.bench.walk

Told are the calls of our own functions, the files that they are in, the moves from one file to another,
and how often a lower layer calls back into a higher one. Everything is in memory; the request is the
fourth of its kind, when what is kept is there.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, Self

from tests.api.quick.world import running_world

ROOT: Final = Path(__file__).resolve().parents[2]
LAYERS: Final = (
    "services/api/", "services/ledger/", "projections/", "infra/", "services/reading/", "domain/",
    "services/edge/", "services/language/",
)  # fmt: skip
"""From the top; who calls upwards climbs back."""
_OF_THE_CLIENT: Final = {"Answer.headers", "_headers"}
"""The short way of the HTTP server has no need of them; the test's client reads them."""
_GENERATORS: Final = 0x20 | 0x80 | 0x200


class Walk:
    """What is called while it is open."""

    def __init__(self) -> None:
        self.places: list[tuple[str, str]] = []
        self.climbs: list[str] = []
        self._resumable: list[FrameType] = []

    def __enter__(self) -> Self:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (file := _ours(frame.f_code)) is None:
            return
        if frame.f_code.co_qualname in _OF_THE_CLIENT:
            return
        if frame.f_code.co_flags & _GENERATORS:
            if any(one is frame for one in self._resumable):
                return
            self._resumable.append(frame)
        self.places.append((file, frame.f_code.co_qualname))
        caller = None if frame.f_back is None else _ours(frame.f_back.f_code)
        if caller is not None and _layer(file) < _layer(caller):
            self.climbs.append(f"{caller} -> {file}: {frame.f_code.co_qualname}")

    def tell(self, name: str) -> None:
        files = [file for file, _ in self.places]
        moves = sum(one != other for one, other in itertools.pairwise(files))
        print(
            f"{name}: {len(files)} calls, {len(set(files))} files, {moves} moves, {len(self.climbs)} climbs"
        )


def _ours(code: CodeType) -> str | None:
    path = code.co_filename
    if not path.startswith(f"{ROOT}/") or "/.venv/" in path:
        return None
    file = path.removeprefix(f"{ROOT}/")
    return file if file.startswith(LAYERS) else None


def _layer(file: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if file.startswith(layer))


async def main(*, all_of_it: bool) -> None:
    async with running_world() as world:
        keyspace = await world.make_keyspace()
        organization = await world.make_organization(credit=1_000_000)
        owned = await world.make_key(keyspace, organization)
        numbers = iter(range(100))
        spare = [await world.make_key(keyspace, organization) for _ in range(4)]

        def verify() -> Awaitable[Any]:
            return world.post("/v1/verify", {"secret": owned.secret, "keyspace_id": keyspace.id})

        def charge() -> Awaitable[Any]:
            body = {"key_id": owned.id, "request_id": f"r-{next(numbers)}", "amount_micros": 5}
            return world.post("/v1/charges", body)

        def revoke() -> Awaitable[Any]:
            return world.post(f"/v1/keys/{spare.pop().id}/revoke", {})

        asked: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
            ("verify", verify), ("charge", charge), ("revoke", revoke),
        ]  # fmt: skip
        for name, ask in asked:
            world.at_once = name != "revoke"
            for _ in range(3):
                await ask()
            await asyncio.sleep(0.05)
            with Walk() as walk:
                answer = await ask()
            assert answer.status in {200, 201}, answer.body
            walk.tell(name)
            if all_of_it:
                print("\n".join(f"    {file}: {function}" for file, function in walk.places))
            for climb in walk.climbs:
                print(f"    climbs: {climb}")


if __name__ == "__main__":
    asyncio.run(main(all_of_it="--all" in sys.argv))
