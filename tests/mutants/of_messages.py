"""Messages of which something is not checked, and replies that carry more than they may."""

from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict

from common.errors import BundleError, ClientFailure, DataError, FederationError, PrivacyError
from common.ledger.database import Head
from common.ledger.signed_heads import sign_head
from common.messages import checks, codec, serialization
from common.messages.codec import CONFIG, PROTOCOL, RUN_ID, arrays_to_record, encode_head, failure_reply
from common.messages.fields import LEDGER, Releases
from server.rounds import messaging, update_filter
from server.rounds.messaging import failure_of
from tests.common.messages import test_checks as wire
from tests.common.messages import test_codec as codecs
from tests.mutants.faults import every_case, planted, planted_value
from tests.support.ledger.builders import KEYS
from tests.support.server.replies import PRIVATE, WEIGHTS, reply

RUN = "ab" * 16
SHAPES = {name: array.shape for name, array in WEIGHTS.items()}


def a_tensor_that_leaves_has_its_declared_shape() -> None:
    content = reply("train", PRIVATE)
    name = next(iter(SHAPES))
    content.array_records["arrays"][name] = arrays_to_record({name: np.zeros((99, 99), dtype=np.float32)})[name]
    with pytest.raises(PrivacyError, match="another shape"):
        checks.check_release(content, message_type="train", releases=PRIVATE, travelling=SHAPES)


_FIELDS = partial(wire.test_check_release_refuses_any_field_that_is_extra_or_missing, kind="train", run="private")
_RECORDS = partial(wire.test_check_release_refuses_any_record_that_is_extra_or_missing, kind="train", run="private")
planted(
    _RECORDS,
    checks.check_release,
    {
        "a record more in a reply": ("set(content) != set(allowed)", "not set(content) >= set(allowed)"),
        "a record less in a reply": ("set(content) != set(allowed)", "not set(content) <= set(allowed)"),
    },
)
_HELD = "set(content[name]) != set(travelling if keys is None else keys)"
planted(
    _FIELDS,
    checks.check_release,
    {
        "a field more in a reply": (_HELD, _HELD.replace("!=", "<")),
        "a field less in a reply": (_HELD, _HELD.replace("!=", ">")),
        "metrics that nobody looks at": (_HELD, f"name != 'metrics' and {_HELD}"),
    },
)
planted(
    wire.test_check_release_refuses_a_record_of_another_kind,
    checks.check_release,
    {
        "text in place of tensors": ("not isinstance(content[name], _KINDS[name])", "False"),
    },
)
planted(
    a_tensor_that_leaves_has_its_declared_shape,
    checks.check_release,
    {
        "a tensor of another shape that leaves": ("tuple(array.shape) != travelling[name]", "False"),
    },
)
planted(
    partial(wire.test_check_reply_refuses_what_was_not_agreed, how="order"),
    checks.check_reply,
    {
        "tensors in any order": ("list(record) != list(travelling)", "set(record) != set(travelling)"),
    },
)
planted(
    partial(wire.test_check_reply_refuses_what_was_not_agreed, how="weight"),
    checks.check_reply,
    {
        "an update that weighs what it likes": ("!= declared.num_units", "< declared.num_units"),
    },
)
_COUNTS = wire.test_private_replies_declare_no_counts_at_all
planted(
    _COUNTS,
    Releases._counts,
    {
        "exact counts on the list of a private run": ('if self.metrics == "private":', 'if self.metrics == "exact":'),
    },
)
planted(
    wire.test_exact_counts_under_a_mechanism_come_without_a_loss,
    Releases._counts,
    {
        "a loss beside exact counts": ("if self.mechanism.releases_losses else", "if True else"),
    },
)
planted(
    every_case(wire.test_releases_refuse_extra_fields_under_privacy),
    Releases.__post_init__,
    {
        "losses under a mechanism": ("not self.mechanism.releases_losses and ", "False and "),
    },
)
planted(
    partial(wire.test_releases_refuse_requests_that_nothing_may_answer, kind="evaluate", run="silent"),
    Releases.fields,
    {
        "an evaluation where no counts may leave": (
            'message_type == "evaluate" and self.metrics != "none"',
            'message_type == "evaluate"',
        ),
    },
)
planted(
    wire.test_releases_of_a_private_run_are_arrays_the_declared_size_noised_counts_and_the_head,
    Releases.signed,
    {
        "replies without a head": ("self.mechanism.noise_at_client", "self.mechanism.noise_at_server"),
    },
)


def a_tensor_is_what_its_header_says() -> None:
    good = Array(np.zeros((2, 3), dtype=np.float32))
    checks.check_tensor(good, (2, 3))
    for shape in ((3, 2), (6,), (2, 3, 1)):
        with pytest.raises(FederationError):
            checks.check_tensor(good, shape)
    longer = Array(dtype="float32", shape=(2, 3), stype=good.stype, data=good.data + b"patient 4711")
    whole = Array(np.zeros((2, 3), dtype=np.int64))
    other = Array(dtype="float32", shape=(2, 3), stype="pickle", data=good.data)
    for bad in (longer, whole, other):
        with pytest.raises(FederationError):
            checks.check_tensor(bad, (2, 3))


