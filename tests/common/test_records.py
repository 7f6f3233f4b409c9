"""The wire contract: what may leave a client, and that both directions agree."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.errors import FederationError, PrivacyError
from common.metrics import Counts
from common.records import (
    ALLOWED_REPLIES,
    ARRAYS,
    CLIENT,
    CONFIG,
    CONFUSION,
    LOSS_SUM,
    METRICS,
    NUM_EXAMPLES,
    SERVER_ROUND,
    Declaration,
    arrays_to_record,
    check_release,
    decode_counts,
    decode_declaration,
    encode_counts,
    encode_declaration,
    encode_update,
    record_to_arrays,
    require_release,
    server_round_of,
    sum_counts,
)

_ARRAYS: dict[str, np.ndarray] = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1, 2], dtype=np.float32),
}
_COUNTS = Counts(np.array([[3, 1], [0, 2]]), 2.5)
_DECLARED = Declaration("00003", 287, ("cat", "dog"), (8, 8, 1), "2cae")


def _reply(kind: str, *, private: bool) -> RecordDict:
    if kind == "query":
        return encode_declaration(_DECLARED)
    if kind == "evaluate":
        return encode_counts(10, _COUNTS)
    return encode_update(_ARRAYS, 10, None if private else _COUNTS)


def _check(content: RecordDict, kind: str, *, private: bool) -> RecordDict:
    return check_release(
        content, message_type=kind, private=private, trainable={name: array.shape for name, array in _ARRAYS.items()}
    )


def test_arrays_survive_the_wire_in_order() -> None:
    back = record_to_arrays(arrays_to_record(_ARRAYS))

    assert list(back) == list(_ARRAYS)
    assert all(np.array_equal(back[name], _ARRAYS[name]) for name in _ARRAYS)


def test_arrays_survive_the_wire_when_they_are_transposed_views() -> None:
    view = _ARRAYS["b.weight"].T

    assert np.array_equal(record_to_arrays(arrays_to_record({"w": view}))["w"], view)


def test_record_to_arrays_narrows_what_aggregation_widened() -> None:
    back = record_to_arrays(arrays_to_record({"w": np.array([0.1, 0.2], dtype=np.float64)}))

    assert back["w"].dtype == np.float32


def test_decode_declaration_is_the_inverse_of_encode() -> None:
    assert decode_declaration(encode_declaration(_DECLARED)) == _DECLARED


@pytest.mark.parametrize("field", ["name", "num-units", "classes", "input-shape", "backbone-hash"])
def test_decode_declaration_names_a_missing_field(field: str) -> None:
    content = encode_declaration(_DECLARED)
    del content.config_records[CLIENT][field]

    with pytest.raises(FederationError, match=f"lacks '{field}'"):
        decode_declaration(content)


def test_decode_declaration_refuses_a_reply_without_its_record() -> None:
    with pytest.raises(FederationError, match=f"lacks '{CLIENT}'"):
        decode_declaration(encode_counts(3, _COUNTS))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("num-units", "287"),
        ("num-units", 0),
        ("num-units", -5),
        ("num-units", 2.0),
        ("classes", "cat"),
        ("input-shape", 8),
        ("backbone-hash", b"2cae"),
    ],
)
def test_decode_declaration_refuses_a_wrong_type_or_size(field: str, value: str | int | float | bytes) -> None:
    content = encode_declaration(_DECLARED)
    content.config_records[CLIENT][field] = value

    with pytest.raises(FederationError, match="wrong type"):
        decode_declaration(content)


@pytest.mark.parametrize(("field", "value"), [("input-shape", ["a"]), ("input-shape", [8.5]), ("num-units", True)])
def test_decode_declaration_refuses_a_shape_or_size_that_is_not_whole(field: str, value: bool | list[str]) -> None:
    content = encode_declaration(_DECLARED)
    content.config_records[CLIENT][field] = value

    with pytest.raises(FederationError, match="wrong type"):
        decode_declaration(content)


@pytest.mark.parametrize("content", [encode_update(_ARRAYS, 7, _COUNTS), encode_counts(7, _COUNTS)])
def test_decode_counts_is_the_inverse_of_encode(content: RecordDict) -> None:
    counts = decode_counts(content)

    assert counts is not None
    assert counts.confusion.tolist() == _COUNTS.confusion.tolist()
    assert counts.loss_sum == _COUNTS.loss_sum
    assert content.metric_records[METRICS][NUM_EXAMPLES] == 7


def test_decode_counts_is_none_when_the_reply_carries_none() -> None:
    assert decode_counts(encode_update(_ARRAYS, 7, None)) is None


@pytest.mark.parametrize(
    ("confusion", "loss"),
    [([1, 2, 3], 1.0), ([1, 2, 3, -1], 1.0), ([1, 2, 3, 4], [1.0])],
    ids=["not-square", "negative", "many-losses"],
)
def test_decode_counts_refuses_what_is_no_confusion_matrix(confusion: list[int], loss: float | list[float]) -> None:
    metrics = MetricRecord({NUM_EXAMPLES: 6, CONFUSION: confusion, LOSS_SUM: loss})

    with pytest.raises(FederationError, match="no confusion matrix"):
        decode_counts(RecordDict({METRICS: metrics}))


@pytest.mark.parametrize(
    "metrics",
    [{CONFUSION: [1, 2, 3, 4]}, {CONFUSION: [1], LOSS_SUM: 1.0}, {CONFUSION: [], LOSS_SUM: 1.0}],
    ids=["no-loss", "one-class", "no-class"],
)
def test_sum_counts_refuses_what_cannot_be_added(metrics: dict[str, float | list[int]]) -> None:
    broken = RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: 1, **metrics})})

    with pytest.raises(FederationError):
        sum_counts([encode_counts(6, _COUNTS), broken], NUM_EXAMPLES)


def test_sum_counts_adds_and_does_not_average() -> None:
    summed = sum_counts([encode_counts(1, _COUNTS), encode_counts(1000, _COUNTS)], NUM_EXAMPLES)

    assert summed[CONFUSION] == [6, 2, 0, 4]
    assert summed[LOSS_SUM] == 5.0


def test_sum_counts_is_empty_when_no_client_sent_counts() -> None:
    assert not sum_counts([encode_update(_ARRAYS, 1, None)] * 2, NUM_EXAMPLES)


@pytest.mark.parametrize(("kind", "private"), list(ALLOWED_REPLIES))
def test_check_release_passes_what_the_encoders_make(kind: str, private: bool) -> None:
    content = _reply(kind, private=private)

    assert _check(content, kind, private=private) is content


@pytest.mark.parametrize(("kind", "private"), list(ALLOWED_REPLIES))
def test_check_release_refuses_any_field_that_is_extra_or_missing(kind: str, private: bool) -> None:
    names = list(_reply(kind, private=private))

    for name in names:
        for field in list(_reply(kind, private=private)[name]):
            renamed = _reply(kind, private=private)
            renamed[name]["other"] = renamed[name].pop(field)
            missing = _reply(kind, private=private)
            del missing[name][field]
            for content in (renamed, missing):
                with pytest.raises(PrivacyError, match=f"record '{name}' holds other fields"):
                    _check(content, kind, private=private)
        extra = _reply(kind, private=private)
        extra[name]["other"] = next(iter(extra[name].values()))
        with pytest.raises(PrivacyError, match=f"record '{name}' holds other fields"):
            _check(extra, kind, private=private)


@pytest.mark.parametrize(("kind", "private"), list(ALLOWED_REPLIES))
def test_check_release_refuses_any_record_that_is_extra_or_missing(kind: str, private: bool) -> None:
    for name in list(_reply(kind, private=private)):
        content = _reply(kind, private=private)
        del content[name]
        with pytest.raises(PrivacyError, match="may not leave"):
            _check(content, kind, private=private)
    content = _reply(kind, private=private)
    content["log"] = ConfigRecord({"labels": [1, 2]})
    with pytest.raises(PrivacyError, match=r"'log'.* may not leave"):
        _check(content, kind, private=private)


def test_check_release_refuses_a_tensor_the_server_asked_for_but_nobody_declared() -> None:
    content = encode_update(_ARRAYS | {"images": np.zeros(3, dtype=np.float32)}, 10, None)

    with pytest.raises(PrivacyError, match="record 'arrays'"):
        _check(content, "train", private=True)


def test_check_release_refuses_a_record_of_another_kind() -> None:
    content = encode_update(_ARRAYS, 10, None)
    content[ARRAYS] = ConfigRecord(dict.fromkeys(_ARRAYS, "the text of patient 4711"))

    with pytest.raises(PrivacyError):
        _check(content, "train", private=True)


def test_check_release_refuses_counts_under_privacy() -> None:
    with pytest.raises(PrivacyError, match="record 'metrics'"):
        _check(encode_update(_ARRAYS, 10, _COUNTS), "train", private=True)
    with pytest.raises(PrivacyError, match="record 'metrics'"):
        _check(encode_update(_ARRAYS, 10, None), "train", private=False)


@pytest.mark.parametrize(("kind", "private"), [("evaluate", True), ("log", True), ("log", False), ("", False)])
def test_require_release_refuses_requests_that_nothing_may_answer(kind: str, private: bool) -> None:
    with pytest.raises(PrivacyError, match="nothing may leave"):
        require_release(kind, private=private)
    with pytest.raises(PrivacyError, match="nothing may leave"):
        _check(encode_counts(3, _COUNTS), kind, private=private)


def test_private_replies_declare_no_counts_at_all() -> None:
    fields = [set(keys or ()) for (_, private), reply in ALLOWED_REPLIES.items() if private for keys in reply.values()]

    assert not set().union(*fields) & {CONFUSION, LOSS_SUM}
    assert ARRAYS in ALLOWED_REPLIES["train", True]


def test_server_round_of_reads_the_round() -> None:
    assert server_round_of(RecordDict({CONFIG: ConfigRecord({SERVER_ROUND: 4})})) == 4


@pytest.mark.parametrize("value", [0, -1, "3", 2.0])
def test_server_round_of_refuses_what_is_no_round(value: int | str | float) -> None:
    with pytest.raises(FederationError, match="no valid round"):
        server_round_of(RecordDict({CONFIG: ConfigRecord({SERVER_ROUND: value})}))


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({CONFIG: ConfigRecord({"lr": 1.0})})])
def test_server_round_of_refuses_a_message_that_does_not_say(content: RecordDict) -> None:
    with pytest.raises(FederationError, match="lacks its round"):
        server_round_of(content)
