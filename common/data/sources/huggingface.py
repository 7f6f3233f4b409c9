"""Data sets of the Hugging Face hub and of its local cache."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.sections import DataConfig
from common.data.sources.base_source import ImageSource, split_name
from common.data.sources.datasets_library import FORMAT, is_saved, open_library_set, open_saved
from common.errors import DataError
from common.system.files import make_folder, write_atomic
from common.system.hub import hub_url, quick_failure
from common.system.paths import bract_home


def open_hugging_face(config: DataConfig) -> ImageSource:
    """Open a data set of the Hugging Face hub by its name.

    Its Arrow files are remembered, so that opening it again needs neither a network nor heavy imports.

    Raises:
        DataError: The set is neither in the local cache nor can it be downloaded.
    """
    name, variant = split_name(config.source)
    if config.path and is_saved(Path(config.path)):
        return open_saved(config.model_copy(update={"source": config.path, "path": ""}))
    pointer = _pointer(name, variant, config.path)
    known = json.loads(pointer.read_text()) if pointer.is_file() else {}
    if not known or not all(Path(file).is_file() for file in known["files"]):
        known = _facts(_load_hugging_face(config, name, variant))
        make_folder(pointer.parent, mode=0o700)
        write_atomic(pointer, json.dumps(known), durable=False, mode=0o600)
    return open_library_set(
        config,
        config.source,
        lambda: _load_hugging_face(config, name, variant),
        title=config.source,
        parts=known["parts"],
        columns=known["columns"],
        files=map(Path, known["files"]),
        more=(name, variant),
        place=config.path,
    )


def _pointer(name: str, variant: str, path: str) -> Path:
    """Return the file that remembers what is known of a data set."""
    # Pointers of earlier versions held files alone, so they are left where they are.
    key = hashlib.sha256(f"{name}\0{variant}\0{path}\0{FORMAT}".encode()).hexdigest()[:16]
    return bract_home() / "datasets" / "hf" / f"{key}.json"


def _load_hugging_face(config: DataConfig, name: str, variant: str) -> Any:
    from datasets import load_dataset

    try:
        with quick_failure(hub_url()):
            return load_dataset(config.path or name, variant or None)
    except Exception as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"
        raise DataError(
            f"data.source={config.source!r} can neither be read from the local cache nor downloaded ({reason})\n"
            "  where there is a network: datasets.load_dataset(...).save_to_disk(folder); copy the folder here and use "
            "data.source=/path/to/folder"
        ) from None


def _facts(data: Any) -> dict[str, list[str]]:
    """Return a data set's Arrow files, parts and columns, as JSON holds them."""
    parts = data if isinstance(data, Mapping) else {"": data}
    files = {str(item["filename"]) for part in parts.values() for item in part.cache_files}
    columns = [name for part in parts.values() for name in part.column_names]
    return {"files": sorted(files), "parts": list(parts), "columns": list(dict.fromkeys(columns))}
