"""Files of a run: whole or absent, never over somebody else's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.config.loading import defaults as all_defaults
from common.config.loading import load_file, override, parse
from common.config.schema import RunConfig
from common.errors import ConfigError
from server.state.run_directory import RUN_ID, RunDirectory

MakeConfig = Callable[..., RunConfig]


def test_create_writes_a_configuration_that_reads_back(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config({"output-dir": str(tmp_path / "run"), "data.alpha": 0.3})

    run = RunDirectory.create(config)

    assert parse(override(all_defaults(), load_file(run.path / "config.toml"))) == config


def test_create_refuses_a_folder_in_use(tmp_path: Path, make_config: MakeConfig) -> None:
    (tmp_path / "mine.txt").write_text("keep")

    with pytest.raises(ConfigError, match="in use"):
        RunDirectory.create(make_config({"output-dir": str(tmp_path)}))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_create_without_a_name_never_reuses_a_folder(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    paths = {RunDirectory.create(make_config()).path for _ in range(3)}

    assert len(paths) == 3


def test_write_json_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("summary.json", {"accuracy": 1})

    with pytest.raises(TypeError):
        run.write_json("summary.json", {"accuracy": object()})

    assert (tmp_path / "summary.json").read_text() == '{\n  "accuracy": 1\n}\n'


def test_write_model_gives_equal_bytes_for_equal_models(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        RunDirectory(tmp_path / name).write_model({"head.weight": np.eye(3, dtype=np.float32)}, {"classes": ["x"]})

    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_run_has_one_process_at_a_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.lock(), pytest.raises(ConfigError, match="run by another process"), RunDirectory(tmp_path).lock():
        pass

    with RunDirectory(tmp_path).lock():
        pass


def test_a_run_keeps_its_id_and_each_run_has_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    ids = [RunDirectory(tmp_path / name).run_id(None) for name in ("a", "b", "a", "b")]

    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]
    assert RunDirectory(tmp_path / "a").run_id(ids[0]) == ids[0]


def test_a_run_of_before_keeps_the_id_of_its_checkpoint(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).run_id("ab" * 16) == "ab" * 16
    assert RunDirectory(tmp_path).run_id(None) == "ab" * 16


@pytest.mark.parametrize("content", [b"", b"ab", b"\xff" * 32, b"cd" * 16 + b"\n" + b"ab" * 16])
@pytest.mark.parametrize("earlier", [None, "ab" * 16])
def test_an_id_that_is_damaged_or_of_another_run_is_refused(
    tmp_path: Path, content: bytes, earlier: str | None
) -> None:
    (tmp_path / RUN_ID).write_bytes(content)

    with pytest.raises(ConfigError, match=r"run-id\.txt is damaged or of another run"):
        RunDirectory(tmp_path).run_id(earlier)
