"""Subgroups of a table's rows: a public list, `other` for all else, and silence of a joined client."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.config.sections import DataConfig
from common.data.partitioning.subgroups import subgroups_of
from common.errors import ConfigError, DataError

MakeConfig = Callable[..., RunConfig]
BY_SEX: dict[str, Scalar] = {"data.subgroup-column": "sex", "data.subgroups": "f,m"}
TABLE = """path,label,split,sex
a.png,cat,test,f
b.png,dog,train,m
c.png,cat,train,
d.png,dog,train,F
e.png,dog,val,m
f.png,dog,test,m
"""


def data_of(folder: Path, make_config: MakeConfig, table: str = TABLE, **more: Scalar) -> DataConfig:
    (folder / "scans.csv").write_text(table)
    return make_config({"data.source": str(folder / "scans.csv")} | BY_SEX | more).data


def test_rows_are_in_the_order_of_entries_and_unknown_values_are_others(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    data = data_of(tmp_path, make_config)

    found = subgroups_of(data, 5)

    # Training rows come first and the validation part is dropped, as everywhere.
    assert found is not None
    assert data.subgroup_names == ("f", "m", "other")
    assert found.tolist() == [1, 2, 2, 0, 1]


def test_run_without_subgroups_looks_at_no_table(make_config: MakeConfig) -> None:
    assert subgroups_of(make_config({"data.source": "digits"}).data, 5) is None


@pytest.mark.parametrize(
    ("source", "said"),
    [("scans.csv", "lacks the column sex; its columns are path, label"), ("digits", "not a manifest")],
)
def test_missing_column_is_named_and_a_joined_client_is_silent(
    tmp_path: Path, make_config: MakeConfig, source: str, said: str
) -> None:
    data = data_of(tmp_path, make_config, "path,label\na.png,cat\n")
    if source == "digits":
        data = data.model_copy(update={"source": source})

    with pytest.raises(DataError, match=said):
        subgroups_of(data, 1)
    found = subgroups_of(data, 3, joined=True)
    assert found is not None
    assert found.tolist() == [2, 2, 2]


def test_joined_client_is_silent_about_a_column_that_python_cannot_hold(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    columns = {"path": ["a.png"], "label": ["cat"], "sex": pa.array([2**62], pa.timestamp("us"))}
    parquet.write_table(pa.table(columns), tmp_path / "scans.parquet")
    data = make_config(BY_SEX | {"data.source": str(tmp_path / "scans.parquet")}).data

    found = subgroups_of(data, 1, joined=True)

    assert found is not None
    assert found.tolist() == [2]


def test_table_that_changed_since_it_was_read_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    data = data_of(tmp_path, make_config)

    with pytest.raises(DataError, match="has changed"):
        subgroups_of(data, 4)
    found = subgroups_of(data, 4, joined=True)
    assert found is not None
    assert found.tolist() == [2] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data.subgroups": "f,m"}, "go together"),
        ({"data.subgroup-column": "sex"}, "go together"),
        (BY_SEX | {"data.subgroups": "f,f"}, "different values"),
        (BY_SEX | {"data.subgroups": "f,other"}, "'other' stands for all others"),
        (BY_SEX | {"data.subgroups": ",".join(map(str, range(101)))}, "up to 100"),
        (BY_SEX | {"privacy.metrics": "none"}, "lets none leave"),
        (BY_SEX | {"privacy.mechanism": "client-dp"}, "lets none leave"),
    ],
)
def test_settings_that_cannot_be_are_refused(make_config: MakeConfig, settings: dict[str, Scalar], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(settings)