planted(
    a_tensor_is_what_its_header_says,
    checks.check_tensor,
    {
        "bytes behind a tensor": ("len(array.data) - stream.tell() == dtype.itemsize * math.prod(shape)", "True"),
        "a tensor of any shape": ("tuple(claimed) != tuple(shape) or ", ""),
        "a tensor of any type": ("dtype.str not in types or ", ""),
        "a tensor of any writer": ("array.stype != _NUMPY", "False"),
    },
)


def a_model_that_came_is_the_agreed_one() -> None:
    checks.check_incoming(WEIGHTS, SHAPES)
    names = list(WEIGHTS)
    for bad in (
        {**WEIGHTS, names[0]: np.full_like(WEIGHTS[names[0]], np.nan)},
        {**WEIGHTS, names[0]: np.full_like(WEIGHTS[names[0]], np.inf)},
        {names[0]: WEIGHTS[names[0]]},
        {**WEIGHTS, "more": np.zeros(2)},
        {**WEIGHTS, names[0]: np.zeros(1)},
    ):
        with pytest.raises(FederationError):
            checks.check_incoming(bad, SHAPES)


planted(
    a_model_that_came_is_the_agreed_one,
    checks.check_incoming,
    {
        "a model that is not finite": ("np.isfinite(array).all()", "not np.isnan(array).any()"),
        "a model of other tensors": ("!= dict(trainable)", "== {}"),
    },
)


def a_request_is_of_this_version_and_holds_nothing_else() -> None:
    def query(**settings: int) -> RecordDict:
        return RecordDict({CONFIG: ConfigRecord({RUN_ID: RUN, **settings})})

    checks.check_request(query(**{PROTOCOL: codec.PROTOCOL_VERSION}), message_type="query")
    for version in ({}, {PROTOCOL: codec.PROTOCOL_VERSION - 1}, {PROTOCOL: codec.PROTOCOL_VERSION + 1}):
        with pytest.raises(BundleError):
            checks.check_request(query(**version), message_type="query")
    more = query(**{PROTOCOL: codec.PROTOCOL_VERSION})
    more["arrays"] = arrays_to_record(WEIGHTS)
    with pytest.raises(FederationError):
        checks.check_request(more, message_type="query")
    more["more"] = ConfigRecord({"text": "x"})
    for kind in ("train", "evaluate"):
        with pytest.raises(FederationError):
            checks.check_request(more, message_type=kind)


_REQUEST = a_request_is_of_this_version_and_holds_nothing_else
planted(
    _REQUEST,
    checks._check_protocol,
    {
        "a server of an older version": (
            "version != PROTOCOL_VERSION",
            "version is None or version > PROTOCOL_VERSION",
        ),
        "a server of no version": ("version != PROTOCOL_VERSION", "version not in (None, PROTOCOL_VERSION)"),
    },
)
planted(
    _REQUEST,
    checks.check_request,
    {
        "a record that no message may have": ("set(content) - allowed", "set(content) - allowed - {'more'}"),
        "a model beside a query": (
            '{CONFIG} if message_type.startswith("query") else {CONFIG, ARRAYS}',
            "{CONFIG, ARRAYS}",
        ),
    },
)

_RUNS = every_case(codecs.test_run_id_of_refuses_messages_without_a_run_and_settings_that_no_message_may_bring)
planted(
    _RUNS,
    codec.run_id_of,
    {
        "a run id that goes on": ('re.fullmatch("[0-9a-f]{32}", value)', 're.match("[0-9a-f]{32}", value)'),
        "a run id in capitals": ('"[0-9a-f]{32}"', '"[0-9a-fA-F]{32}"'),
        "a setting that no message may bring": ("set(record) - _CONFIG_KEYS", "set()"),
    },
)
planted_value("a learning rate that a message brings", _RUNS, codec, "_CONFIG_KEYS", codec._CONFIG_KEYS | {"lr"})
planted(
    every_case(codecs.test_server_round_of_refuses_what_is_no_round),
    codec.server_round_of,
    {
        "a round before the first": ("value < 1", "value < 0"),
    },
)
_DECLARED = every_case(codecs.test_decode_declaration_refuses_a_wrong_type_or_size)
planted(
    _DECLARED,
    codec.decode_declaration,
    {
        "a name of any length": ("not 0 < len(name) <= 64 or ", ""),
        "a name that a terminal obeys": (" or not name.isprintable()", ""),
        "a pin of any length": ('re.fullmatch("([0-9a-f]{64})?", bundle)', 're.match("([0-9a-f]{64})?", bundle)'),
        "a size of nothing": ("and units > 0 and", "and"),
        "classes without end": ("len(classes) > _MOST_CLASSES or ", ""),
    },
)
_MATRIX = every_case(codecs.test_decode_findings_refuses_what_is_no_confusion_matrix)
planted(
    _MATRIX,
    codec._counts,
    {
        "counts below nothing": ("(matrix < 0).any() or ", ""),
    },
)
planted(
    _MATRIX,
    codec._square,
    {
        "counts of other classes": ("num_classes not in (None, side) or ", ""),
        "counts that are not whole": (' or flat.dtype.kind != "i"', ""),
    },
)
planted(
    codecs.test_sum_counts_adds_and_does_not_average,
    codec.sum_counts,
    {
        "counts of one client of two": ("for evaluation in evaluations if", "for evaluation in evaluations[:1] if"),
    },
)


