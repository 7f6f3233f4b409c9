"""Defaults that give way where a source or run is too small.

What a user wrote is never changed, except by a budget. All sizes are declared ones, which count unreadable files too.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
from rich.console import Console

from common.config.listed_values import join_names
from common.config.loading import Scalar, defaults, override, parse
from common.config.schema import RunConfig
from common.data.partitioning.client_sizes import client_sizes
from common.data.partitioning.privacy_units import group_names
from common.data.sources.base_source import OWN_IMAGES, Entries
from common.data.sources.registry import OpenSource, names_a_place, open_source
from common.errors import ConfigError, DataError
from common.privacy.plan import PrivacyPlan
from common.strategies import STRATEGIES

# With more units a client, no default has ever failed to find a partition.
_AMPLE_UNITS = 20
# A known source has thousands of images, enough for so many clients.
_FEW_CLIENTS = 50
# Units of a client that are all in every batch, which costs the most of all sizes.
_COSTLIEST = 1
# Settings of each partitioner that give way, best first.
_MILDER: Mapping[str, tuple[Mapping[str, Scalar], ...]] = {
    "dirichlet": (
        *({"data.alpha": alpha} for alpha in (10.0, 100.0, 1000.0)),
        {"data.alpha": 1.0, "data.partitioner": "iid"},
    ),
    "pathological": ({"data.classes-per-client": 1},),
    "shards": ({"data.shards-per-client": 1},),
}


def fit_to_source(given: Mapping[str, Scalar], opener: OpenSource = open_source) -> tuple[dict[str, Scalar], list[str]]:
    """Return settings that fit the source with a line on each change.

    `opener` opens the source, if it is needed.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The source cannot be opened.
    """
    fitting = _Fitting(given)
    if given.get("privacy.closing") == "full" and not given.get("data.classes"):
        fitting.name_classes(opener)
    config = fitting.config
    if config.data.source != OWN_IMAGES and (names_a_place(config.data.source) or config.num_clients > _FEW_CLIENTS):
        fitting.fit_to(opener(config.data).entries)
    else:
        fitting.fit_strategy()
        fitting.fit_delta()
    if config.stopping.max_epsilon is not None:
        fitting.fit_budget(fitting.client_units(opener))
    return fitting.settings, fitting.lines


def fit_to_budget(given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return settings with as many rounds as the budget allows real clients.

    Raises:
        ConfigError: A setting is wrong, or not even one round is within the budget.
    """
    fitting = _Fitting(given)
    # Nobody knows the clients' sizes yet. A client whose plan costs more than the budget is not enrolled.
    fitting.fit_budget([_COSTLIEST])
    return fitting.settings


def fit_to_sizes(given: Mapping[str, Scalar], sizes: Sequence[int] = ()) -> tuple[dict[str, Scalar], list[str]]:
    """Return settings that fit clients of known sizes with a line on each change.

    Raises:
        ConfigError: A setting is wrong.
    """
    fitting = _Fitting(given)
    fitting.fit_strategy()
    fitting.fit_delta(max(sizes, default=0))
    fitting.fit_budget(sizes or [_COSTLIEST])
    return fitting.settings, fitting.lines


def show_changes(fitted: tuple[dict[str, Scalar], list[str]], console: Console) -> dict[str, Scalar]:
    """Print a line on each default that gave way and return the fitted settings.

    Do so also where little is printed, because the run has other settings than the documented defaults.
    """
    settings, lines = fitted
    for line in lines:
        console.print(f"Default  {line}", highlight=False, soft_wrap=True, markup=False)
    return settings


