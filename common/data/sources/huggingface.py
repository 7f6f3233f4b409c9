"""Data sets of the Hugging Face hub and of its local cache."""

import hashlib
import json
from pathlib import Path
from typing import Any

from common.config.sections import DataConfig
from common.data.sources.base_source import Entries, ImageSource, fingerprint_of, split_name
from common.data.sources.datasets_library import entries_of, is_saved, open_saved
from common.errors import DataError
from common.system.files import write_atomic
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
    key = hashlib.sha256(f"{name}\0{variant}\0{config.path}".encode()).hexdigest()[:16]
    pointer = bract_home() / "datasets" / "hf" / f"{key}.json"
    files = [Path(file) for file in json.loads(pointer.read_text())] if pointer.is_file() else []
    if not files or not all(file.is_file() for file in files):
        files = _arrow_files(_load_hugging_face(config, name, variant))
        pointer.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(pointer, json.dumps([str(file) for file in files]), durable=False, mode=0o600)

    def load() -> Entries:
        return entries_of(_load_hugging_face(config, name, variant), config.source)

    return ImageSource(config.source, fingerprint_of(files, name, variant), load, config.path)


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


def _arrow_files(data: Any) -> list[Path]:
    files = data.cache_files
    groups = files.values() if isinstance(files, dict) else [files]
    return sorted({Path(item["filename"]) for group in groups for item in group})
