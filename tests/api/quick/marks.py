"""What a process of a ledger says of a request that it passes on, written down a second time."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Mapping
from hashlib import sha256
from itertools import count
from zlib import crc32

from tests.api.quick.test_forwarding import KEY
from tests.api.quick.world import World

SENDER = "5ea1" * 4
_numbers = count(1)


def mark(
    world: World,
    target: str,
    body: object,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    tenure: str | None = None,
    at: int | None = None,
    peer: str = "192.0.2.7",
) -> str:
    """The mark for what `world` is asked by its root key, with these headers more."""
    at = int(time.monotonic()) if at is None else at
    whole = {"authorization": f"Bearer {world.root}", **(headers or {})}
    names = "".join(sorted(f"{crc32(name.encode()):08x}" for name in whole))
    said = f"{world.ledger.tenure if tenure is None else tenure};0;{SENDER};{next(_numbers)};{names};{peer}"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sealed = [b"keyledger forwards 4", str(at).encode(), said.encode(), method.encode(), target.encode()]
    sealed.append(sha256(data).digest())
    for name, value in sorted(whole.items()):
        sealed += [name.encode(), value.encode()]
    text = b"".join(str(len(part)).encode() + b":" + part for part in sealed)
    return f"2;{at};{hmac.new(KEY, text, sha256).hexdigest()};{said}"
