"""`bract predict` reads files, folders, tables and lists, and reports a bad image in its row.

Drives `common.inference.inputs`, `common.inference.predictions`.
"""

import csv
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageColumn
from pyarrow import parquet
from pyarrow import table as arrow_table
from typer.testing import CliRunner, Result

from bract import app
from common.config.schema import RunConfig
from common.inference.classifier import load_model
from tests.support.data.hostile_files import BAD
from tests.support.inference.stored_models import CLASSES

MakeConfig = Callable[..., RunConfig]


def predict(*arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin, env={"COLUMNS": "200"})


def rows_of(result: Result) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_a_folder_is_classified_image_by_image(pet_run: Path, pets: Path) -> None:
    result = predict(pet_run, pets, "--json", "--top-k", 2)

    files = sorted(pets.rglob("*.png"))
    shares = load_model(pet_run).predict_proba(files)
    rows = rows_of(result)
    assert result.exit_code == 0
    assert [row["image"] for row in rows] == list(map(str, files))
    assert [row["class"] for row in rows] == [CLASSES[at] for at in shares.argmax(axis=1)]
    assert [row["probability"] for row in rows] == shares.max(axis=1).tolist()
    second = np.sort(shares, axis=1)[:, -2]
    assert [row["top"][1]["probability"] for row in rows] == second.tolist()
    assert all(row["fault"] is None and len(row["top"]) == 2 for row in rows)


def test_files_tables_and_lists_are_named_together(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    cat, dog, owl = (pets / name / "0.png" for name in CLASSES)
    (tmp_path / "scans.csv").write_text(f"note,path\nfirst,{dog}\nsecond,{pets / 'gone.png'}\n")
    parquet.write_table(arrow_table({"image": [owl.read_bytes(), cat.read_bytes()]}), tmp_path / "scans.parquet")

    result = predict(
        pet_run, cat, tmp_path / "scans.csv", "-", tmp_path / "scans.parquet", "--json", stdin=f"{owl}\n\n{dog}\n"
    )

    rows = rows_of(result)
    assert result.exit_code == 3
    assert [Path(row["image"]).name for row in rows[:5]] == ["0.png", "0.png", "gone.png", "0.png", "0.png"]
    found = [row["probability"] for row in rows]
    alone = load_model(pet_run).predict_proba([cat, dog, owl]).max(axis=1).tolist()
    assert found == [alone[0], alone[1], None, alone[2], alone[1], alone[2], alone[0]]
    assert [row["fault"] for row in rows if row["fault"]] == ["no such file"]


def test_every_bad_image_is_in_its_row_and_the_others_are_classified(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name, (write, _) in BAD.items():
        write(mixed / name)
    (mixed / "good.png").write_bytes((pets / "cat" / "0.png").read_bytes())

    result = predict(pet_run, mixed, "--json")

    assert result.exit_code == 3
    rows = {Path(row["image"]).name: row for row in rows_of(result)}
    assert {name for name, row in rows.items() if not row["fault"]} == {"good.png"}
    assert all(reason in rows[name]["fault"] for name, (_, reason) in BAD.items())
    assert all(rows[name]["class"] is None and rows[name]["top"] == [] for name in BAD)


def test_tables_hold_what_the_terminal_shows_and_are_the_owners_alone(
    pet_run: Path, pets: Path, tmp_path: Path
) -> None:
    odd = pets / "cat" / "0.png"
    outputs = ("--csv", tmp_path / "a.csv", "--parquet", tmp_path / "a.parquet")
    old = os.umask(0)
    try:
        result = predict(pet_run, odd, tmp_path / "gone.png", "--top-k", 9, *outputs)
    finally:
        os.umask(old)

    assert result.exit_code == 3
    lines = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    stored = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    expected = load_model(pet_run).predict(odd)[0]
    names = ["image", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "fault"]
    assert list(lines[0]) == list(stored[0]) == names
    assert [line["class"] for line in lines] == [expected, ""]
    assert [row["class"] for row in stored] == [expected, None]
    assert float(lines[0]["probability"]) == stored[0]["probability"]
    assert stored[1]["fault"] == "no such file"
    assert expected in result.stdout
    assert "gone.png: no such file" in result.stdout
    assert "1 of 2 images classified" in result.stdout
    written = [file for file in tmp_path.iterdir() if file.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o600}


def test_names_that_would_steer_a_terminal_are_written_out(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    evil = tmp_path / "\x1b[2J[red]\u202e.png"
    evil.write_bytes((pets / "cat" / "0.png").read_bytes())

    result = predict(pet_run, evil, "--csv", tmp_path / "a.csv")

    assert result.exit_code == 0
    for text in (result.stdout, (tmp_path / "a.csv").read_text()):
        assert "\x1b[2J" not in text
        assert r"\x1b[2J[red]\u202e.png" in text.replace("\n", "")


def test_names_that_are_not_utf_8_are_classified(pet_run: Path, pets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))).write_bytes((pets / "cat" / "0.png").read_bytes())

    result = predict(pet_run, folder, "--json", "--csv", tmp_path / "a.csv", "--parquet", tmp_path / "a.parquet")

    assert (result.exit_code, rows_of(result)[0]["fault"]) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["{run}", "{images}", "--csv", "{run}/found.csv"], "folder of the model"),
        (["{run}", "{images}", "--csv", "{run}/model/found.csv"], "folder of the model"),
        (["{run}", "{images}", "--parquet", "{run}/gone/found.parquet"], "folder that exists"),
        (["{run}", "{run}/empty"], "no images in"),
        (["{run}", "{run}/tables"], "name the table itself, such as"),
        (["{run}", "-"], "list of paths is empty"),
        (["{run}", "{run}/none.csv"], "lacks the column path"),
        (["{run}/empty", "{images}"], "does not hold a model"),
        (["{run}", "{images}", "--device", "mps"], "not present on this machine"),
    ],
)
def test_a_mistake_ends_in_exit_code_2_and_writes_nothing(
    pet_run: Path, pets: Path, arguments: list[str], fragment: str
) -> None:
    (pet_run / "empty").mkdir(exist_ok=True)
    (pet_run / "none.csv").write_text("name\nx\n")
    (pet_run / "tables").mkdir(exist_ok=True)
    (pet_run / "tables" / "all.tsv").write_text("path\nx.png\n")
    (pet_run / "tables" / "README.txt").write_text("a note\n")
    before = sorted(pet_run.rglob("*"))

    result = predict(*(part.format(run=pet_run, images=pets) for part in arguments))

    assert result.exit_code == 2, result.output
    assert fragment in result.stderr
    assert sorted(pet_run.rglob("*")) == before


