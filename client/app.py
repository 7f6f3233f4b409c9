"""ClientApp handlers: decode, call, encode; nothing else may leave."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.admission import admit, client_ref, pinned_by
from client.evaluation.evaluate import evaluate_incoming
from client.session import ClientSession, open_session
from common.arrays import Arrays
from common.config.loading import Scalar, parse
from common.config.schema import RunConfig
from common.errors import BractError, ClientFailure, FederationError
from common.ledger.signed_heads import SignedHead
from common.messages.checks import check_incoming, check_release, check_request, check_tensor
from common.messages.codec import (
    Declaration,
    encode_declaration,
    encode_evaluation,
    encode_head,
    encode_update,
    failure_reply,
    record_to_arrays,
    run_id_of,
    server_round_of,
)
from common.messages.fields import ARRAYS, LEDGER, Releases
from common.privacy.plan import PrivacyPlan
from common.system.threads import pin_to_one_thread

app = ClientApp()
_log = logging.getLogger("bract.client")
Handler = Callable[[Message, Context], Message]
Answer = tuple[RecordDict, SignedHead | None]
_Work = Callable[[RecordDict, ClientSession], Answer]


def _release(kind: str) -> Callable[[_Work], Handler]:
    """Wrap a handler so that only declared fields, or a bare failure code, leave the client."""

    def wrap(work: _Work) -> Handler:
        @functools.wraps(work)
        def handler(message: Message, context: Context) -> Message:
            try:
                pin_to_one_thread()
                config = _config(tuple(sorted(context.run_config.items())))
                releases = Releases.of(config)
                releases.fields(kind)  # refuses before anything is computed
                place = client_ref(context.node_config)
                check_request(message.content, message_type=kind)
                pinned = pinned_by(context.node_config)
                admit(config, place, pinned, run_id_of(message.content), kind)
                session = open_session(config, place)
                if pinned:
                    session = replace(session, pinned=pinned)
                content, head = work(message.content, session)
                if head is not None:
                    content[LEDGER] = encode_head(head)
                check_release(content, message_type=kind, releases=releases, travelling=session.travelling)
            except BractError as error:
                _log.error("refused %s: %s", kind, error)
                return failure_reply(ClientFailure.of(error), message)
            except Exception as error:
                _log.exception("failed in %s", kind)
                return failure_reply(ClientFailure.of(error), message)
            return Message(content, reply_to=message)

        return handler

    return wrap


@lru_cache(maxsize=4)
def _config(items: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    return parse(dict(items))


def _incoming(content: RecordDict, session: ClientSession) -> Arrays:
    """The model in a message, checked before it touches any image."""
    try:
        record = content.array_records[ARRAYS]
    except KeyError:
        raise FederationError("a message lacks the model") from None
    for name, array in record.items():
        check_tensor(array, session.travelling.get(name, ()))
    arrays = record_to_arrays(record)
    check_incoming(arrays, session.travelling)
    return arrays


@app.query()
@_release("query")
def declare(content: RecordDict, session: ClientSession) -> Answer:
    """Say who this client is, public constants only, and agree to the whole run or refuse it."""
    trainer, digest = session.trainer, ""
    if trainer.config.model.backbone != "cnn":
        from common.models.backbone_info import backbone_info

        digest = backbone_info(trainer.config.backbone_spec).sha256
    run = run_id_of(content)
    head = session.guard(run).agree(run)
    declared = Declaration(
        session.name, session.rows.num_units, trainer.classes, trainer.input_shape, digest, session.pinned
    )
    return encode_declaration(declared), head


@app.query("close")
@_release("query.close")
def close(content: RecordDict, session: ClientSession) -> Answer:
    """The server has all it will ask for in this run."""
    run = run_id_of(content)
    return RecordDict(), session.guard(run).close(run)


@app.train()
@_release("train")
def train(content: RecordDict, session: ClientSession) -> Answer:
    """Evaluate the incoming model as far as the run allows, train it, send back what travels.

    Raises:
        FederationError: The message is not what the run agreed on; only its code leaves.
    """
    incoming, run, server_round = _incoming(content, session), run_id_of(content), server_round_of(content)
    if server_round > session.trainer.config.num_rounds:
        raise FederationError("the server asked for a round that the run does not have")
    personal = session.personal(run)

    def compute(plan: PrivacyPlan | None) -> RecordDict:
        own = (personal.before(server_round) or session.common_start()) if session.trainer.personal else {}
        evaluation = evaluate_incoming(session, incoming, own, plan, closing=False)
        trained = session.trainer.train(
            own | incoming, session.rows, name=session.name, server_round=server_round, plan=plan
        )
        if own:
            personal.keep(server_round, {name: trained[name] for name in own})
        return encode_update({name: trained[name] for name in incoming}, session.rows.num_units, evaluation)

    return session.guard(run).answer(run, server_round, "train", content, compute)


@app.evaluate()
@_release("evaluate")
def evaluate(content: RecordDict, session: ClientSession) -> Answer:
    """Close a run with counts of the final model's predictions on held-out images, as far as the run allows."""
    incoming, run, server_round = _incoming(content, session), run_id_of(content), server_round_of(content)

    def compute(plan: PrivacyPlan | None) -> RecordDict:
        trainer = session.trainer
        own = (session.personal(run).before(server_round + 1) or session.common_start()) if trainer.personal else {}
        evaluation = evaluate_incoming(session, incoming, own, plan, closing=True)
        return encode_evaluation(session.rows.num_units, evaluation)

    return session.guard(run).answer(run, server_round, "closing", content, compute)
