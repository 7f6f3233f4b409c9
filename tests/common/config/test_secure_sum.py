"""Public constants of secure aggregation, and the settings that do not go with it."""

from collections.abc import Callable

import pytest

from common.commands.fitted_defaults import fit_to_sizes
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.config.secure_sum import SecureSum
from common.errors import ConfigError

MakeConfig = Callable[..., RunConfig]
SECURE: dict[str, Scalar] = {"privacy.mechanism": "none", "privacy.aggregation": "secure", "round-retries": 0}


@pytest.mark.parametrize("colluding", [1, 2, 3])
@pytest.mark.parametrize("clients", range(3, 40))
def test_no_two_sets_of_survivors_can_both_be_opened(clients: int, colluding: int) -> None:
    if clients - colluding < 2:
        with pytest.raises(ConfigError, match=r"raise num-clients"):
            SecureSum.of(clients, colluding)
        return
    constants = SecureSum.of(clients, colluding)

    # Each honest client answers for one set; a colluding one for both.
    honest_in_both = 2 * (constants.threshold - colluding) - (clients - colluding)
    assert honest_in_both > 0
    assert constants.threshold <= clients
    assert 2 <= constants.honest <= clients - colluding
    assert constants.min_survivors == constants.honest + colluding


@pytest.mark.parametrize(("honest", "fits"), [(1, False), (2, True), (4, True), (5, False)])
def test_honest_is_refused_beyond_n_minus_c(make_config: MakeConfig, honest: int, fits: bool) -> None:
    settings = SECURE | {"privacy.secure-honest": honest}
    if not fits:
        with pytest.raises(ConfigError, match=rf"secure-honest={honest} must be from 2 to 4"):
            make_config(settings)
        return
    config = make_config(settings)

    assert config.secure == SecureSum(5, 1, honest)
    # A round must not go on with fewer than may be opened, whatever the quorum says.
    assert make_config(settings | {"min-clients": 1}).min_updates == honest + 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("strategy.name", "Krum"),
        ("strategy.name", "FedMedian"),
        ("max-update-norm", 5.0),
        ("training.update-bits", 8),
        ("client-fraction", 0.6),
        ("round-retries", 1),
        ("num-clients", 2),
    ],
)
def test_settings_that_need_a_single_update_are_refused(make_config: MakeConfig, key: str, value: Scalar) -> None:
    with pytest.raises(ConfigError, match=key):
        make_config(SECURE | {key: value})
    if key not in ("num-clients", "round-retries"):
        assert make_config({"privacy.mechanism": "none", key: value}).secure is None


def test_personal_tensors_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.personal does not go with"):
        make_config(SECURE | {"model.tuning": "norm", "model.personal": "head"})


def test_the_default_of_retries_gives_way_and_a_written_one_does_not() -> None:
    chosen: dict[str, Scalar] = {"privacy.mechanism": "none", "privacy.aggregation": "secure"}

    settings, lines = fit_to_sizes(chosen)

    assert settings["round-retries"] == 0
    assert lines == ["round-retries=0 instead of 1: a round of a secure sum is never repeated"]
    with pytest.raises(ConfigError, match="round-retries does not go with"):
        fit_to_sizes(chosen | {"round-retries": 1})