@pytest.mark.parametrize("form", ["shards", "data", "parts", "unlabelled", "saved", "saved parts"])
def test_folder_of_a_data_set_is_classified_as_its_images_are(
    pet_run: Path, pets: Path, tmp_path: Path, form: str
) -> None:
    """The images of all parts, in the order of their files."""
    files = sorted(pets.rglob("*.png"))[:3]
    rows = Dataset.from_dict({"img": [str(file) for file in files]}).cast_column("img", ImageColumn())
    if form != "unlabelled":
        rows = rows.add_column("class", ["a", "b", "a"]).add_column("category", [1, 2, 3])
    parts = {"train": rows.select([0, 1]), "validation": rows.select([2])}
    names = {"data": "data/{}-0.parquet", "parts": "{}/0.parquet"}
    for part, own in parts.items() if not form.startswith("saved") else ():
        target = tmp_path / "set" / names.get(form, "{}-0.parquet").format(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        own.to_parquet(str(target))
    if form.startswith("saved"):
        (DatasetDict(parts) if form == "saved parts" else rows).save_to_disk(str(tmp_path / "set"))

    result, plain = (predict(pet_run, *paths, "--json") for paths in ([tmp_path / "set"], files))

    assert result.exit_code == 0, result.output
    assert [row["top"] for row in rows_of(result)] == [row["top"] for row in rows_of(plain)]


def test_predicting_writes_nothing_beside_the_model(pet_run: Path, pets: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in (pet_run / "model").iterdir()}

    before = state()

    assert predict(pet_run / "model", pets).exit_code == 0
    assert state() == before
