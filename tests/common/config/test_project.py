from common.config.loading import defaults
from common.config.project import default_steps, open_values, tool_tables


def test_every_row_of_open_values_fills_the_same_settings() -> None:
    rows = tool_tables()["bract"]["open-values"]

    assert {tuple(sorted(row)) for row in rows.values()} == {tuple(sorted(open_values("head-sgd")))}


def test_settings_that_a_row_fills_are_empty_by_default() -> None:
    filled = {*open_values("head-sgd"), *default_steps()}

    written = {key: value for key, value in defaults().items() if key.rpartition(".")[2] in filled}
    assert len(written) == len(filled)
    assert set(written.values()) == {""}
