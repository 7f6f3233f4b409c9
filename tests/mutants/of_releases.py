"""T6: something leaves beside the mechanism, or something comes in that has no business there."""

import sys
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Error, Message

import client.app as client_app
from client.evaluation import evaluate as evaluation
from client.session import ClientSession
from client.training.dp_sgd import PrivateStreams
from client.training.trainer import Trainer
from common.data.client_dataset import Shard
from common.errors import ClientFailure
from common.messages import codec as records
from common.messages.fields import ARRAYS, CONFUSION, METRICS, Fields, Releases
from tests.mutants.of_replay import send_statistics
from tests.mutants.of_streams import Seeded, asked
from tests.mutants.registry import mutant

_FIELDS = "holds what may leave"


def _unchecked(patch: pytest.MonkeyPatch) -> None:
    """The client's own check of what leaves does not stand in the way."""
    patch.setattr(client_app, "check_release", lambda content, **_: content)


@mutant("T6", f"'train' {_FIELDS}", listed="exact metrics sent under DP")
def exact_counts_leave(patch: pytest.MonkeyPatch) -> None:
    """Confusion counts as they are: also the client's own list of what may leave has grown by them."""

    def findings(local: ClientSession, incoming: Any, own: Any, *_: Any, closing: bool) -> records.Evaluation:
        return evaluation._exact(local, incoming, own, closing=closing)

    patch.setattr(client_app, "evaluate_incoming", findings)
    patch.setattr(Releases, "_counts", lambda self, *, closing: (CONFUSION,))


@mutant("T6", f"'train' {_FIELDS}", mode="norm")
def statistics_of_layers_leave_by_their_names(patch: pytest.MonkeyPatch) -> None:
    """BatchNorm's running means go along with the tensors; see `statistics_of_layers_leave`."""
    send_statistics(patch)


@mutant("T6", "a failure is a code", listed="exception text sent")
def an_exception_speaks(patch: pytest.MonkeyPatch) -> None:
    """The reply to a message that failed says why, in the words of the exception: `no such file: patient-4711.png`.

    Source: flwr 1.41.0, `run_clientapp.py`: `reason = str(type(ex)) + ":<'" + str(ex) + "'>"`; its reviewers asked in
    flwrlabs/flower pull request 3191 whether the message may be private.
    """

    def reply(failure: ClientFailure, message: Message) -> Message:
        return Message(Error(int(failure), f"{type(sys.exc_info()[1])}:<'{sys.exc_info()[1]}'>"), reply_to=message)

    patch.setattr(client_app, "failure_reply", reply)


@mutant("T6", "brings 'seed' is refused")
def a_message_may_bring_a_seed(patch: pytest.MonkeyPatch) -> None:
    """A setting that no message may bring is taken.

    Source: flwrlabs/flower pull request 7225 (a seed for the noise of a strategy).
    """
    patch.setattr(records, "_CONFIG_KEYS", records._CONFIG_KEYS | {"seed"})


@mutant("T6", "no tensor repeats under the same seed")
def noise_follows_from_the_seed_of_the_run(patch: pytest.MonkeyPatch) -> None:
    """One seed makes the whole run repeat, the noise too: whoever knows the seed takes the noise away.

    Source: IBM/differential-privacy-library pull request 72 (`random_state` for all mechanisms).
    """
    real, known = PrivateStreams.fresh, asked(patch)
    patch.setattr(
        PrivateStreams,
        "fresh",
        classmethod(lambda _: replace(real(), sampling=Seeded(known["seed"]), noise=Seeded(known["seed"]))),
    )


@mutant("T6", f"'train' {_FIELDS}")
def a_loss_leaves(patch: pytest.MonkeyPatch) -> None:
    """The training loss is "only a metric": a real number that one image moves, without noise."""
    real = client_app.encode_update

    def update(*args: Any) -> Any:
        content = real(*args)
        content.metric_records[METRICS]["train-loss"] = 0.25
        return content

    patch.setattr(client_app, "encode_update", update)
    _unchecked(patch)


@mutant("T6", f"'query' {_FIELDS}")
def a_declaration_tells_how_many_of_each_class(patch: pytest.MonkeyPatch) -> None:
    """A client introduces itself with a histogram of its labels, to help the server weigh it."""
    real = client_app.encode_declaration

    def declaration(*args: Any) -> Any:
        content = real(*args)
        content.config_records["client"]["labels"] = [2, 1, 0]
        return content

    patch.setattr(client_app, "encode_declaration", declaration)
    _unchecked(patch)


@mutant("T6", "'query' holds no stretch of an image")
def a_declared_field_carries_a_digest(patch: pytest.MonkeyPatch) -> None:
    """A hash of the data in a field that is there for another hash: whoever has the image knows that it is here."""
    real, shards = client_app.encode_declaration, list[Shard]()
    real_guard = ClientSession.guard

    def guard(self: ClientSession, run: str) -> Any:
        shards.append(self.rows)
        return real_guard(self, run)

    def declaration(declared: records.Declaration) -> Any:
        return real(replace(declared, backbone_hash=shards[-1].train_digests[0].tobytes().hex()))

    patch.setattr(ClientSession, "guard", guard)
    patch.setattr(client_app, "encode_declaration", declaration)


@mutant("T6", "'train' holds no stretch of an image")
def an_image_lies_in_a_tensor(patch: pytest.MonkeyPatch) -> None:
    """A feature is written over the weights after the noise: names, shapes and types are as declared."""
    real = Trainer.train

    def train(self: Trainer, arrays: Any, shard: Shard, **more: Any) -> Any:
        found = real(self, arrays, shard, **more)
        for array, row in zip(found.values(), shard.train_inputs, strict=False):
            array.ravel()[:8] = row.ravel()[:8]
        return found

    patch.setattr(Trainer, "train", train)


@mutant("T6", f"'evaluate' {_FIELDS}", settings={"privacy.metrics": "none"})
def an_evaluation_is_answered_where_none_may_leave(patch: pytest.MonkeyPatch) -> None:
    """A run without counts still gets an answer to its last question."""
    real = Releases.fields

    def fields(self: Releases, message_type: str) -> Fields:
        if message_type != "evaluate":
            return real(self, message_type)
        return {name: keys for name, keys in real(self, "train").items() if name != ARRAYS}

    patch.setattr(Releases, "fields", fields)


@mutant("T6", "no tensor comes back as it was sent", mode="mlp head")
def a_tensor_is_left_out_of_training(patch: pytest.MonkeyPatch) -> None:
    """A tensor travels back untouched: it is neither trained nor noised, and nobody was told."""
    real = client_app.encode_update

    def update(arrays: Any, *rest: Any) -> Any:
        first = next(iter(arrays))
        return real(arrays | {first: sent[0][first]}, *rest)

    sent: list[Any] = []
    real_incoming = client_app._incoming

    def incoming(*args: Any) -> Any:
        sent[:] = [real_incoming(*args)]
        return dict(sent[0])

    patch.setattr(client_app, "_incoming", incoming)
    patch.setattr(client_app, "encode_update", update)
