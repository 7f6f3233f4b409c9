"""ClientApp handlers: decode, call, encode; nothing else may leave."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.admission import admit, pinned_by, place_of
from client.evaluation.evaluate import findings_of
from client.session import Local, local_of
from client.training.trainer import Arrays
from common.config.loading import parse
from common.config.schema import RunConfig
from common.errors import BractError, ClientFailure, FederationError
from common.ledger.signed_heads import SignedHead
from common.messages.checks import check_incoming, check_release, check_request, check_tensor
from common.messages.codec import (
    Declaration,
    encode_declaration,
    encode_findings,
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
_Work = Callable[[RecordDict, Local], Answer]


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
                place = place_of(context.node_config)
                check_request(message.content, message_type=kind)
                pinned = pinned_by(context.node_config)
                admit(config, place, pinned, run_id_of(message.content), kind)
                local = local_of(config, place)
                if pinned:
                    local = replace(local, pinned=pinned)
                content, head = work(message.content, local)
                if head is not None:
                    content[LEDGER] = encode_head(head)
                check_release(content, message_type=kind, releases=releases, travelling=local.travelling)
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
def _config(items: tuple[tuple[str, str | int | float | bool], ...]) -> RunConfig:
    return parse(dict(items))


def _incoming(content: RecordDict, local: Local) -> Arrays:
    """The model in a message, checked before it touches any image."""
    try:
        record = content.array_records[ARRAYS]
    except KeyError:
        raise FederationError("a message lacks the model") from None
    for name, array in record.items():
        check_tensor(array, local.travelling.get(name, ()))
    arrays = record_to_arrays(record)
    check_incoming(arrays, local.travelling)
    return arrays


@app.query()
@_release("query")
def declare(content: RecordDict, local: Local) -> Answer:
    """Say who this client is, public constants only, and agree to the whole run or refuse it."""
    learner, digest = local.learner, ""
    if learner.config.model.backbone != "cnn":
        from common.models.backbone_info import backbone_facts

        digest = backbone_facts(learner.config).sha256
    run = run_id_of(content)
    head = local.guard(run).agree(run)
    declared = Declaration(local.name, local.rows.num_units, learner.classes, learner.input_shape, digest, local.pinned)
    return encode_declaration(declared), head


@app.query("close")
@_release("query.close")
def close(content: RecordDict, local: Local) -> Answer:
    """The server has all it will ask for in this run."""
    run = run_id_of(content)
    return RecordDict(), local.guard(run).close(run)


@app.train()
@_release("train")
def train(content: RecordDict, local: Local) -> Answer:
    """Evaluate the incoming model as far as the run allows, train it, send back what travels.

    Raises:
        FederationError: The message is not what the run agreed on; only its code leaves.
    """
    incoming, run, server_round = _incoming(content, local), run_id_of(content), server_round_of(content)
    if server_round > local.learner.config.num_rounds:
        raise FederationError("the server asked for a round that the run does not have")
    personal = local.personal(run)

    def compute(plan: PrivacyPlan | None) -> RecordDict:
        own = (personal.before(server_round) or local.common_start()) if local.learner.personal else {}
        findings = findings_of(local, incoming, own, plan, closing=False)
        trained = local.learner.train(own | incoming, local.rows, name=local.name, server_round=server_round, plan=plan)
        if own:
            personal.keep(server_round, {name: trained[name] for name in own})
        return encode_update({name: trained[name] for name in incoming}, local.rows.num_units, findings)

    return local.guard(run).answer(run, server_round, "train", content, compute)


@app.evaluate()
@_release("evaluate")
def evaluate(content: RecordDict, local: Local) -> Answer:
    """Close a run with counts of the final model's predictions on held-out images, as far as the run allows."""
    incoming, run, server_round = _incoming(content, local), run_id_of(content), server_round_of(content)

    def compute(plan: PrivacyPlan | None) -> RecordDict:
        learner = local.learner
        own = (local.personal(run).before(server_round + 1) or local.common_start()) if learner.personal else {}
        findings = findings_of(local, incoming, own, plan, closing=True)
        return encode_findings(local.rows.num_units, findings)

    return local.guard(run).answer(run, server_round, "closing", content, compute)
