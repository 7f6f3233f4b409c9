"""Clients, rounds and counts that are missing in what a run states, or that weigh more than they may."""

from functools import partial

from client.evaluation import private_counts
from server.aggregation import central_dp
from server.reporting import artifacts, privacy_statement
from server.rounds import cohorts, loop
from server.state import privacy_spent
from server.state.privacy_spent import RunPrivacyCost
from server.state.run_state import RunState
from tests.client.evaluation import test_private_counts as counts
from tests.mutants.faults import planted
from tests.server.aggregation import test_central_dp as central
from tests.server.state import test_accounts as accounts

_EARLY = accounts.test_a_run_that_stopped_early_is_charged_its_whole_plan
_INTERRUPTED = accounts.test_a_run_that_was_interrupted_is_charged_its_whole_plan
_LATE = partial(accounts.test_a_late_client_is_in_the_accounts_from_its_first_round_on, ended=False)
_LATE_ENDED = partial(accounts.test_a_late_client_is_in_the_accounts_from_its_first_round_on, ended=True)
_SENT = accounts.test_a_run_that_went_to_its_end_is_charged_the_rounds_that_were_sent
planted(
    _EARLY,
    RunState.finish,
    {
        "a run that stopped early and is charged what was sent": ("complete=not self.early", "complete=True"),
    },
)
planted(
    _EARLY,
    privacy_spent.account,
    {
        "a plan that is charged by the rounds alone": ("asked[name] if complete else None", "asked[name]"),
    },
)
planted(
    _EARLY,
    privacy_statement._run_statement,
    {
        "a statement that calls an early stop an end": (" and not early", ""),
    },
)
planted(
    _INTERRUPTED,
    RunState.register,
    {
        "a run that is charged as if it had ended": ("complete=False", "complete=True"),
    },
)
planted(
    _INTERRUPTED,
    privacy_statement._run_statement,
    {
        "a statement that calls an interruption an end": ('status == "complete" and', ""),
    },
)
planted(
    _SENT,
    privacy_spent.rounds_of,
    {
        "a client that is charged one round of many": ("asked[name].append(number)", "asked[name][:] = [number]"),
    },
)
planted(
    _LATE,
    RunState.join,
    {
        "a late client that is missing in the accounts": ("self.register()", "pass"),
        "a late client that has no first round": ("self.joined[name] = server_round", "pass"),
    },
)
planted(
    _LATE,
    artifacts.save_statement,
    {
        "a late client that is missing in the statement": ("state.joined, state.bundles", "{}, state.bundles"),
    },
)
planted(
    _LATE_ENDED,
    cohorts.join_cohorts,
    {
        "a late client that is in no cohort": ("cohort.append(name)", "pass"),
        "a late client that takes part before it came": ("joined[first - 1 :]", "joined[first - 2 :]"),
    },
)
planted(
    _LATE,
    RunState._account,
    {
        "the accounts of the clients that came first": (
            "in self.clients.items()}",
            "in self.clients.items() if name not in self.joined}",
        ),
    },
)
_LARGEST = accounts.test_the_largest_epsilon_is_stated_and_not_the_first_or_the_least
planted(
    _LARGEST,
    RunPrivacyCost.epsilon_max,
    {
        "the least epsilon of all clients": ("max(share", "min(share"),
        "the epsilon of the first client": (
            "max(share.spent.pld for share in self.shares.values())",
            "next(iter(self.shares.values())).spent.pld",
        ),
    },
)

_WEIGHTS = central.test_clients_weigh_the_same_whatever_size_they_declare
_BY_SIZE = """ended = [
        {
            name: arrays[name] + (array - arrays[name]) * np.float32(SIZE / 505)
            for name, array in record_to_arrays(message.content.array_records[ARRAYS]).items()
        }
        for message in messages
    ]""".replace("SIZE", "message.content.metric_records[METRICS]['num-examples']")
planted(
    _WEIGHTS,
    loop._noised_message,
    {
        "updates that are weighted by declared sizes": (
            "ended = map(_model_in, messages)",
            _BY_SIZE,
        ),
    },
)
planted(
    _WEIGHTS,
    loop._aggregate,
    {
        "an average that the strategy makes by sizes": (
            "if settings.central is not None:",
            "if settings.central is None:",
        ),
    },
)
planted(
    _WEIGHTS,
    central_dp.noised_average,
    {
        "a sum that is divided by a client's size": (
            "plan.expected_batch_size",
            "(plan.expected_batch_size + len(ended))",
        ),
        "one client's update of two": ("in ended:", "in ended[:1]:"),
    },
)

_ROUNDED = "np.rint(np.random.default_rng().normal(0, noise_stddev, exact.size)).astype(np.int64)"
_DISCRETE = "discrete_gaussian(exact.size, noise_stddev=noise_stddev, stream=stream)"
planted(
    counts.test_noise_of_a_matrix_is_discrete_and_not_rounded,
    private_counts._noise_added,
    {
        "a matrix with rounded noise": (_DISCRETE, _ROUNDED),
    },
)
planted(
    counts.test_noise_of_a_pair_is_discrete_and_not_rounded,
    private_counts._noise_added,
    {
        "a pair with rounded noise": (_DISCRETE, _ROUNDED),
    },
)
_SCALE = partial(counts.test_noise_has_the_scale_of_the_plan, noise_stddev=4.0)
planted(
    _SCALE,
    private_counts._noise_added,
    {
        "counts with half of their noise": ("noise_stddev=noise_stddev", "noise_stddev=noise_stddev / 2"),
        "counts with one draw of noise for all": (
            "discrete_gaussian(exact.size, noise",
            "np.zeros(exact.size, dtype=np.int64) + discrete_gaussian(1, noise",
        ),
    },
)