def a_head_is_short() -> None:
    head = sign_head(KEYS, Head(7, "ab" * 32))
    content = RecordDict({LEDGER: encode_head(head)})
    assert codec.decode_head(content) == head
    for field in ("ledger-id", "head", "public-key", "signature"):
        longer = RecordDict({LEDGER: ConfigRecord(dict(encode_head(head)) | {field: "ab" * 1000})})
        with pytest.raises(FederationError, match="too long"):
            codec.decode_head(longer)


planted(
    a_head_is_short,
    codec.decode_head,
    {
        "a head of any length": ("max(map(len, map(str, (ledger, head, key, signature)))) > _LONGEST_HEX", "False"),
    },
)


def a_failure_is_a_code_at_both_ends() -> None:
    asked = Message(RecordDict(), 2, "train")
    try:
        raise DataError("patient-4711.png is damaged")
    except DataError as error:
        answer = failure_reply(ClientFailure.of(error), asked)
    assert vars(answer.error) == {"_code": int(ClientFailure.DATA), "_reason": "DATA"}
    told = Message(Error(4711, "patient-4711.png"), reply_to=asked)
    spelt = Message(Error(int(ClientFailure.DATA), "patient-4711.png"), reply_to=asked)
    assert [failure_of(told), failure_of(spelt), failure_of(None)] == ["OTHER", "DATA", "MESSAGE"]


_FAILURE = a_failure_is_a_code_at_both_ends
planted(
    _FAILURE,
    codec.failure_reply,
    {
        "an error's own words that leave": ("reason=failure.name", "reason=str(__import__('sys').exc_info()[1])"),
    },
)
planted(
    _FAILURE,
    messaging.failure_of,
    {
        "an error's own code that is shown": (
            "if code in set(ClientFailure) else OTHER",
            "if code in set(ClientFailure) else reply.error.reason",
        ),
        "an error's own words that are shown": ("ClientFailure(code).name", "reply.error.reason"),
    },
)


def a_request_is_named_by_all_that_was_asked() -> None:
    def asked(server_round: int = 1, last: float = 1.0, name: str = "w") -> RecordDict:
        values = np.zeros(5000, dtype=np.float32)
        values[-1] = last
        return RecordDict(
            {CONFIG: ConfigRecord({"server-round": server_round}), "arrays": arrays_to_record({name: values})}
        )

    names = {serialization.digest_of(each) for each in (asked(), asked(2), asked(last=2.0), asked(name="v"))}
    assert len(names) == 4
    assert serialization.digest_of(asked()) == serialization.digest_of(asked())


_NAMED = a_request_is_named_by_all_that_was_asked
planted(
    _NAMED,
    serialization.digest_of,
    {
        "a request without its settings": ("json.dumps(settings, sort_keys=True, default=str).encode()", "b''"),
        "a request by the beginning of its model": ("digest.update(part)", "digest.update(part[:1000])"),
        "a request without its tensors' names": ("for part in _parts(content):", "for part in _parts(content)[2:]:"),
    },
)


def a_stored_reply_is_whole() -> None:
    content = reply("train", PRIVATE)
    del content[LEDGER]
    packed = serialization.pack(content)
    assert serialization.pack(serialization.unpack(packed)) == packed
    for damaged in (packed[:-1], packed + b"x", packed[:9]):
        with pytest.raises(Exception, match="stored reply is damaged"):
            serialization.unpack(damaged)


planted(
    a_stored_reply_is_whole,
    serialization.unpack,
    {
        "a stored reply that was cut off": ("position != len(packed)", "position < len(packed)"),
        "a stored reply that goes on": ("position != len(packed)", "position > len(packed)"),
    },
)


def absurd_updates_are_left_out_and_a_nan_is_absurd() -> None:
    norms = {"a": 1.0, "b": 2.0, "c": 1.5, "d": 3e7, "e": float("nan"), "f": float("inf")}
    assert update_filter.outlier_updates(norms, max_update_norm=None) == {"d", "e", "f"}
    assert update_filter.outlier_updates({"a": 1.0, "b": 9.0}, max_update_norm=5.0) == {"b"}


planted(
    absurd_updates_are_left_out_and_a_nan_is_absurd,
    update_filter.outlier_updates,
    {
        "an update that is no number": ("not norm <= longest", "norm > longest"),
        "an update of any length": ("math.inf if max_update_norm is None else max_update_norm", "math.inf"),
    },
)
