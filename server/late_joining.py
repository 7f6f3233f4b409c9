"""Enrollment of clients after a run has begun."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable

from common.config.schema import RunConfig
from common.errors import ClientFailure, ConfigError
from common.messages.codec import Declaration
from common.privacy.plan import PrivacyPlan
from server.rounds.enrollment import (
    DISAGREES,
    SAME_NAME,
    EnrollmentReply,
    agrees,
    ask_to_declare,
    log_refusals,
    reject_unverified,
)
from server.rounds.messaging import LATE, UNREACHABLE
from server.rounds.replies import Channel
from server.state.run_state import RunState

_log = logging.getLogger("bract.server")
_LONGEST_WAIT = 60.0
_MAX_TRIES = 3
TOO_LARGE, FEDERATION_FULL, SETUP_OVER = "TOO-LARGE", "FEDERATION-FULL", "SETUP-OVER"
# Failures that may be gone at the next try.
_PASSING = (LATE, UNREACHABLE, ClientFailure.INTERNAL.name)


class LateJoinHandler:
    """Enrollment of late clients, tried before each round.

    Nodes in `turned_away` are not asked again. `saved` writes the state to disk after clients were asked.
    """

    def __init__(
        self, channel: Channel, state: RunState, *, turned_away: Iterable[int], saved: Callable[[], None]
    ) -> None:
        self._channel = channel
        self._state = state
        self._saved = saved
        self._tries: Counter[int] = Counter(dict.fromkeys(turned_away, _MAX_TRIES))

    def poll(self, server_round: int) -> None:
        """Enroll clients that came since the last call, unless the run has all."""
        state, channel = self._state, self._channel
        connected = set(channel.grid.get_node_ids())
        missing = {name for name, client in state.clients.items() if client.node_id not in connected}
        if not missing and len(state.clients) >= state.config.num_clients:
            return
        known = {client.node_id for client in state.clients.values()}
        strangers = {node for node in connected - known if self._tries[node] < _MAX_TRIES}
        if not strangers:
            return
        replies, failures = ask_to_declare(
            channel.grid,
            strangers,
            run_id=channel.run_id,
            seconds=_LONGEST_WAIT,
            strict=False,
            one_by_one=channel.one_by_one,
        )
        refusals = {f"node {node}": failure for node, failure in failures.items()}
        for reply in reject_unverified(replies, channel.keeper, channel.nodes, refusals, strict=False):
            self._enroll(reply, missing, refusals, server_round)
        # A slow client is asked again, but not for ever: each time it holds up a round.
        for node in strangers:
            self._tries[node] += 1 if failures.get(node) in _PASSING else _MAX_TRIES
        log_refusals(refusals)
        state.refusals |= refusals
        self._saved()

    def _enroll(self, reply: EnrollmentReply, missing: set[str], refusals: dict[str, str], server_round: int) -> None:
        state, name, declared = self._state, reply.name, reply.client.declaration
        enrolled = next(iter(state.clients.values())).declaration
        if name in state.clients:
            if name not in missing:
                refusals[f"node {reply.client.node_id}"] = SAME_NAME
            elif declared.num_units != state.clients[name].declaration.num_units or not agrees(declared, enrolled):
                # Another size would need another plan, and the old one is already reserved.
                refusals[f"client {name}"] = DISAGREES
            else:
                state.take_back(reply.client)
                _log.warning("client %s is back", name)
        elif state.config.secure is not None:
            # Nobody holds shares of its masks, so its update could not be summed.
            refusals[f"client {name}"] = SETUP_OVER
        elif reason := rejection_reason(state.config, declared):
            refusals[f"client {name}"] = reason
        elif not agrees(declared, enrolled):
            refusals[f"client {name}"] = DISAGREES
        elif len(state.clients) < state.config.num_clients:
            state.join(reply.client, server_round)
            _log.warning("client %s has come and takes part from round %d", name, server_round)
        else:
            refusals[f"client {name}"] = FEDERATION_FULL


def rejection_reason(config: RunConfig, declaration: Declaration) -> str:
    """Return the code for rejecting a client, empty if it may take part."""
    max_num_units = config.max_num_units
    if max_num_units is not None and declaration.num_units > max_num_units:
        return TOO_LARGE
    if config.is_local_dp:
        try:
            _check_plan(config.plan(declaration.num_units), config.stopping.max_epsilon)
        except ConfigError as error:
            _log.error("client %s admits no plan: %s", declaration.name, error)
            return ClientFailure.CONFIG.name
    return ""


def _check_plan(plan: PrivacyPlan, most: float | None) -> None:
    """Refuse a plan that costs more than `stopping.max-epsilon`.

    The number of rounds was chosen before the client's size was known.
    """
    if most is not None and not (spent := plan.spent().pld) <= most:
        raise ConfigError(f"its plan costs epsilon {spent:.4f}, and stopping.max-epsilon={most:g}")
