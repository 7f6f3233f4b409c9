"""Tables as spreadsheets write them: what each is read as, and what is said where it cannot be read.

Drives `common.data.sources.tables.columns`, `common.data.sources.tables.spreadsheets`.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import openpyxl
import pytest

from common.data.sources.base_source import ImageSource
from common.errors import DataError
from tests.support.paths import ROOT

OpenTable = Callable[..., ImageSource]
RowsOf = Callable[[ImageSource], list[tuple[str, str]]]

FOUR = [("s/0.png", "a"), ("s/1.png", "b"), ("s/2.png", "a"), ("s/3.png", "b")]


def _table(separator: str = ",", header: Sequence[str] = ("path", "label"), *more: str, end: str = "\n") -> str:
    rows = [[*header], *([*row, *more] for row in FOUR)]
    return end.join([*(separator.join(row) for row in rows), ""])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (_table(), "t.csv"),
        (_table(), "T.CSV"),
        (_table(), "t.tsv"),
        (_table(";"), "t.csv"),
        (_table("\t"), "t.csv"),
        (_table("\t"), "t.tsv"),
        (_table("\t"), "t.TSV"),
        (_table("\t"), "t.tab"),
        (_table("\t"), "t.txt"),
        (_table("|"), "t.csv"),
        (_table(", "), "t.csv"),
        (_table(end="\r\n"), "t.csv"),
        (_table(end="\r"), "t.csv"),
        ("sep=;\r\n" + _table(";"), "t.csv"),
        ('"sep=,"\n' + _table(), "t.csv"),
        ("sep=\t\n" + _table("\t"), "t.csv"),
        ("\n\n" + _table(), "t.csv"),
        ("# made by me\n" + _table(), "t.csv"),
        ("Case list of 2026;;\n\n" + _table(";"), "t.csv"),
        ("Export,2026\nroom,7\n" + _table("\t"), "t.tsv"),
        ("sep=;\nCase list\n" + _table(";"), "t.csv"),
        ("a title, with a comma\n" + _table(end="\r\n"), "t.csv"),
        (_table().replace("\n", ",,\n"), "t.csv"),
        (_table() + ",\n,\n\n", "t.csv"),
        (_table(";", ("path", "label", "score"), "0,5"), "t.csv"),
        (_table(";", ("path", "label", "x,y"), "0,5"), "t.csv"),
        (_table(",", ("path", "label", "note"), '"one; two; three; four"'), "t.csv"),
        (_table(",", ("path", "label", "note"), '"two\nlines"'), "t.csv"),
        (_table(",", ("", "path", "label")).replace("s/", "7,s/"), "t.csv"),
        (_table().replace("s/0.png", '"s/0.png"'), "t.csv"),
        (_table().encode("utf-8-sig"), "t.csv"),
        (_table("\t").encode("utf-16"), "t.txt"),
        (_table().encode("utf-16-le"), "t.csv"),
        (_table().encode("utf-16-be"), "t.csv"),
        (_table().encode("utf-32"), "t.csv"),
    ],
)
def test_text_table_is_read_whatever_wrote_it(
    open_table: OpenTable, rows_of: RowsOf, content: str | bytes, name: str
) -> None:
    assert rows_of(open_table(content, name)) == FOUR


@pytest.mark.parametrize(
    ("encoding", "end", "note"),
    [
        ("utf-8", "\n", ""),
        ("cp1252", "\n", "Windows-1252"),
        ("cp1252", "\r\n", "Windows-1252"),
        ("mac-roman", "\r", "Mac Roman"),
        ("utf-16", "\n", "utf-16"),
    ],
)
def test_text_table_keeps_letters_of_every_encoding(
    open_table: OpenTable, rows_of: RowsOf, encoding: str, end: str, note: str
) -> None:
    source = open_table(_table(end=end).replace(",a", ",Läsion").encode(encoding))

    assert {label for _, label in rows_of(source)} == {"Läsion", "b"}
    assert note in "".join(source.notes[1:])
    assert bool(note) == bool(source.notes[1:])


@pytest.mark.parametrize(
    ("header", "roles"),
    [
        ("path,label", ("path", "label")),
        ("Path, LABEL ", ("Path", "LABEL")),
        ("filename,class", ("filename", "class")),
        ("file_name,Class Name", ("file_name", "Class Name")),
        ("FilePath,diagnosis", ("FilePath", "diagnosis")),
        ("image_id,dx,dx_type", ("image_id", "dx")),
        ("Image Index,Finding Labels,Patient Age", ("Image Index", "Finding Labels")),
        ("id_code,diagnosis", ("id_code", "diagnosis")),
        ("image,labels,class", None),
        ("image_id,path,label,class", ("path", "label")),
        ("image_id,file_name,target", ("file_name", "target")),
        ("img,category,image_url", ("img", "category")),
    ],
)
def test_columns_are_known_by_their_usual_names(
    open_table: OpenTable, header: str, roles: tuple[str, str] | None
) -> None:
    names = [name.strip() for name in header.split(",")]
    content = "\n".join([header, *(",".join([image] * len(names)) for image, _ in FOUR)])
    if roles is None:
        with pytest.raises(DataError, match="labels and class could each be the label"):
            open_table(content)
        return

    note = open_table(content).notes[0]

    used = [
        f"{role} from {name}" if role != name else role for role, name in zip(("path", "label"), roles, strict=True)
    ]
    unused = [name for name in names if name not in roles]
    assert note == f"columns of t.csv: {', '.join(used)}" + (f"; not used: {', '.join(unused)}" if unused else "")


@pytest.mark.parametrize(
    ("column", "role"),
    [
        *[(name, "unit") for name in ("unit", "Patient ID", "patient_id", "patient", "SubjectID", "person_id")],
        *[(name, "client") for name in ("client", "site", "Site_ID", "hospital", "Centre", "institution")],
        *[(name, "") for name in ("patient_age", "website", "lesion_id", "sex")],
    ],
)
def test_units_and_clients_are_known_by_their_usual_names(open_table: OpenTable, column: str, role: str) -> None:
    text = f"path,label,{column}\ns/0.png,a,x\ns/1.png,b,NaN\ns/2.png,a,x\ns/3.png,b,\n"

    entries = open_table(text).entries

    found = {"unit": entries.units, "client": entries.clients}
    assert found == {name: ("x", "", "x", "") if name == role else None for name in found}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("0", "1", "2", "10"), ("0", "1", "2", "10")),
        (("0.0", "1.0", "", "2.0"), ("0", "1", "", "2")),
        (("0.0", "1", "-1.0", "-1"), ("0", "1", "", "")),
        (("0.5", "1.0", "0.5", "1.0"), ("0.5", "1.0", "0.5", "1.0")),
        (("a", "NaN", "None", "b"), ("a", "", "", "b")),
        (("a", "nan", "NULL", "#N/A"), ("a", "", "", "")),
        (("a", "-1", "none", "b"), ("a", "", "none", "b")),
        (("01", "02", "01", "02"), ("01", "02", "01", "02")),
        (("a ", " a", "b", "b"), ("a", "a", "b", "b")),
    ],
)
def test_labels_that_mean_missing_or_a_whole_number(
    open_table: OpenTable, rows_of: RowsOf, labels: Sequence[str], expected: Sequence[str]
) -> None:
    rows = zip((image for image, _ in FOUR), labels, strict=True)
    source = open_table("path,label\n" + "".join(f"{image},{label}\n" for image, label in rows))

    assert tuple(label for _, label in rows_of(source)) == tuple(expected)
    written = {row: label for row, label in enumerate(labels) if not expected[row]}
    assert source.entries.label_faults == {
        row: f"no label ({label!r})" if label else "no label" for row, label in written.items()
    }


@pytest.mark.parametrize("classes", ["None,mild", "0.0,1.0"])
def test_labels_that_the_class_list_names_are_classes(open_table: OpenTable, rows_of: RowsOf, classes: str) -> None:
    first, second = classes.split(",")
    text = _table().replace(",a", f",{first}").replace(",b", f",{second}")

    assert {label for _, label in rows_of(open_table(text, classes=classes))} == {first, second}


@pytest.mark.parametrize(
    ("split", "num_train"),
    [
        (("train", "train", "test", "test"), 2),
        (("Training", "TRAIN", "Testing", "Test"), 2),
        (("", "NaN", "train", "test"), 3),
    ],
)
@pytest.mark.parametrize("column", ["split", "Split", "subset"])
def test_split_divides_rows_by_its_usual_words(
    open_table: OpenTable, split: Sequence[str], num_train: int, column: str
) -> None:
    rows = "".join(f"{image},{label},{part}\n" for (image, label), part in zip(FOUR, split, strict=True))

    assert open_table(f"path,label,{column}\n{rows}").entries.num_train == num_train


@pytest.mark.parametrize(
    ("validation", "files", "num_train"),
    [("drop", "023", 2), ("train", "0123", 3), ("test", "0213", 2)],
)
@pytest.mark.parametrize("word", ["val", "Valid", "VALIDATION", "dev"])
def test_validation_rows_are_used_as_the_user_says(
    open_table: OpenTable, rows_of: RowsOf, word: str, validation: str, files: str, num_train: int
) -> None:
    text = f"path,label,split\ns/0.png,a,train\ns/1.png,v,{word}\ns/2.png,b,train\ns/3.png,a,test\n"

    source = open_table(text, validation=validation)

    assert [file for file, _ in rows_of(source)] == [f"s/{number}.png" for number in files]
    assert source.entries.num_train == num_train
    assert source.entries.classes == (("a", "b") if validation == "drop" else ("a", "b", "v"))
    said = ("1 rows of the validation part (data.validation=train or test uses them)",)
    assert source.not_read == (said if validation == "drop" else ())


def test_use_of_validation_rows_changes_the_fingerprint(open_table: OpenTable) -> None:
    text = "path,label,split\ns/0.png,a,train\ns/1.png,b,val\ns/2.png,b,train\n"

    found = {open_table(text, validation=use).fingerprint for use in ("drop", "train", "test")}

    assert len(found) == 3


def test_column_that_only_resembles_a_split_may_mean_something_else(open_table: OpenTable) -> None:
    rows = "".join(f"{image},{label},{half}\n" for (image, label), half in zip(FOUR, "ABAB", strict=True))

    source = open_table(f"path,label,subset\n{rows}")

    assert (source.entries.num_train, source.notes) == (4, ("columns of t.csv: path, label; not used: subset",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,label\ns/0.png,a\ns/1.png,b,x\n", "line 3: 3 fields under 2 columns"),
        ("path;label\ns/0.png;a\n\ns/1.png;b;x\n", "line 4: 3 fields under 2 columns"),
        ("sep=,\npath,label\ns/0.png,ape, great\n", "line 3: 3 fields under 2 columns"),
        ('path,label\ns/0.png,a\n"s/1.png,b\ns/2.png,a\n', "line 3: a quote .* is not closed"),
        ('path,label\ns/0.png,a\n"s/1.png,b\ns/2.png,"a"\n', "line 3: a quote .* text follows it"),
        ('path,label\ns/0.png,a\ns/1.png,"b\ns/2.png,a"\n', "line 3: the label goes on in the next line"),
        ("path,label,label\ns/0.png,a,b\n", "line 1: two columns are called label"),
        ("path,note,note,label\ns/0.png,a,b,c\n", "line 1: two columns are called note"),
        ("path,Label,LABEL\ns/0.png,a,b\n", "Label and LABEL could each be the label"),
        ("path,label,patient_id,subject_id\n", "patient_id and subject_id could each be the unit"),
        ("path,lable\ns/0.png,a\n", "lacks the column label; its columns are path, lable: is lable the label"),
        ("pahts,label\nx,a\n", "lacks the column path; its columns are pahts, label: is pahts the path"),
        ("path,foo,bar\ns/0.png,a,b\n", r"path, foo, bar: rename the column with the classes to label; columns"),
        ("Bild-Datei,Klasse\nx,a\n", "Bild-Datei, Klasse: rename the column with the files to path\\n"),
        ("image,MEL,NV\ns/0.png,1.0,0.0\n", "MEL, NV say 0 or 1 for single classes"),
        ("s/0.png,a\ns/1.png,b\n", "its first line must hold the names of the columns"),
        ("path,label\n", "has no rows"),
        ("path,label\n,\n", "has no rows"),
        ("\n", r"lacks the column path; its columns are \(none\)"),
        ("path,label,split\ns/0.png,a,fold1\n", "split holds fold1"),
        ("path,label,split\ns/0.png,a,val\n", "no row is of the split train"),
        (bytes(range(256)), "is not a text in UTF-8, UTF-16 or Windows-1252"),
        ("path,label,patient_id,split\ns/0.png,a,7,train\ns/1.png,b,7,test\n", r"same patient_id has rows.*: 7 \(1 in"),
        ("path,label,unit,split\ns/0.png,a,7,\ns/1.png,b,7,TEST\ns/2.png,a,,test\n", r"same unit has rows.*: 7 \(1 in"),
    ],
)
def test_text_table_that_cannot_be_read_is_refused_with_its_line(
    open_table: OpenTable, content: str | bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        open_table(content)

    assert "t.csv" in str(caught.value)


@pytest.mark.parametrize("name", ["t.xls", "t.ods", "t.json", "t.jsonl", "table"])
def test_file_of_another_kind_is_refused_with_the_kinds_that_are_read(open_table: OpenTable, name: str) -> None:
    with pytest.raises(DataError, match=r"a table must end in \.csv, \.tsv"):
        open_table(b"{}", name)


def _workbook(**sheets: Sequence[Sequence[Any]]) -> bytes:
    book, stream = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["t.xlsx", "T.XLSX", "t.xlsm"])
@pytest.mark.parametrize(
    "sheets",
    [
        {"one": [["path", "label"], *FOUR]},
        {"one": [["File Name", "Class"], *FOUR]},
        {"one": [["path", "label", None], *([*row, None] for row in FOUR), [None, None], []]},
        {"one": [["Images of 2026"], [], ["path", "label"], *FOUR]},
        {"Info": [["read", "me"]], "Empty": [], "Data": [["path", "label"], *FOUR]},
    ],
)
def test_workbook_is_read_from_the_sheet_with_the_columns(
    open_table: OpenTable, rows_of: RowsOf, sheets: dict[str, Any], name: str
) -> None:
    assert rows_of(open_table(_workbook(**sheets), name)) == FOUR


def test_workbook_gives_numbers_and_gaps_as_text(open_table: OpenTable, rows_of: RowsOf) -> None:
    rows = [["image_id", "dx", "patient_id"], [0, 0.0, 7], [1, 1, 7.0], [2, "#N/A", None], [3, None, "x"]]

    source = open_table(_workbook(one=rows), "t.xlsx")

    assert rows_of(source) == [("s/0.png", "0"), ("s/1.png", "1"), ("s/2.png", ""), ("s/3.png", "")]
    assert source.entries.units == ("7", "7", "", "x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\3\4 cut short", r"not an \.xlsx file that can be read \(BadZipFile\)"),
        (b"\xd0\xcf\x11\xe0 with a password", "a password must be taken off"),
        (_workbook(one=[]), "lacks the column path"),
        (_workbook(one=[["path", "lable"], ["s/0.png", "a"]]), "is lable the label"),
    ],
)
def test_workbook_that_cannot_be_read_is_refused(open_table: OpenTable, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_table(content, "t.xlsx")


def test_workbook_without_its_package_names_the_extra(open_table: OpenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)

    with pytest.raises(DataError, match=r"pip install 'bract\[xlsx\]'"):
        open_table(_workbook(one=[["path", "label"], *FOUR]), "t.xlsx")
    assert '\nxlsx = ["openpyxl' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("Bilddatei;Diagnose;label\ns/0.png;x;a\ns/1.png;y;b\n", [("s/0.png", "a"), ("s/1.png", "b")]),
        ("fichier,classe,label\ns/0.png,x,a\n,x,b\ns/1.JPG,y,b\n", [("s/0.png", "a"), ("", "b"), ("s/1.JPG", "b")]),
        ('"path"\t"label"\n"1"\t"s/0.png"\t"a"\n"2"\t"s/1.png"\t"b"\n', [("s/0.png", "a"), ("s/1.png", "b")]),
        ('"","path","label"\n"1","s/0.png","a"\n"2","s/1.png","b"\n', [("s/0.png", "a"), ("s/1.png", "b")]),
        ("path label\n1 s/0.png a\n".replace(" ", ","), [("s/0.png", "a")]),
    ],
)
def test_columns_are_found_by_content_and_names_of_rows_are_passed_over(
    open_table: OpenTable, rows_of: RowsOf, text: str, rows: list[tuple[str, str]]
) -> None:
    assert rows_of(open_table(text)) == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,MEL,NV\ns/0.png,1.0,0.0\ns/1.png,0.0,1.0\n", "MEL, NV say 0 or 1 for single classes"),
        ("filename, cat, dog\ns/0.png, 1, 0\ns/1.png, 0, 1\n", "cat, dog say 0 or 1"),
        ("Path,Age,No Finding,Edema\ns/0.png,5,1.0,\ns/1.png,6,-1.0,0.0\n", "No Finding, Edema say 0 or 1"),
        ("image,a,b\ns/0.png,True,False\n", "a, b say 0 or 1"),
        ("image,a,b,text\ns/0.png,1,0,x\n", "a, b say 0 or 1"),
        ("image,a\ns/0.png,1\n", "columns of single classes must become one"),
        ("Datei,Bild\ns/0.png,s/1.png\n", "rename the column with the files to path"),
        ("Bilddatei;Diagnose\nx;y\n", "rename the column with the files to path"),
        ("images/0.jpg 0\nimages/1.jpg 1\n", "its first line must hold the names of the columns, with commas"),
        ("TRAIN,gs://b/0.jpg,cat\n", "its first line must hold the names"),
        ("path,label\n1,s/0.png,a\n2,s/1.png\n", "line 2: 3 fields under 2 columns"),
    ],
)
def test_a_table_without_a_needed_column_says_which_could_become_it(
    open_table: OpenTable, text: str, said: str
) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        open_table(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\ns/0.png,a\ns/0.png,b\ns/1.png,b\n", "1 files have different labels in several rows"),
        ("path,label\ns/0.png,a\ns\\0.png,b\n", "different labels"),
        ("path,label\ns/0.png,a\nS/0.PNG,b\n", "different labels"),
        ("path,label\ns/0.png,a\ns/0.png,a\ns/1.png,b\n", ""),
        ("path,label\ns/0.png,1\ns/0.png,1.0\ns/1.png,0\n", ""),
        ("path,label\ns/0.png,a\ns/0.png,\ns/1.png,b\n", ""),
    ],
)
def test_files_with_several_labels_are_refused_until_the_classes_are_listed(
    open_table: OpenTable, text: str, said: str
) -> None:
    if said:
        with pytest.raises(DataError, match=said):
            open_table(text)
    assert open_table(text, classes="a,b,0,1").entries.num_train == text.count("\n") - 1
