"""Clients that come after a run has begun, or come back: met as all others were, before they get any work."""

import logging
from collections import Counter
from collections.abc import Callable

from common.config.schema import RunConfig
from common.errors import ClientFailure, ConfigError
from common.messages.codec import Declaration
from server.rounds.cohorts import join_cohorts
from server.rounds.enrollment import DISAGREES, SAME_NAME, Client, Declared, agrees, ask_to_declare, reject_unverified
from server.rounds.messaging import LATE, UNREACHABLE
from server.rounds.replies import Channel
from server.state.run_state import RunState

_log = logging.getLogger("bract.server")
_LONGEST_WAIT = 60.0
_MOST_TRIES = 3
TOO_LARGE = "TOO-LARGE"
_PASSING = (LATE, UNREACHABLE, ClientFailure.INTERNAL.name)


class LateJoinHandler:
    """Looks before each round whether a client has come that the run still lacks.

    Args:
        channel: How to ask.
        state: The run; its clients, cohorts and plans are extended.
        joined: Called when somebody has come, so that the statement can be written anew.
    """

    def __init__(self, channel: Channel, state: RunState, joined: Callable[[], None]) -> None:
        self._channel = channel
        self._outcome = state
        self._joined = joined
        self._tries: Counter[int] = Counter(dict.fromkeys(state.turned_away, _MOST_TRIES))

    def poll(self, server_round: int) -> None:
        """Meet whoever has come since the last look, if the run lacks anybody.

        Args:
            server_round: The round that is about to begin.
        """
        state = self._outcome
        there = set(self._channel.grid.get_node_ids())
        lacking = {name for name, client in state.clients.items() if client.node_id not in there}
        if not lacking and len(state.clients) >= state.config.num_clients:
            return
        known = {client.node_id for client in state.clients.values()}
        strangers = {node for node in there - known if self._tries[node] < _MOST_TRIES}
        if not strangers:
            return
        answers, failures = ask_to_declare(
            self._channel.grid,
            strangers,
            run_id=self._channel.run_id,
            seconds=_LONGEST_WAIT,
            strict=False,
            one_by_one=self._channel.one_by_one,
        )
        refusals = {f"node {node}": why for node, why in failures.items()}
        answers = reject_unverified(answers, self._channel.keeper, self._channel.nodes, refusals, strict=False)
        for one in answers:
            self._take(one, lacking, refusals, server_round)
        for node in strangers:  # one that was only slow is asked again, but not for ever: each time holds up a round
            self._tries[node] += 1 if failures.get(node) in _PASSING else _MOST_TRIES
        for who, why in refusals.items():
            _log.error("%s does not take part: %s", who, why)
        state.refusals = dict(state.refusals) | refusals
        self._joined()

    def _take(self, one: Declared, lacking: set[str], refusals: dict[str, str], server_round: int) -> None:
        state, name, declared = self._outcome, one.name, one.client.declaration
        anybody = next(iter(state.clients.values())).declaration
        if name in state.clients:
            if name not in lacking:
                refusals[f"node {one.client.node_id}"] = SAME_NAME
            elif declared.num_units != state.clients[name].declaration.num_units or not agrees(declared, anybody):
                refusals[f"client {name}"] = DISAGREES
            else:
                # A pin that it did not have before does not count for the rounds before.
                state.earlier_bundles.setdefault(name, state.clients[name].declaration.bundle)
                state.clients[name] = one.client
                _log.warning("client %s is back", name)
        elif why := rejection_reason(state.config, declared):
            refusals[f"client {name}"] = why
        elif not agrees(declared, anybody):
            refusals[f"client {name}"] = DISAGREES
        elif len(state.clients) < state.config.num_clients:
            join(state, one.client, server_round)
            _log.warning("client %s has come and takes part from round %d", name, server_round)
        else:
            refusals[f"client {name}"] = "NO-ROOM"


def join(state: RunState, client: Client, server_round: int) -> None:
    """Let a client take part from a round on, with a plan like everybody's.

    Args:
        state: The run; changed.
        client: Who came.
        server_round: The first round that it can take part in.

    Raises:
        ConfigError: The client admits no plan, see `rejection_reason`.
    """
    config, name = state.config, client.declaration.name
    state.clients[name] = client
    state.joined[name] = server_round
    state.cohorts[:] = join_cohorts(
        state.cohorts, name, server_round, cohort_size=config.cohort_size, participations=config.participations
    )
    state.register()


def rejection_reason(config: RunConfig, declaration: Declaration) -> str:
    """Why a run has no place for a client, or an empty text.

    Args:
        config: The run.
        declaration: What the client says of itself.
    """
    units, most = declaration.num_units, config.max_num_units
    if most is not None and units > most:
        return TOO_LARGE
    if config.is_local_dp:
        try:
            config.plan(units)
        except ConfigError as error:
            _log.error("client %s admits no plan: %s", declaration.name, error)
            return ClientFailure.CONFIG.name
    return ""
