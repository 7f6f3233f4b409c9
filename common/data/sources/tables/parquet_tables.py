"""Tables in Parquet files, written by data frames or by the Hugging Face hub."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.data.sources.tables.columns import (
    FURTHER,
    ROLES,
    Table,
    candidates,
    cell_text,
    choose_split,
    find_columns,
    find_label,
    missing_column,
)
from common.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_SUFFIXES = (".parquet", ".pq")
IMAGE_NAMES = ("image", "img", "picture", "photo", "png", "jpg", "jpeg")


def read_parquet_table(file: Path, further: str = "", roles: Sequence[str] = ROLES) -> Table:
    """Read the columns of a Parquet file that a manifest needs, without images.

    A column of images is recognised by its type, class names by the ClassLabel that the hub stores with a column.
    `further` names one column more. Only columns of `roles` are looked for.

    Raises:
        DataError: The file is damaged, or lacks a column of images or paths.
        OSError: The file cannot be opened.
    """
    from pyarrow import ArrowException
    from pyarrow import parquet as pq

    with file.open("rb") as stream:
        try:
            schema = pq.read_schema(stream)
            features = hub_features(schema)
            image, found = _roles(schema, features, file, roles)
            more = {further} & set(schema.names)
            columns = pq.read_table(stream, columns=sorted(set(found.values()) | more)).to_pydict()
        except (OSError, ArrowException) as error:
            raise DataError(f"{file} is not a Parquet file that can be read ({type(error).__name__})") from None
    texts = {role: [cell_text(value) for value in columns[name]] for role, name in found.items()}
    found = choose_split(found, texts.get("split", []))
    classes = tuple(features.get(found.get("label", ""), {}).get("names") or ())
    if classes:
        texts["label"] = list(_names_of(columns[found["label"]], classes, file))
    used = ({"image": image} if image else {}) | found
    unused = tuple(name for name in schema.names if name not in used.values())
    kept = {role: texts[role] for role in found}
    if more:
        kept[FURTHER] = [cell_text(value) for value in columns[further]]
    return Table(kept, used, unused, image, classes)


def column_names(file: Path) -> list[str]:
    """Return the names of a Parquet file's columns in order.

    Raises:
        DataError: The file is damaged.
    """
    from pyarrow import ArrowException
    from pyarrow import parquet as pq

    try:
        return list(pq.read_schema(file).names)
    except ArrowException as error:
        raise DataError(f"{file} is not a Parquet file that can be read ({type(error).__name__})") from None


def hub_features(schema: "pa.Schema") -> Mapping[str, Any]:
    """Return the features that `datasets` stores in a file's schema, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind if isinstance(kind, dict) else {} for name, kind in features.items()}
    # Without them the columns are read by their names and types.
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _roles(
    schema: "pa.Schema", features: Mapping[str, Any], file: Path, roles: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """Return the column of images and the columns of the other roles.

    The first is empty where the rows name files.
    """
    kinds = dict(zip(schema.names, schema.types, strict=True))
    images = [name for name, kind in kinds.items() if _holds_images(kind)]
    typed = [name for name in kinds if features.get(name, {}).get("_type") == "ClassLabel"]
    label = find_label(schema.names, typed) if "label" in roles else ""
    # Other names of labels must not compete with the column that the file's types point at.
    others = [name for name in kinds if name not in images and not (label and candidates([name], "label"))]
    found = find_columns(others, file, roles) | ({"label": label} if label else {})
    image = next((name for name in IMAGE_NAMES if name in images), "")
    if not image and "path" not in found and len(images) == 1:
        image = images[0]
    if image:
        found.pop("path", None)
    elif "path" not in found:
        raise missing_column(file, "path", schema.names)
    for role, name in found.items():
        _check_kind(file, role, name, kinds[name])
    return image, found


def _check_kind(file: Path, role: str, name: str, kind: "pa.DataType") -> None:
    import pyarrow as pa

    if role == "path" and not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    ):
        raise DataError(
            f"{file}: the column {name} must hold encoded images as bytes, or names of files; it holds {kind}"
        )
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise DataError(f"{file}: the column {name} holds {kind}: the {role} must be one text or number in each row")


def _holds_images(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(index).name for index in range(kind.num_fields)}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _names_of(values: Sequence[Any], classes: Sequence[str], file: Path) -> Iterator[str]:
    for value in values:
        if value is not None and value >= len(classes):
            raise DataError(f"{file}: the label {value} is not one of the {len(classes)} classes that the file names")
        yield "" if value is None or value < 0 else classes[value]
