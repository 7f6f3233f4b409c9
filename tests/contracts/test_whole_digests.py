"""Digests, ids and names are compared whole and letter by letter, wherever something is admitted by one.

Whoever can choose what is hashed finds two contents whose digests begin alike in an afternoon.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.admission import admit
from client.runtime.task import check_bundle
from common.config.schema import RunConfig
from common.errors import BundleError, LedgerError, PolicyError, WeightsError
from common.ledger.data_holder import simulated_holder
from common.ledger.database import Head
from common.ledger.signed_heads import HeadKeeper, SignedHead, sign_head
from common.models.backbone_info import _check_pin
from common.models.names import BackboneSpec
from common.privacy.policy import ANYTHING
from common.system.app_bundle import files_digest
from server.rounds.enrollment import agrees
from server.rounds.node_registry import NodeRegistry
from tests.support.clients.own_clients import POLICY, SMALL, OwnClient, write_images
from tests.support.ledger.builders import ASKED, KEYS, PLAN
from tests.support.ledger.sessions import PARTS
from tests.support.server.enrollment import RUN
from tests.support.server.replies import DECLARED

FILES = {"client/app.py": b"app = 1\n", "pyproject.toml": b""}


def twin(digest: str) -> str:
    """Return a digest that differs in its last digit alone."""
    return digest[:-1] + ("0" if digest[-1] != "0" else "1")


def signed(ledger: str) -> SignedHead:
    """A head under a ledger's id, with a signature that fits it."""
    unsigned = replace(sign_head(KEYS, Head(7, "a" * 64)), ledger=ledger)
    return replace(unsigned, signature=KEYS.sign(unsigned.message))


def test_pin_of_weights_is_whole() -> None:
    spec = BackboneSpec("resnet18", "random", "ab" * 32, None, 0)

    _check_pin(spec, "ab" * 32)
    with pytest.raises(WeightsError, match="asks for"):
        _check_pin(spec, twin("ab" * 32))


def test_pin_of_a_bundle_is_whole() -> None:
    digest = files_digest(FILES)

    assert check_bundle(ANYTHING.model_copy(update={"bundle": digest}), FILES) == digest
    with pytest.raises(BundleError, match="the policy pins"):
        check_bundle(ANYTHING.model_copy(update={"bundle": twin(digest)}), FILES)


def test_pin_that_a_launcher_has_checked_is_whole(
    tmp_path: Path, own_home: Path, make_config: Callable[..., RunConfig]
) -> None:
    pinned = "ab" * 32
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(4)), POLICY + f'bundle = "{pinned}"\n')
    config, place = make_config(SMALL), str(client.folder)

    admit(config, place, pinned, RUN, "query")
    for checked in (twin(pinned), pinned.upper(), ""):
        with pytest.raises(PolicyError, match="nothing has checked it"):
            admit(config, place, checked, RUN, "query")


def test_id_of_a_ledger_follows_whole_from_its_key() -> None:
    signed(KEYS.ledger_id).check()
    with pytest.raises(LedgerError, match="not signed by the key"):
        signed(twin(KEYS.ledger_id)).check()


def test_ledger_of_a_node_is_whole(tmp_path: Path) -> None:
    nodes = NodeRegistry(tmp_path / "nodes.jsonl")
    nodes.check(2, "ward", KEYS.ledger_id)

    with pytest.raises(LedgerError, match="earlier spending is missing"):
        nodes.check(2, "ward", twin(KEYS.ledger_id))


def test_name_of_a_node_is_its_own_letter_by_letter(tmp_path: Path) -> None:
    nodes = NodeRegistry(tmp_path / "nodes.jsonl")
    nodes.check(2, "ward-7", "")

    assert not nodes.owns(3, "ward-7")
    assert nodes.owns(3, "Ward-7")
    assert nodes.owns(3, "ward-71")


def test_hash_of_a_head_is_whole(tmp_path: Path) -> None:
    keeper = HeadKeeper([tmp_path / "heads.jsonl"])
    keeper.accept([("a", sign_head(KEYS, Head(7, "a" * 64)))])

    assert "older copy" in keeper.accept([("a", sign_head(KEYS, Head(7, twin("a" * 64))))])["a"]


def test_hash_of_a_holders_last_entry_is_whole(tmp_path: Path) -> None:
    holder = replace(simulated_holder(tmp_path, "a", seed=0, durable=False), head_file=tmp_path / "head.json")
    with holder.open_session():
        pass
    kept = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(kept | {"hash": twin(kept["hash"])}))

    with pytest.raises(LedgerError, match="an older copy was restored"), holder.open_session():
        pass


def test_hash_of_a_repeated_request_is_whole(tmp_path: Path) -> None:
    with simulated_holder(tmp_path, "a", seed=0, durable=False).open_session() as session:
        agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
        session.reserve(agreed, 1, "train", ASKED, ANYTHING)

        with pytest.raises(PolicyError, match="asked for again with another model"):
            session.reserve(agreed, 1, "train", twin(ASKED), ANYTHING)


def test_clients_agree_on_whole_hashes_and_on_classes_letter_by_letter() -> None:
    declared = replace(DECLARED, backbone_hash="ab" * 32)

    assert agrees(declared, replace(declared, name="other", num_units=9))
    for other in ({"backbone_hash": twin("ab" * 32)}, {"classes": ("Cat", "dog")}, {"input_shape": (8, 8, 3)}):
        assert not agrees(declared, replace(declared, **other))  # type: ignore[arg-type]


def test_clients_of_one_holder_are_told_apart_letter_by_letter(tmp_path: Path) -> None:
    with simulated_holder(tmp_path, "a", seed=0, durable=False).open_session() as session:
        requests = {
            session.register(run, client, PLAN, PARTS, ANYTHING).request(1, "train")
            for run, client in (("run", "a"), ("run", "A"), ("ru", "na"), ("runa", ""))
        }

        assert len(requests) == 4
        assert session.registration("RUN", "a") is None