class _Fitting:
    """Settings of a run of which those that nobody wrote may change."""

    def __init__(self, given: Mapping[str, Scalar]) -> None:
        self.settings = dict(given)
        self.lines: list[str] = []
        # An empty setting stands for its default.
        self._written = {key for key, value in given.items() if value != ""}
        # Before the settings are parsed, which refuses a round that is tried again under secure aggregation.
        if given.get("privacy.aggregation") == "secure" and "round-retries" not in self._written:
            self.settings["round-retries"] = 0
            before = defaults()["round-retries"]
            self.lines.append(f"round-retries=0 instead of {before}: a round of a secure sum is never repeated")

    def name_classes(self, opener: OpenSource) -> None:
        """Take the class list of the source as the run's own."""
        data = parse(override(defaults(), self.settings | {"privacy.closing": "matrix"})).data
        if data.source != OWN_IMAGES:
            names = join_names(opener(data).entries.classes)
            self.settings["data.classes"] = names
            self.lines.append(f"data.classes={names}: privacy.closing='full' has a histogram for each class")

    @cached_property
    def config(self) -> RunConfig:
        """The run as far as it is fitted."""
        return parse(override(defaults(), self.settings))

    def _give_way(self, changes: Mapping[str, Scalar], why: str) -> None:
        before = override(defaults(), self.settings)
        now = ", ".join(f"{key}={value} instead of {before[key] or 'its default'}" for key, value in changes.items())
        self.settings |= changes
        self.lines.append(f"{now}: {why}")
        self.__dict__.pop("config")

    def fit_to(self, entries: Entries) -> None:
        """Fit number of clients and partition to a source."""
        self._fit_clients(entries)
        self._fit_partition(entries)
        self.fit_strategy()
        self.fit_delta(self._largest_client(entries))

    def _largest_client(self, entries: Entries) -> int:
        """Return the declared units of the largest client, 0 if delta suits any size."""
        config = self.config
        if entries.num_train * config.privacy.delta < 1:
            return 0
        sizes_of = partial(client_sizes, entries, config.data, num_clients=config.num_clients, seed=config.seed)
        return int(sizes_of(unit=config.privacy.unit)[0].max())

    def _fit_clients(self, entries: Entries) -> None:
        if "num-clients" in self._written:
            return
        data = self.config.data
        if data.partitioner == "natural" and entries.clients is not None:
            named = len(set(entries.clients) - {""})
            if named not in (0, self.config.num_clients):
                self._give_way({"num-clients": named}, "so many are named by the source")
            return
        units = _count_units(entries)
        if units < self.config.num_clients * data.min_client_size:
            most = max(1, units // data.min_client_size)
            self._give_way({"num-clients": most}, f"there are only {units} training images, or groups of them")

    def _fit_partition(self, entries: Entries) -> None:
        data = self.config.data
        milder = list(self._milder(data.partitioner))
        if not milder or _count_units(entries) >= _AMPLE_UNITS * self.config.num_clients or self._splits(entries, {}):
            return
        for changes in milder:
            if self._splits(entries, changes):
                changed = {key: value for key, value in changes.items() if value != defaults()[key]}
                self._give_way(changed, f"{data.partitioner} found no split of so few images")
                return

    def _milder(self, partitioner: str) -> Iterator[Mapping[str, Scalar]]:
        for changes in _MILDER.get(partitioner, ()):
            if not self._written & changes.keys():
                yield changes

    def _splits(self, entries: Entries, changes: Mapping[str, Scalar]) -> bool:
        config = parse(override(defaults(), {**self.settings, **changes}))
        try:
            client_sizes(entries, config.data, num_clients=config.num_clients, seed=config.seed)
        except DataError:
            return False
        return True

    def client_units(self, opener: OpenSource) -> list[int]:
        """Return the declared units of the clients.

        Those of real ones are not known, so the costliest number stands for them.
        """
        config = self.config
        if config.data.source == OWN_IMAGES:
            return [_COSTLIEST]
        entries = opener(config.data).entries
        sizes, _ = client_sizes(
            entries, config.data, num_clients=config.num_clients, seed=config.seed, unit=config.privacy.unit
        )
        return [int(size) for size in sizes]

    def fit_budget(self, sizes: Iterable[int]) -> None:
        """Take the rounds that `stopping.max-epsilon` allows under the noise of all of them.

        The client with the fewest decides. With a target epsilon the shorter run is calibrated to the budget.
        """
        config, most = self.config, self.config.stopping.max_epsilon
        if most is None:
            return
        plans = {config.plan(config.cohort_size if config.mechanism.clips_clients else size) for size in sizes}
        target = config.privacy.target_epsilon
        # With a target the counts of the shorter run get other noise, so that training alone decides.
        least = min(_rounds_within(plan, most, counts=target is None) for plan in plans)
        if not least:
            raise ConfigError(f"stopping.max-epsilon={most:g} allows not even one round: raise it, or the noise")
        # A client takes part in the even share of the rounds, rounded up.
        num_rounds = min(config.num_rounds, least * config.num_clients // config.cohort_size)
        changes: dict[str, Scalar] = {} if num_rounds == config.num_rounds else {"num-rounds": num_rounds}
        changes |= {"privacy.target-epsilon": most} if target is not None and target > most else {}
        if changes:
            self._give_way(changes, f"stopping.max-epsilon={most:g} allows no more")

    def fit_strategy(self) -> None:
        """Trim at least one client's value where the strategy trims a share."""
        strategy, cohort = self.config.strategy, self.config.cohort_size
        trims = "trim_fraction" in STRATEGIES[strategy.name].parameters and strategy.trim_fraction is None
        # Of two values both would be cut off.
        if trims and 3 <= cohort < strategy.min_cohort[0]:
            share = math.ceil(1e4 / cohort) / 1e4
            self._give_way({"strategy.trim-fraction": share}, f"a smaller share of {cohort} clients removes none")

    def fit_delta(self, num_units: int = 0) -> None:
        """Take a delta below 1 / the number of protected units."""
        config = self.config
        number = config.num_clients if config.mechanism.clips_clients else num_units
        if config.private and "privacy.delta" not in self._written and number * config.privacy.delta >= 1:
            self._give_way({"privacy.delta": 10.0 ** -len(str(number))}, f"it must be below 1 / {number}")


def _rounds_within(plan: PrivacyPlan, most: float, *, counts: bool) -> int:
    """Return the number of a plan's rounds that a budget allows.

    With `counts` those of held-out units must be within it, too, the closing ones included.
    """
    counted = plan if counts else replace(plan, counts=None)

    def exceeds(rounds: int) -> bool:
        try:
            return counted.spent(rounds).pld > most
        except ConfigError:
            # So little noise that nothing is promised.
            return True

    return bisect_left(range(1, plan.num_rounds + 1), True, key=exceeds)


def _count_units(entries: Entries) -> int:
    """Count the units that a partitioner can give to clients."""
    groups = group_names(entries.units)
    return entries.num_train if groups is None else len(np.unique(groups[: entries.num_train]))
