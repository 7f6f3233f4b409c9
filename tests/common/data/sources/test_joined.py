"""A joined client's source: faults of its files leave no images, and a server sees no refusal."""

from pathlib import Path

import pytest

from common.config.loading import defaults, override, parse
from common.config.sections import DataConfig
from common.data.sources.joined import open_joined
from common.data.sources.registry import open_source
from common.errors import DataError
from tests.support.clients.own_clients import write_images


def data_of(source: Path) -> DataConfig:
    return parse(override(defaults(), {"data.source": str(source), "data.classes": "dark,bright"})).data


@pytest.mark.parametrize(
    "table",
    [
        "path\na.png\n",
        "path,label,split\na.png,dark,later\n",
        "path,label,split\na.png,dark,test\n",
        "path,label\na.png,dark,more\n",
        "path,label\n",
        'path,label\n"a.png,dark\n',
        "path,label,patient_id,subject_id\na.png,dark,1,2\n",
    ],
)
def test_a_table_with_a_fault_has_no_images(tmp_path: Path, table: str) -> None:
    (tmp_path / "images.csv").write_text(table)
    data = data_of(tmp_path / "images.csv")

    with pytest.raises(DataError):
        _ = open_source(data).entries
    entries = open_joined(data).entries

    assert (len(entries.labels), entries.num_train, entries.classes) == (0, 0, ("dark", "bright"))


def test_a_place_where_nothing_is_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        open_joined(data_of(tmp_path / "not mounted"))


def test_a_mended_table_is_read_again(tmp_path: Path) -> None:
    write_images(tmp_path / "images", range(4))
    table = tmp_path / "images.csv"
    table.write_text("path\n")
    broken = open_joined(data_of(table))
    table.write_text("path,label\nimages/dark/0000.png,dark\nimages/bright/0001.png,bright\n")

    mended = open_joined(data_of(table))

    assert (len(broken.entries.labels), len(mended.entries.labels)) == (0, 2)
    assert broken.fingerprint != mended.fingerprint
