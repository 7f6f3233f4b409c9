"""Labels of images that have several, in tables."""

from pathlib import Path

import pytest

from common.config.sections import DataConfig
from common.data.sources.registry import open_source
from common.errors import DataError

_SETTINGS = DataConfig.model_construct(source="", path="", classes="", validation="drop")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("Mass|Effusion Mass Effusion", "1 row has several labels, such as Mass|Effusion,"),
        ("Mass|Effusion Mass|Edema Mass", "2 rows have several labels, such as Mass|Edema and Mass|Effusion,"),
        ("cat;dog cat dog", "such as cat;dog"),
        ("cat+dog cat dog", "such as cat+dog"),
        ("cat/dog cat emu", "such as cat/dog"),
        ("cat,_dog cat dog", "such as cat, dog"),
        ("lung/left lung/right kidney/left kidney/right", ""),
        ("T1|T2 T3 T4", ""),
        ("grade1 grade1+ grade2", ""),
        ("n/b cat dog", ""),
    ],
)
def test_rows_with_several_labels_are_refused_until_the_classes_are_listed(
    tmp_path: Path, labels: str, said: str
) -> None:
    rows = [label.replace("_", " ") for label in labels.split()]
    several = [row for row in rows if row not in ("Mass", "Effusion", "cat", "dog", "emu")]
    table = tmp_path / "t.tsv"
    table.write_text("\n".join(["path\tlabel", *(f"{number}.png\t{label}" for number, label in enumerate(rows))]))
    data = _SETTINGS.model_copy(update={"source": str(table)})
    for number in range(len(rows)):
        (tmp_path / f"{number}.png").touch()

    if not said:
        assert len(open_source(data).entries.classes) == len(rows)
        return
    with pytest.raises(DataError) as refused:
        open_source(data)
    assert said in str(refused.value)
    listed = open_source(data.model_copy(update={"classes": "Mass,cat,Effusion"})).entries
    assert all(any(f"'{label}'" in fault for fault in listed.label_faults.values()) for label in several)
    # A server must not learn from a refusal what a client's table holds.
    assert len(open_source(data, joined=True).entries.labels) == len(rows)
