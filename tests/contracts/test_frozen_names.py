"""Names of streams, settings, commands and fields that others rely on, as literal values that never change."""

import ast
import hashlib
import sys
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import pytest
import typer
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from bract import app
from client.admission import client_ref, pinned_by
from client.app import app as client_app
from client.training.augmentation import view_seeds
from client.training.trainer import Trainer
from common.config.loading import defaults, override, parse, resolved
from common.data.partitioning.assignment import make_partition
from common.data.partitioning.partitioners import hold_out
from common.errors import ClientFailure
from common.ledger.signed_heads import SignedHead
from common.messages.codec import (
    Declaration,
    Evaluation,
    encode_declaration,
    encode_evaluation,
    encode_head,
    encode_update,
    run_config,
)
from common.messages.fields import Releases
from common.metrics import Counts, NoisedCounts
from common.models.initialization import initial_arrays
from common.privacy.mechanisms.registry import MECHANISMS
from common.randomness import keyed_uniform, public_stream
from server.rounds.cohorts import draw_cohorts
from simulations.attacks.membership.targets import members_of
from tests.support.paths import ROOT

ROOMS = ("common", "client", "server", "simulations")
DIGESTS = np.stack([np.frombuffer(hashlib.sha256(b"%d" % n).digest(), dtype=np.uint8) for n in range(16)])
# Purpose of a public stream, `*` for what varies -> an example, and its first two values at seed 3.
STREAMS: dict[str, tuple[tuple[str | int, ...], tuple[float, float]]] = {
    "advice features * *": (("advice", "features", "apart", 1), (0.8337796304760965, 0.7355886046150186)),
    "advice noise * *": (("advice", "noise", "apart", 1), (0.6569132565560365, 0.6488158129739627)),
    "backbone": (("backbone",), (0.5230474605962024, 0.09087297046052856)),
    "baselines": (("baselines",), (0.5645737683422579, 0.8886284322102395)),
    "batches * *": (("batches", "00003", 7), (0.3971965650254302, 0.579275249556229)),
    "bootstrap *": (("bootstrap", "comparison"), (0.7202492511239574, 0.9773881008136139)),
    "classes": (("classes",), (0.5176839444967875, 0.04263586756347981)),
    "cohorts": (("cohorts",), (0.9750509149726158, 0.8547462264201929)),
    "export": (("export",), (0.1790437872088264, 0.5951811167382326)),
    "inversion *": (("inversion", 1), (0.9129365914965064, 0.08476844193400546)),
    "membership *": (("membership", 4), (0.5436276494488567, 0.15849931766913794)),
    "order": (("order",), (0.23542155671676623, 0.9865975194535279)),
    "partition": (("partition",), (0.4292114935273761, 0.35260234813361724)),
    "partition *": (("partition", 2), (0.9278044635789933, 0.9391515631529189)),
    "rounding * *": (("rounding", "00003", 7), (0.6187811946721858, 0.14367843204265862)),
    "sanity-check * *": (("sanity-check", "head", 1), (0.7823691015036368, 0.7455990762758429)),
    "weights": (("weights",), (0.3092230098717178, 0.7337282176717107)),
}
# At seed 3, of client 00003 in round 7.
STREAM_OF_VIEWS = "979a48a3483d4aaf95a80fcb43a0f5f52a19452bc0e85da10abcb04ec653ed65"
# What chooses the image of a unit that votes, and what ledgers note of runs without protection; `{}` is what varies.
TEXTS = (
    b"which image of a unit votes",
    "exact counts of held-out images left",
    "gradients in batches by Opacus: no epsilon covers their rounding",
    "took part with privacy.mechanism={}",
)
SETTINGS = {
    "": "seed num-rounds num-clients client-fraction min-clients join-deadline round-deadline round-retries "
    "max-update-norm max-num-units node-keys output-dir resume",
    "data.": "source path classes max-bad-fraction partitioner alpha classes-per-client shards-per-client size-skew "
    "min-client-size validation image-size bit-depth gray-window background test-fraction",
    "model.": "backbone weights weights-sha256 initial head tuning cnn-depth lora-rank personal",
    "training.": "optimizer learning-rate momentum weight-decay schedule warmup-rounds local-epochs batch-size "
    "class-weights label-smoothing augmentation rotation-weight autocast gradients update-bits step-rule",
    "strategy.": "name server-learning-rate server-momentum beta-1 beta-2 tau proximal-mu trim-fraction num-malicious "
    "num-selected q",
    "privacy.": "mechanism unit target-epsilon noise-multiplier delta max-grad-norm clipping-norm metrics counts-noise "
    "closing-noise closing aggregation secure-colluding secure-honest policy",
    "evaluation.": "every folder folder-every",
    "stopping.": "patience keep max-epsilon",
    "system.": "device physical-batch-size ledger bundle",
}
COMMANDS = {
    "audit empirical": "--adversary --canaries --canary --confidence --config --guesses --images --json --one-run "
    "--out --preset --run --seed --set --trials --workers",
    "audit inversion": "--config --image --json --out --restarts --seed --set --steps",
    "audit layers": "--config --images --json --run --seed --set --verbose -v",
    "audit ledger": "--heads --json",
    "audit membership": "--compare --config --json --models --out --seed --set --workers",
    "audit run": "--json",
    "cache clear": "--yes -y",
    "cache list": "--json",
    "client check": "--json",
    "client init": "--authority --data --name --path --server",
    "client review": "--names",
    "client start": "",
    "client status": "--json",
    "data inspect": "--json --out --set",
    "data partition": "--clients --out --seed --set",
    "list backbones": "--json",
    "list partitioners": "--json",
    "list sources": "--json",
    "list strategies": "--json",
    "list tunings": "--num-classes",
    "plan": "--batch-size --classes --config --delta --epochs --epsilon --json --noise --parameters --plot --rounds "
    "--set --sizes",
    "run": "--config --dry-run --json --out --quiet --resume --seed --set -q",
    "server admit": "--again --name --server",
    "server bundle": "",
    "server init": "--days --name --port --renew",
    "server list": "--json --server",
    "server revoke": "--server",
    "server start": "",
    "simulate": "--baselines --config --device --dry-run --engine --json --out --quiet --resume --seed --set "
    "--verbose -q -v",
}
HEAD = {"ledger": ("ledger-id", "seq", "head", "public-key", "signature")}
DECLARED = {"client": ("name", "num-units", "classes", "input-shape", "backbone-hash", "bundle")}


