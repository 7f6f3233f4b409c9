"""A client's closing counts by the column of its own table, through real messages."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message

from common.config.loading import Scalar
from common.config.schema import RunConfig
from tests.support.clients.own_clients import POLICY, SMALL, OwnClient, code
from tests.support.data.divided_table import BY_SEX, NOISY, write_divided

pytestmark = pytest.mark.usefixtures("own_home")
MakeConfig = Callable[..., RunConfig]
ALLOWED = POLICY.replace('"private"]', '"private", "exact"]') + 'subgroup-columns = ["sex"]\n'


def closing(root: Path, table: Path, config: RunConfig, policy: str = ALLOWED) -> Message:
    client = OwnClient(root, table, policy)
    for kind in ("query", "train"):
        client.ask(config, kind, run="run")
    return client.ask(config, "evaluate", run="run", server_round=1)


def cells_of(reply: Message, name: str) -> list[int]:
    assert code(reply) == "ok"
    return [int(count) for count in reply.content["metrics"][name]]


@pytest.mark.parametrize(("column", "by_subgroup"), [("sex", True), ("scanner", False)])
def test_client_without_the_column_counts_all_as_others_and_says_nothing(
    tmp_path: Path, make_config: MakeConfig, column: str, by_subgroup: bool
) -> None:
    config = make_config(SMALL | BY_SEX | NOISY | {"privacy.metrics": "exact"})

    reply = closing(tmp_path, write_divided(tmp_path / "scans", 60, column=column), config)

    cells, confusion = cells_of(reply, "subgroup-counts"), cells_of(reply, "confusion")
    assert set(reply.content["metrics"]) == {"num-examples", "confusion", "subgroup-counts"}
    assert sum(cells) == sum(confusion) > 0
    assert sum(cells[::2]) == confusion[0] + confusion[3]
    assert (sum(cells[:2]) > 0, sum(cells[2:4]) > 0) == (by_subgroup, by_subgroup)


@pytest.mark.parametrize("policy", [ALLOWED, POLICY])
def test_counts_leave_with_noise_and_only_by_a_column_that_the_policy_names(
    tmp_path: Path, make_config: MakeConfig, policy: str
) -> None:
    settings: dict[str, Scalar] = SMALL | BY_SEX | NOISY

    reply = closing(tmp_path, write_divided(tmp_path / "scans", 60), make_config(settings), policy)

    if policy == POLICY:
        assert code(reply) == "POLICY"
        return
    assert len(cells_of(reply, "noised-subgroup-counts")) == 6
    assert set(reply.content["metrics"]) == {"num-examples", "noised-confusion", "noised-subgroup-counts"}
