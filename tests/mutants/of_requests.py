"""Requests of strangers that reach more of a server, or hold more of it, than a node's may."""

from server.deployment import (
    request_filter,
    superlink_api,
    superlink_main,
)
from server.deployment.request_filter import Gate, RareWarnings
from tests.mutants.faults import every_case, planted, planted_value
from tests.server.deployment import test_request_bounds as bounds
from tests.server.deployment import test_request_filter as gates
from tests.server.deployment import test_superlink_main as mains

_FORBIDDEN = every_case(gates.test_stranger_reaches_nothing_but_the_fleet)
_PATH = 'scope["path"] not in api.OPEN_TO_NODES'
planted(
    _FORBIDDEN,
    Gate.__call__,
    {
        "every request below the fleet's path": (_PATH, 'not scope["path"].startswith(api.FLEET)'),
        "a request that ends like a node's": (_PATH, 'not scope["path"].rstrip("/") in api.OPEN_TO_NODES'),
    },
)
planted(
    gates.test_websocket_of_a_stranger_is_closed,
    Gate.__call__,
    {
        "a websocket of a stranger": ('scope["type"] != "http" or ', ""),
    },
)
planted(
    gates.test_node_without_a_key_is_told_so_in_a_way_that_ends_it,
    Gate.__call__,
    {
        "a node without a key that is let in": (
            "if not local and (",
            'if not local and scope["path"] != api.KEYLESS and (',
        ),
        "a node without a key that waits for ever": ('if scope["path"] == api.KEYLESS:', "if False:"),
    },
)
_HEADERS = every_case(gates.test_headers_take_trust_away_and_never_give_it)
planted(
    _HEADERS,
    request_filter.is_local,
    {
        "a proxy that makes strangers local": ("name.lower() in _PROXY_HEADERS", "False"),
        "a proxy that writes its header in capitals": ("name.lower() in _PROXY_HEADERS", "name in _PROXY_HEADERS"),
    },
)
_PLACED = every_case(gates.test_whoever_cannot_be_placed_is_a_stranger)
planted(
    _PLACED,
    request_filter.is_local,
    {
        "a caller without an address that is local": (
            "    if peer is None:\n        return False\n",
            "    if peer is None:\n        return True\n",
        ),
        "a caller of no address that is local": ("not own.is_unspecified and ", ""),
        "a caller by the server's address alone": ("peer == own)", "peer.version == own.version)"),
    },
)
planted(
    every_case(gates.test_this_machine_reaches_everything),
    request_filter._address,
    {
        "a caller in the other family": ("return mapped or parsed", "return parsed"),
    },
)
_LENGTHS = every_case(bounds.test_body_that_lies_about_its_length_is_cut_off_where_it_is_too_large)
planted(
    _LENGTHS,
    Gate._within_bounds,
    {
        "a body as long as it says": ("if len(body) > limit:", "if False:"),
    },
)
planted(
    every_case(bounds.test_body_that_says_it_is_too_large_is_not_read),
    Gate._within_bounds,
    {
        "a body that is read though it says it is too long": ("if _declared_length(scope) > limit:", "if False:"),
    },
)
_CROWD = bounds.test_strangers_together_cannot_fill_the_memory
planted(
    _CROWD,
    Gate._within_bounds,
    {
        "bodies of all strangers together": ("self._in_flight > self._largest_in_flight or ", ""),
    },
)
planted(
    _CROWD,
    Gate._let_go,
    {
        "room that is never given back": ("self._in_flight -= counted", "pass"),
    },
)
planted(
    bounds.test_one_stranger_cannot_take_the_room_of_all,
    Gate._within_bounds,
    {
        "all the room for one stranger": (" or self._held[peer] > self._largest_of_one", ""),
    },
)
planted(
    bounds.test_only_pushes_may_be_large,
    Gate._within_bounds,
    {
        "a large body of any request": (
            'if scope["path"] in api.CARRIERS else min(self._largest_body, _LARGEST_OTHER)',
            "",
        ),
    },
)
_LOGGED = gates.test_refusals_are_logged_as_one_line_that_the_stranger_cannot_write
planted(
    _LOGGED,
    request_filter._path,
    {
        "a log that strangers write": ('ascii(str(scope.get("path", ""))[:80])', 'str(scope.get("path", ""))'),
    },
)
planted(
    _LOGGED,
    RareWarnings.warn,
    {
        "a log that strangers fill": ("if now < self._next:", "if False:"),
    },
)
planted(
    mains.test_flower_without_the_hook_does_not_start,
    superlink_main.install_gate,
    {
        "a server behind no gate": ('getattr(first, "cls", None) is not Gate', "False"),
    },
)
_OPTIONS = mains.test_server_runs_with_our_options
planted(
    _OPTIONS,
    superlink_main.main,
    {
        "options of uvicorn that are left as they are": ("(options | SERVER_OPTIONS)", "(SERVER_OPTIONS | options)"),
    },
)


def the_gate_trusts_no_header_and_opens_to_admitted_nodes_alone() -> None:
    assert superlink_main.SERVER_OPTIONS["proxy_headers"] is False
    assert superlink_api.KEYLESS not in superlink_api.OPEN_TO_NODES
    assert not any("register" in path for path in superlink_api.OPEN_TO_NODES)
    assert all(path.startswith(superlink_api.FLEET) for path in superlink_api.OPEN_TO_NODES)
    assert superlink_api.CARRIERS < superlink_api.OPEN_TO_NODES


_LISTS = the_gate_trusts_no_header_and_opens_to_admitted_nodes_alone
planted_value(
    "addresses from headers",
    _LISTS,
    superlink_main,
    "SERVER_OPTIONS",
    superlink_main.SERVER_OPTIONS | {"proxy_headers": True},
)
planted_value(
    "nodes that register themselves",
    _LISTS,
    superlink_api,
    "OPEN_TO_NODES",
    superlink_api.OPEN_TO_NODES | {superlink_api.KEYLESS},
)
planted_value(
    "administration for every node",
    _LISTS,
    superlink_api,
    "OPEN_TO_NODES",
    superlink_api.OPEN_TO_NODES | {"/v1/control/start-run"},
)