@cache
def trees() -> list[ast.Module]:
    """Parse every file of the product."""
    return [ast.parse(file.read_text()) for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def literal(node: ast.expr) -> str | bytes | None:
    """Return a constant text, or an f-string with `{}` for what varies; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) else None


def test_the_product_asks_for_no_other_public_streams() -> None:
    calls = [node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    asked = [call for call in calls if ast.unparse(call.func).endswith("public_stream")]

    assert {" ".join(str(literal(given) or "*") for given in call.args[1:]) for call in asked} == set(STREAMS)


@pytest.mark.parametrize("name", STREAMS)
def test_a_public_stream_keeps_its_values(name: str) -> None:
    purpose, values = STREAMS[name]

    assert tuple(public_stream(3, *purpose).random(2).tolist()) == values


def test_texts_that_are_hashed_stand_in_the_code_as_they_did() -> None:
    found = {literal(node) for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.expr)}

    assert [text for text in TEXTS if text not in found] == []


def test_what_follows_from_the_streams_keeps_its_values() -> None:
    config = parse(override(defaults(), {"model.backbone": "cnn", "seed": 3}))
    weights = initial_arrays(config, (8, 8, 3), ("a", "b"))

    assert weights["conv1.weight"].ravel()[:2] == pytest.approx([0.1036648079752922, 0.3538817763328552], rel=1e-6)
    assert weights["output.weight"].ravel()[:2] == pytest.approx([0.0005069681, 0.0606539696], rel=1e-6)
    cohorts = draw_cohorts(list("abcdef"), cohort_size=2, num_rounds=4, seed=3)
    assert [" ".join(cohort) for cohort in cohorts] == ["c d", "b f", "a e", "b c"]
    assert members_of(3, 4, 12).astype(int).tolist() == [0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 1]
    assert keyed_uniform(b"key", DIGESTS[:2]).tolist() == [0.05666872319479366, 0.057409978666435935]
    assert np.flatnonzero(hold_out(DIGESTS, fraction=0.25, key=b"key")).tolist() == [0, 1, 2, 6]
    assert view_seeds(DIGESTS[:2], stream=b"stream", step=5).tolist() == [1654799321378031353, 513605531619608135]


@pytest.mark.parametrize(
    ("partitioner", "owners"),
    [
        ("iid", "1100010011110010"),
        ("dirichlet", "1110110010110010"),
        ("pathological", "0110010010110010"),
        ("shards", "0001011010011011"),
    ],
)
def test_images_go_to_the_clients_that_had_them(partitioner: str, owners: str) -> None:
    content: Any = SimpleNamespace(
        labels=np.arange(16) % 3,
        digests=DIGESTS,
        usable=np.ones(16, dtype=bool),
        num_train=16,
        classes=("a", "b", "c"),
        unit_digests=None,
        owners=None,
        client_names=(),
    )
    given = {"seed": 3, "num-clients": 2, "data.partitioner": partitioner, "training.batch-size": 4}

    config = parse(override(defaults(), given))
    found = make_partition(content, config.data, num_clients=config.num_clients, seed=config.seed)

    assert "".join(map(str, found.owner)) == owners
    assert np.flatnonzero(found.held_out).tolist() == [7, 11]


def test_the_views_of_a_round_keep_their_stream() -> None:
    config = parse(override(defaults(), {"privacy.mechanism": "none", "seed": 3}))
    trainer: Any = SimpleNamespace(config=config)
    trainer._settings = partial(Trainer._settings, trainer)
    rows: Any = None

    asks = patch.object(sys.modules[Trainer.__module__], "settings_of", side_effect=InterruptedError)
    with asks as asked, pytest.raises(InterruptedError):
        Trainer.train(trainer, {}, rows, name="00003", server_round=7, plan=None)

    assert asked.call_args.kwargs["stream"].hex() == STREAM_OF_VIEWS


def test_settings_keep_their_keys() -> None:
    frozen = {prefix + leaf for prefix, leaves in SETTINGS.items() for leaf in leaves.split()}

    assert frozen - set(defaults()) == set()
    assert frozen - set(resolved(parse(defaults()))) == set()


def test_commands_and_their_options_keep_their_names() -> None:
    found = dict(options_of(typer.main.get_command(app)))

    assert set(COMMANDS) - set(found) == set()
    assert {name: missing for name in COMMANDS if (missing := set(COMMANDS[name].split()) - found[name])} == {}


def options_of(command: click.Command, path: str = "") -> list[tuple[str, set[str]]]:
    """Return every command below one, by its whole name, with its options."""
    if isinstance(command, click.Group):
        return [one for name, inner in command.commands.items() for one in options_of(inner, f"{path} {name}".strip())]
    return [(path, {option for given in command.params for option in given.opts})]


def test_failure_codes_keep_their_numbers() -> None:
    assert {failure.name: failure.value for failure in ClientFailure} == {
        "INTERNAL": 1000,
        "CONFIG": 1001,
        "DATA": 1002,
        "WEIGHTS": 1003,
        "PRIVACY": 1004,
        "MESSAGE": 1005,
        "POLICY": 1006,
        "LEDGER": 1007,
        "BUNDLE": 1008,
    }


def test_a_client_answers_the_same_types_of_messages() -> None:
    config = parse(defaults())
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    for kind in ("query", "query.close", "train", "evaluate"):
        reply = client_app(Message(RecordDict(), 2, kind), Context(1, 2, {}, RecordDict(), resolved(config)))
        assert (reply.error.code, reply.error.reason) == (1001, "CONFIG")


@pytest.mark.parametrize(
    ("releases", "train", "evaluate"),
    [
        (Releases(MECHANISMS["none"], "exact"), "num-examples confusion loss-sum", "num-examples confusion loss-sum"),
        (
            Releases(MECHANISMS["none"], "exact", train_loss=True, personal=True),
            "num-examples confusion loss-sum personal-confusion personal-loss-sum train-loss",
            "num-examples confusion loss-sum personal-confusion personal-loss-sum",
        ),
        (Releases(MECHANISMS["none"], "none"), "num-examples", None),
        (Releases(MECHANISMS["dp-sgd"], "exact"), "num-examples confusion", "num-examples confusion"),
        (
            Releases(MECHANISMS["dp-sgd"], "private"),
            "num-examples noised-correct noised-wrong",
            "num-examples noised-confusion",
        ),
        (Releases(MECHANISMS["dp-sgd"], "none"), "num-examples", None),
        (Releases(MECHANISMS["client-dp"], "exact"), "num-examples confusion", "num-examples confusion"),
        (Releases(MECHANISMS["client-dp"], "none"), "num-examples", None),
        (
            Releases(MECHANISMS["dp-sgd"], "private", histograms=True),
            "num-examples noised-correct noised-wrong",
            "num-examples noised-confusion noised-score-counts noised-confidence-counts",
        ),
        (
            Releases(MECHANISMS["none"], "exact", histograms=True),
            "num-examples confusion loss-sum",
            "num-examples confusion loss-sum score-counts confidence-counts",
        ),
        (
            Releases(MECHANISMS["dp-sgd"], "private", subgroups=3),
            "num-examples noised-correct noised-wrong",
            "num-examples noised-confusion noised-subgroup-counts",
        ),
        (
            Releases(MECHANISMS["none"], "exact", subgroups=3),
            "num-examples confusion loss-sum",
            "num-examples confusion loss-sum subgroup-counts",
        ),
    ],
)
def test_a_reply_may_hold_the_same_fields(releases: Releases, train: str, evaluate: str | None) -> None:
    head = HEAD if releases.mechanism.name == "dp-sgd" else {}

    assert releases.fields("query") == DECLARED | head
    assert releases.fields("query.close") == head
    assert releases.fields("train") == {"arrays": None, "metrics": tuple(train.split())} | head
    if evaluate is not None:
        assert releases.fields("evaluate") == {"metrics": tuple(evaluate.split())} | head


def test_an_update_in_8_bits_keeps_its_names() -> None:
    for mechanism in MECHANISMS.values():
        whole, rounded = (Releases(mechanism, "none", update_bits=bits).fields("train") for bits in (32, 8))
        assert rounded == whole | {"arrays": ("codes", "scales")}


def test_messages_are_encoded_under_the_same_names() -> None:
    declared = encode_declaration(Declaration("ward-7", 100, ("a", "b"), (8, 8, 3), "ab", "cd"))
    exact = Counts(np.array([[1, 2], [3, 4]]), 0.5)
    update = encode_update({"w": np.ones(2, dtype=np.float32)}, 100, Evaluation(exact, exact, 0.25))
    pair = encode_evaluation(100, Evaluation(noised=NoisedCounts(np.array([5, -1]))))
    matrix = encode_evaluation(100, Evaluation(noised=NoisedCounts(np.array([[5, -1], [0, 2]]))))

    assert {name: dict(record) for name, record in declared.items()} == {
        "client": {
            "name": "ward-7",
            "num-units": 100,
            "classes": ["a", "b"],
            "input-shape": [8, 8, 3],
            "backbone-hash": "ab",
            "bundle": "cd",
        }
    }
    assert set(update) == {"arrays", "metrics"}
    assert dict(update["metrics"]) == {
        "num-examples": 100,
        "confusion": [1, 2, 3, 4],
        "loss-sum": 0.5,
        "personal-confusion": [1, 2, 3, 4],
        "personal-loss-sum": 0.5,
        "train-loss": 0.25,
    }
    assert dict(pair["metrics"]) == {"num-examples": 100, "noised-correct": 5, "noised-wrong": -1}
    assert dict(matrix["metrics"]) == {"num-examples": 100, "noised-confusion": [5, -1, 0, 2]}
    signed = {"ledger-id": "a", "seq": 1, "head": "b", "public-key": "c", "signature": "d"}
    assert dict(encode_head(SignedHead("a", 1, "b", "c", "d"))) == signed
    assert dict(run_config("r")) == {"run-id": "r"}


def test_a_node_is_configured_under_the_same_names() -> None:
    assert client_ref({"bract-client": "/clients/ward-7"}) == "/clients/ward-7"
    assert client_ref({"partition-id": 1, "num-partitions": 2, "bract-simulation": True}) == 1
    assert pinned_by({"bract-bundle": "ab"}) == "ab"
