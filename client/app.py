"""The handlers of the ClientApp, from which only checked replies and failure codes leave."""

import logging
from collections.abc import Callable

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.admission import admit, client_ref, pinned_by
from client.evaluation.evaluate import evaluate_incoming
from client.secure.exchange import MaskedReply, accept, advertise, deal, leaving_shapes, unmask
from client.session import ClientSession, SessionCache
from common.arrays import Arrays
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
from common.messages.held_array import array_records_in
from common.messages.rounded_update import leaving_arrays
from common.privacy.plan import PrivacyPlan
from common.system.threads import pin_to_one_thread

_log = logging.getLogger("bract.client")
Handler = Callable[[Message, Context], Message]
Answer = tuple[RecordDict, SignedHead | None]
_Work = Callable[[RecordDict, ClientSession], Answer]


def create_app(sessions: SessionCache) -> ClientApp:
    """Return the ClientApp whose handlers answer with the sessions of a cache.

    Args:
        sessions: Opens the client that a message is for. A harness passes one that opens clients of its own.
    """
    app = ClientApp()
    app.query()(_handler("query", declare, sessions))
    app.query("close")(_handler("query.close", close, sessions))
    for work in (advertise, deal, accept, unmask):
        app.query(work.__name__)(_handler(f"query.{work.__name__}", work, sessions))
    app.train()(_handler("train", train, sessions))
    app.evaluate()(_handler("evaluate", evaluate, sessions))
    return app


def _handler(kind: str, work: _Work, sessions: SessionCache) -> Handler:
    """Return a handler that lets only declared fields or a failure code leave."""

    def handler(message: Message, context: Context) -> Message:
        try:
            pin_to_one_thread()
            content = _answer(kind, work, sessions, message.content, context)
        except BractError as error:
            _log.error("refused %s: %s", kind, error)
            return failure_reply(ClientFailure.of(error), message)
        except Exception as error:
            # Flower would send the exception's text to the server, and the text may name a patient.
            _log.exception("failed in %s", kind)
            return failure_reply(ClientFailure.of(error), message)
        return Message(content, reply_to=message)

    return handler


def _answer(kind: str, work: _Work, sessions: SessionCache, asked: RecordDict, context: Context) -> RecordDict:
    """Return the checked reply to a request that the client admits."""
    place, pinned = client_ref(context.node_config), pinned_by(context.node_config)
    # Before the settings: a server of another version may send unknown ones, which would hide the plainer reason.
    check_request(asked, message_type=kind)
    config = sessions.config(context.run_config)
    releases = Releases.of(config)
    # Looked up only to refuse, before anything is computed, a kind of message that nothing may answer.
    releases.fields(kind)
    # Before the session: opening it reads the images, and a run beyond the policy must not get that far.
    admit(config, place, pinned, run_id_of(asked), kind)
    session = sessions.open(config, place, pinned)
    content, head = work(asked, session)
    if head is not None:
        content[LEDGER] = encode_head(head)
    travelling = leaving_shapes(session, kind, asked)
    if kind == "train":
        releases = releases.in_round(server_round_of(asked))
    return check_release(content, message_type=kind, releases=releases, travelling=travelling)


def _incoming(content: RecordDict, session: ClientSession) -> Arrays:
    """Return the model in a message, checked before it touches any image."""
    try:
        record = array_records_in(content)[ARRAYS]
    except KeyError:
        raise FederationError("a message lacks the model") from None
    for name, array in record.items():
        check_tensor(array, session.travelling.get(name, ()))
    arrays = record_to_arrays(record)
    check_incoming(arrays, session.travelling)
    return arrays


def declare(content: RecordDict, session: ClientSession) -> Answer:
    """Declare this client's public constants and agree to the whole run."""
    trainer, run = session.trainer, run_id_of(content)
    # Before the client agrees: without its weights, or with wrong gradients, it would be charged a run in which it
    # cannot train.
    digest = trainer.backbone_sha256
    trainer.check_gradients()
    head = session.guard(run).agree(run)
    declared = Declaration(
        session.name, session.rows.num_units, trainer.classes, trainer.input_shape, digest, session.pinned
    )
    return encode_declaration(declared), head


