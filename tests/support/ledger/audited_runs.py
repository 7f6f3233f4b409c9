"""Folders of honest runs that the tests of their audit share, and ways to lie about them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.ledger.database import Ledger
from common.ledger.holder_keys import HolderKeys
from common.ledger.signed_heads import HeadKeeper, SignedHead, sign_head
from common.ledger.transactions import LedgerSession
from common.privacy.accounting import spent_by
from common.privacy.events import Event, from_json
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING
from server.audit.audit import audit_run
from server.reporting.privacy_statement import Parties, privacy_statement
from server.state.privacy_spent import account
from server.state.run_directory import RunDirectory
from server.state.secure_statement import aggregation_statement
from tests.support.ledger.builders import ASKED, holding

MakeConfig = Callable[..., RunConfig]
Statement = dict[str, Any]
# What a liar does to a statement, with words of the doubt that it must raise.
Lie = tuple[Callable[[Statement], object], str]
SIZES = {"00000": 40, "00001": 50, "00002": 60}
SETTINGS: dict[str, Scalar] = {"num-rounds": 2, "num-clients": 3, "training.local-epochs": 1}
ROUNDS = 2
RUN = "a1b2"


def keep(file: Path, plan: PrivacyPlan, name: str, rounds: int, *, closing: bool) -> SignedHead:
    """A client's ledger after so many rounds."""
    keys, ledger = HolderKeys.simulated(0, name), Ledger(file, durable=False)
    session = LedgerSession(ledger, keys, simulated=True)
    size = 3 if plan.privacy_unit == "client" else 1
    agreed = session.register(RUN, name, plan, (holding(0, 2, size), holding(2, 3, size)), ANYTHING)
    if plan.label_events():
        session.reserve(agreed, 0, "labels", ASKED, ANYTHING)
        session.commit(agreed, 0, "labels", b"[1, 2]", keep=2)
    for server_round in range(1, rounds + 1):
        session.reserve(agreed, server_round, "train", ASKED, ANYTHING)
        session.commit(agreed, server_round, "train", b"reply", keep=2)
    if closing:
        session.reserve(agreed, rounds, "closing", ASKED, ANYTHING)
        session.commit(agreed, rounds, "closing", b"counts", keep=2)
        session.close(RUN, name)
    head = sign_head(keys, ledger.head())
    ledger.close()
    return head


def write_run(
    folder: Path, config: RunConfig, *, rounds: int = ROUNDS, complete: bool = True, simulated: bool = True
) -> Path:
    """The folder that a run of three clients leaves, as the server writes it."""
    directory = RunDirectory.create(config.model_copy(update={"output_dir": str(folder)}))
    privacy_cost = account(config, SIZES, [list(SIZES)] * rounds, complete=complete)
    keeper = HeadKeeper([folder / "heads.jsonl"])
    if config.is_local_dp:
        (folder / "ledgers").mkdir()
        for name, share in privacy_cost.shares.items():
            head = keep(folder / "ledgers" / f"{name}.sqlite", share.plan, name, rounds, closing=complete)
            assert not keeper.accept([(name, head)])
    statement = privacy_statement(
        config,
        privacy_cost,
        status="complete" if complete else "interrupted",
        run_id=RUN,
        parties=Parties(heads=keeper.latest(SIZES)),
        simulated=simulated,
        aggregation=config.secure and aggregation_statement(config.secure, None, noised=config.private),
    )
    directory.write_json("privacy.json", statement)
    directory.write_json("summary.json", {"epsilon_max": privacy_cost.epsilon_max})
    lines = [json.dumps({"round": number, "clients": 3, "failures": {}}) for number in range(1, rounds + 1)]
    directory.write_text("rounds.jsonl", "".join(f"{line}\n" for line in lines))
    return folder


def edit(run: Path, change: Callable[[Statement], object]) -> None:
    file = run / "privacy.json"
    statement = json.loads(file.read_text())
    change(statement)
    file.write_text(json.dumps(statement))


def doubts(run: Path) -> str:
    report = audit_run(run)
    assert report.verdict == "DOUBTFUL"
    return "\n".join(report.remarks.doubts)


def assert_found(lie: Lie, run: Path) -> None:
    """Tell a lie about a run and fail unless its audit finds it."""
    change, expected = lie
    edit(run, change)
    assert expected in doubts(run)


def lie(statement: Statement) -> None:
    """What a careful liar does after changing events: every figure fits them."""
    for client in statement["clients"].values():
        events: list[list[Event]] = [list(map(from_json, listed)) for listed in client["events"].values()]
        spent = [spent_by(listed, delta=statement["delta"]) for listed in events]
        client |= {"epsilon": max(one.pld for one in spent), "epsilon_rdp": max(one.rdp for one in spent)}
    statement["epsilon_max"] = max(client["epsilon"] for client in statement["clients"].values())
    statement["epsilon_max_rdp"] = max(client["epsilon_rdp"] for client in statement["clients"].values())
    head, _, tail = statement["statement"].partition("<= ")
    tail = tail.partition(" (")[2]
    statement["statement"] = f"{head}<= {statement['epsilon_max']:.4f} at delta {statement['delta']:g} ({tail}"


def fewer_rounds(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["rounds"] = 1
        client["events"]["training"][0]["steps"] //= 2
        client["events"]["evaluation"][0]["releases"] = 1
    lie(statement)


def more_noise(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["events"]["training"][0]["noise-multiplier"] *= 2
    lie(statement)


def smaller_figures(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["epsilon"] /= 2
    statement["epsilon_max"] /= 2
    statement["statement"] = statement["statement"].replace("<= 3.99", "<= 1.99").replace("<= 4.0", "<= 2.0")


def without_client(statement: Statement) -> None:
    del statement["clients"]["00001"]
    statement["epsilon_max"] = max(client["epsilon"] for client in statement["clients"].values())
