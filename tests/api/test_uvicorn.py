"""The names inside uvicorn that our protocol goes on from: a version that lost one is named here, with it.

uvicorn promises none of them. What they do together, `test_at_once.py` and `test_bounds.py` try on
real connections; this says in a sentence why those fail after an update.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from services.api.serving import at_once, bounded
from services.api.serving.at_once import AtOnceProtocol
from services.api.serving.bounded import BoundedProtocol

OURS = (AtOnceProtocol, BoundedProtocol)
CALLED_BY_UVICORN = {
    "connection_made", "connection_lost", "data_received", "on_message_begin", "on_url", "on_header",
    "on_headers_complete", "on_body", "on_message_complete", "on_response_complete", "shutdown",
}  # fmt: skip
"""What uvicorn and its parser call, and our classes answer otherwise."""


def trees() -> Iterator[ast.Module]:
    for module in (at_once, bounded):
        yield ast.parse(inspect.getsource(module))


def used_of(name: str) -> set[str]:
    """The attributes that our files use of what they call so (`self`, `cycle`)."""
    return {
        node.attr
        for tree in trees()
        for outer in tree.body
        if isinstance(outer, ast.ClassDef)
        and (name != "self" or outer.name in {one.__name__ for one in OURS})
        for node in ast.walk(outer)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }


def attributes_of(kind: type) -> set[str]:
    """What a class has: its own names, and what it sets on itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    stored = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return stored | {name for name in dir(kind) if not name.startswith("__")}


def set_by_us() -> set[str]:
    """What our classes bring themselves."""
    own: set[str] = set()
    for kind in OURS:
        own |= attributes_of(kind) - attributes_of(HttpToolsProtocol)
    return own


def missing(used: set[str], had: set[str], whose: str) -> list[str]:
    return [f"uvicorn {uvicorn.__version__} has no {whose}.{name}" for name in sorted(used - had)]


def test_the_protocol_has_all_that_ours_uses_of_it() -> None:
    used = used_of("self") - set_by_us()

    assert len(used) > 20
    assert missing(used, attributes_of(HttpToolsProtocol), "HttpToolsProtocol") == []


def test_the_protocol_calls_what_ours_answers_otherwise() -> None:
    overridden = {name for kind in OURS for name in vars(kind)} & attributes_of(HttpToolsProtocol)
    overridden -= {name for name in overridden if name.startswith("__")}

    assert missing(CALLED_BY_UVICORN, attributes_of(HttpToolsProtocol), "HttpToolsProtocol") == []
    assert {
        name for name in overridden if callable(getattr(HttpToolsProtocol, name, None))
    } <= CALLED_BY_UVICORN


def test_a_cycle_is_made_of_what_ours_gives_it_and_nothing_else() -> None:
    (call,) = [
        node
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "RequestResponseCycle"
    ]
    taken = set(inspect.signature(RequestResponseCycle).parameters)

    assert {one.arg for one in call.keywords} == taken, (
        f"uvicorn {uvicorn.__version__} makes a cycle otherwise"
    )
    assert missing(used_of("cycle"), attributes_of(RequestResponseCycle), "RequestResponseCycle") == []


def test_what_is_imported_from_within_is_there() -> None:
    had = set(dir(httptools_impl))

    assert missing({"STATUS_LINE", "HttpToolsProtocol", "RequestResponseCycle"}, had, "httptools_impl") == []
    assert httptools_impl.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
    assert (
        missing({"default_headers", "tasks", "connections"}, attributes_of(ServerState), "ServerState") == []
    )
    assert list(inspect.signature(FlowControl).parameters) == ["transport"]


def test_a_name_that_a_version_lost_is_said_with_the_version() -> None:
    (told,) = missing(
        used_of("self") - set_by_us(), attributes_of(HttpToolsProtocol) - {"flow"}, "HttpToolsProtocol"
    )

    assert told == f"uvicorn {uvicorn.__version__} has no HttpToolsProtocol.flow"


def test_only_the_minor_version_that_these_names_were_read_in_is_installed() -> None:
    wanted = (Path(__file__).parents[2] / "pyproject.toml").read_text()

    assert f'"uvicorn>={uvicorn.__version__.rsplit(".", 1)[0]},<0.' in wanted