def close(content: RecordDict, session: ClientSession) -> Answer:
    """Close a run, after which nothing more can be asked in it."""
    run = run_id_of(content)
    session.secrets(run).erase()
    return RecordDict(), session.guard(run).close(run)


def train(content: RecordDict, session: ClientSession) -> Answer:
    """Evaluate the incoming model, train it and return the tensors that travel.

    Raises:
        FederationError: The message does not fit the run that was agreed on.
    """
    incoming, run, server_round = _incoming(content, session), run_id_of(content), server_round_of(content)
    config = session.trainer.config
    if server_round > config.num_rounds:
        raise FederationError("the server asked for a round that the run does not have")
    personal = session.personal(run)
    masked = None if config.secure is None else MaskedReply(session, run, content)

    def compute(plan: PrivacyPlan | None, labels: np.ndarray | None) -> RecordDict:
        own = (personal.before(server_round) or session.common_start()) if session.trainer.personal else {}
        counted = server_round % config.evaluation.every == 0
        evaluation = evaluate_incoming(session, incoming, own, plan, closing=False) if counted else None
        if masked is not None and plan is not None and config.mechanism.clips_units:
            total = session.gradient_sum(incoming, server_round=server_round, plan=plan, label_counts=labels)
            return masked.gradient(total, evaluation, server_round=server_round)
        # A plan for whole clients says nothing about training: the finished update is clipped and noised.
        of_units = plan if config.mechanism.clips_units else None
        trained = session.train(own | incoming, server_round=server_round, plan=of_units, label_counts=labels)
        if own:
            personal.keep(server_round, {name: trained[name] for name in own})
        if masked is not None:
            return masked.update(trained, incoming, evaluation, server_round=server_round)
        # After the noise, and never before: rounding of what is not noised would move the sum beyond the clip bound.
        leaving = leaving_arrays(
            trained if config.takes_statistics else {name: trained[name] for name in incoming},
            incoming,
            Releases.of(config),
            seed=config.seed,
            client=session.name,
            server_round=server_round,
        )
        return encode_update(leaving, session.rows.num_units, evaluation)

    answer = session.guard(run).answer(run, server_round, "train", content, compute, session.draw_labels)
    if masked is not None:
        masked.keep(server_round)
    return answer


def evaluate(content: RecordDict, session: ClientSession) -> Answer:
    """Return counts of the final model's predictions on held-out images."""
    incoming, run, server_round = _incoming(content, session), run_id_of(content), server_round_of(content)
    masked = None if session.trainer.config.secure is None else MaskedReply(session, run, content)

    def compute(plan: PrivacyPlan | None, _: np.ndarray | None) -> RecordDict:
        trainer = session.trainer
        own = (session.personal(run).before(server_round + 1) or session.common_start()) if trainer.personal else {}
        evaluation = evaluate_incoming(session, incoming, own, plan, closing=True)
        if masked is not None:
            return masked.closing(evaluation)
        return encode_evaluation(session.rows.num_units, evaluation)

    answer = session.guard(run).answer(run, server_round, "closing", content, compute)
    if masked is not None:
        masked.keep(session.trainer.config.num_rounds + 1)
    return answer


class _ProcessSessions(SessionCache):
    """Sessions of this process, shared by every copy of the app in it."""

    def __reduce__(self) -> tuple[Callable[[], SessionCache], tuple[()]]:
        # Ray sends a copy of the app with each message. A copy must find the sessions that are open already.
        return _process_sessions, ()


def _process_sessions() -> SessionCache:
    return SESSIONS


# At the end, because creating the app needs every handler. Flower loads `app` by this name.
SESSIONS = _ProcessSessions()
app = create_app(SESSIONS)
