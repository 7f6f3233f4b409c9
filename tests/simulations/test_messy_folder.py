"""A folder as real clients have them trains to the end, whatever lies in it."""

from pathlib import Path

import pytest
from rich.console import Console

from common.config.loading import defaults, override, parse
from common.data.preprocessing import prepare
from common.errors import DataError
from simulations.simulate import run_job
from tests.support.data.hostile_files import build_hostile_folder

SMALL = {
    "num-rounds": 2,
    "num-clients": 2,
    "training.local-epochs": 1,
    "training.batch-size": 8,
    "data.image-size": 32,
    "data.partitioner": "iid",
    "data.max-bad-fraction": 0.3,
    "privacy.delta": 1e-3,
}


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("messy")
    return root, build_hostile_folder(root)


@pytest.mark.parametrize("mechanism", ["none", "dp-sgd"])
def test_a_messy_folder_trains_to_the_end(messy: tuple[Path, dict[str, str]], tmp_path: Path, mechanism: str) -> None:
    root, faults = messy
    given = SMALL | {"data.source": str(root), "privacy.mechanism": mechanism, "output-dir": str(tmp_path / "run")}
    config = parse(override(defaults(), given))

    summary, _ = run_job(config, engine="in-process", baselines=False, console=Console(quiet=True))

    assert summary["status"] == "complete"
    assert summary["failures"] == 0
    assert summary["skipped_files"] == len(faults) >= 15


def test_each_fault_is_listed_once_with_its_reason(messy: tuple[Path, dict[str, str]]) -> None:
    root, faults = messy

    prepared = prepare(parse(override(defaults(), SMALL | {"data.source": str(root)})))

    assert {fault.place for fault in prepared.scan.faults} == set(faults)
    assert len(prepared.scan.faults) == len(faults)
    assert (~prepared.scan.usable).sum() == len(faults)


def test_the_default_refuses_so_many_bad_files_and_lists_them(messy: tuple[Path, dict[str, str]]) -> None:
    root, faults = messy
    config = parse(override(defaults(), SMALL | {"data.source": str(root), "data.max-bad-fraction": 0.05}))

    with pytest.raises(DataError) as caught:
        prepare(config)

    assert all(place in str(caught.value) for place in sorted(faults)[:5])
