"""The wire contract: what may leave a client, and that both directions agree."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.errors import FederationError, PrivacyError
from common.ledger.heads import sign_head
from common.ledger.keys import HolderKeys
from common.ledger.ledger import Head
from common.metrics import Counts, NoisedCounts
from common.records import (
    CONFIG,
    SERVER_ROUND,
    Declaration,
    Findings,
    arrays_to_record,
    check_release,
    check_reply,
    decode_declaration,
    decode_findings,
    decode_head,
    encode_declaration,
    encode_findings,
    encode_head,
    encode_update,
    record_to_arrays,
    run_id_of,
    server_round_of,
    sum_counts,
)
from common.releases import (
    ARRAYS,
    CLIENT,
    CONFUSION,
    CORRECT,
    LEDGER,
    LOSS_SUM,
    METRICS,
    NOISED_CONFUSION,
    NUM_EXAMPLES,
    PERSONAL_CONFUSION,
    PERSONAL_LOSS_SUM,
    TRAIN_LOSS,
    WRONG,
    Releases,
)
from common.sections import RunConfig

MakeConfig = Callable[..., RunConfig]
_ARRAYS: dict[str, np.ndarray] = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1, 2], dtype=np.float32),
}
RUN = "a1" * 16
_COUNTS = Counts(np.array([[3, 1], [0, 2]]), 2.5)
_FOUND = Findings(_COUNTS)
_OWN = Counts(np.array([[4, 0], [1, 1]]), 1.25)
_EVERYTHING = Releases(train_loss=True, personal=True)
_DECLARED = Declaration("00003", 287, ("cat", "dog"), (8, 8, 1), "2cae")


_PRIVATE = Releases("dp-sgd", "private")
_HEAD = sign_head(HolderKeys.simulated(0, "00003"), Head(7, "ab" * 32))
_RUNS = {
    "private": _PRIVATE,
    "silent": Releases("dp-sgd", "none"),
    "exact": Releases("dp-sgd", "exact"),
    "central": Releases("client-dp", "none"),
    "open": Releases(),
    "fair": Releases(train_loss=True),
    "personal": Releases(personal=True),
    "everything": _EVERYTHING,
}
_LEGAL = [
    (kind, run)
    for kind in ("query", "query.close", "train", "evaluate")
    for run, releases in _RUNS.items()
    if not (kind == "evaluate" and releases.metrics == "none")
]


def _reply(kind: str, releases: Releases) -> RecordDict:
    content = _without_head(kind, releases)
    if releases.signed:
        content[LEDGER] = encode_head(_HEAD)
    return content


def _without_head(kind: str, releases: Releases) -> RecordDict:
    if kind == "query.close":
        return RecordDict()
    if kind == "query":
        return encode_declaration(_DECLARED)
    found = _found(kind, releases)
    return encode_findings(287, found) if kind == "evaluate" else encode_update(_ARRAYS, 287, found)


def _found(kind: str, releases: Releases) -> Findings | None:
    if releases.metrics == "none":
        return None
    if releases.metrics == "private":
        return Findings(noised=NoisedCounts(np.array([[3, -1], [0, 2]]) if kind == "evaluate" else np.array([5, -2])))
    if releases.mechanism != "none":
        return Findings(Counts(_COUNTS.confusion, float("nan")))
    loss = 0.75 if releases.train_loss and kind == "train" else None
    return Findings(_COUNTS, _OWN if releases.personal else None, loss)


def _check(content: RecordDict, kind: str, releases: Releases) -> RecordDict:
    travelling = {name: array.shape for name, array in _ARRAYS.items()}
    return check_release(content, message_type=kind, releases=releases, travelling=travelling)


def _check_reply(content: RecordDict, releases: Releases = _EVERYTHING) -> Findings | None:
    travelling = {name: array.shape for name, array in _ARRAYS.items()}
    return check_reply(content, _DECLARED, message_type="train", releases=releases, travelling=travelling)


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
        decode_declaration(encode_findings(3, _FOUND))


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


@pytest.mark.parametrize("content", [encode_update(_ARRAYS, 7, _FOUND), encode_findings(7, _FOUND)])
def test_decode_findings_is_the_inverse_of_encode(content: RecordDict) -> None:
    found = decode_findings(content)

    assert found is not None
    assert (found.personal, found.train_loss) == (None, None)
    counts = found.counts
    assert counts.confusion.tolist() == _COUNTS.confusion.tolist()
    assert counts.loss_sum == _COUNTS.loss_sum
    assert content.metric_records[METRICS][NUM_EXAMPLES] == 7


def test_decode_findings_gives_personal_counts_and_the_training_loss_apart() -> None:
    found = decode_findings(_reply("train", _EVERYTHING))

    assert found is not None
    assert found.personal is not None
    assert (found.counts.confusion.tolist(), found.counts.loss_sum) == (_COUNTS.confusion.tolist(), 2.5)
    assert (found.personal.confusion.tolist(), found.personal.loss_sum) == (_OWN.confusion.tolist(), 1.25)
    assert found.train_loss == 0.75


def test_decode_findings_is_none_when_the_reply_carries_none() -> None:
    assert decode_findings(encode_update(_ARRAYS, 7, None)) is None


@pytest.mark.parametrize(
    ("confusion", "loss"),
    [([1, 2, 3], 1.0), ([1, 2, 3, -1], 1.0), ([1, 2, 3, 4], [1.0]), ([1.5, 2.0, 3.0, 4.0], 1.0), ([1] * 9, 1.0)],
    ids=["not-square", "negative", "many-losses", "not-whole", "three-classes"],
)
@pytest.mark.parametrize("keys", [(CONFUSION, LOSS_SUM), (PERSONAL_CONFUSION, PERSONAL_LOSS_SUM)])
def test_decode_findings_refuses_what_is_no_confusion_matrix(
    confusion: list[int] | list[float], loss: float | list[float], keys: tuple[str, str]
) -> None:
    content = _reply("train", _EVERYTHING)
    content.metric_records[METRICS][keys[0]] = confusion
    content.metric_records[METRICS][keys[1]] = loss

    with pytest.raises(FederationError, match="no confusion matrix"):
        decode_findings(content, 2)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -0.1, [0.5], 1])
def test_decode_findings_refuses_a_training_loss_that_no_strategy_could_weigh_by(loss: float | list[float]) -> None:
    content = _reply("train", _EVERYTHING)
    content.metric_records[METRICS][TRAIN_LOSS] = loss

    with pytest.raises(FederationError, match="training loss"):
        decode_findings(content, 2)


@pytest.mark.parametrize(
    "metrics",
    [{CONFUSION: [1], LOSS_SUM: 1.0}, {CONFUSION: [], LOSS_SUM: 1.0}],
    ids=["one-class", "no-class"],
)
def test_sum_counts_refuses_what_cannot_be_added(metrics: dict[str, float | list[int]]) -> None:
    broken = RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: 1, **metrics})})

    with pytest.raises(FederationError):
        sum_counts([encode_findings(6, _FOUND), broken], NUM_EXAMPLES)


def test_sum_counts_adds_and_does_not_average() -> None:
    summed = sum_counts([encode_findings(1, _FOUND), encode_findings(1000, _FOUND)], NUM_EXAMPLES)

    assert summed[CONFUSION] == [6, 2, 0, 4]
    assert summed[LOSS_SUM] == 5.0


def test_sum_counts_is_empty_when_no_client_sent_counts() -> None:
    assert not sum_counts([encode_update(_ARRAYS, 1, None)] * 2, NUM_EXAMPLES)


@pytest.mark.parametrize(("kind", "run"), _LEGAL)
def test_check_release_passes_what_the_encoders_make(kind: str, run: str) -> None:
    content = _reply(kind, _RUNS[run])

    assert _check(content, kind, _RUNS[run]) is content


@pytest.mark.parametrize(("kind", "run"), _LEGAL)
def test_check_release_refuses_any_field_that_is_extra_or_missing(kind: str, run: str) -> None:
    releases = _RUNS[run]
    names = list(_reply(kind, releases))

    for name in names:
        for field in list(_reply(kind, releases)[name]):
            renamed = _reply(kind, releases)
            renamed[name]["other"] = renamed[name].pop(field)
            missing = _reply(kind, releases)
            del missing[name][field]
            for content in (renamed, missing):
                with pytest.raises(PrivacyError, match=f"record '{name}' holds other fields"):
                    _check(content, kind, releases)
        extra = _reply(kind, releases)
        extra[name]["other"] = next(iter(extra[name].values()))
        with pytest.raises(PrivacyError, match=f"record '{name}' holds other fields"):
            _check(extra, kind, releases)


@pytest.mark.parametrize(("kind", "run"), _LEGAL)
def test_check_release_refuses_any_record_that_is_extra_or_missing(kind: str, run: str) -> None:
    releases = _RUNS[run]
    for name in list(_reply(kind, releases)):
        content = _reply(kind, releases)
        del content[name]
        with pytest.raises(PrivacyError, match="may not leave"):
            _check(content, kind, releases)
    content = _reply(kind, releases)
    content["log"] = ConfigRecord({"labels": [1, 2]})
    with pytest.raises(PrivacyError, match=r"'log'.* may not leave"):
        _check(content, kind, releases)


@pytest.mark.parametrize("sent", list(_RUNS))
@pytest.mark.parametrize("allowed", list(_RUNS))
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_check_release_passes_a_reply_of_this_very_kind_of_run_only(kind: str, allowed: str, sent: str) -> None:
    content = _reply(kind, _RUNS[sent])
    wanted = _reply(kind, _RUNS[allowed])
    fits = set(content) == set(wanted) and set(content[METRICS]) == set(wanted[METRICS])

    if fits and (kind, allowed) in _LEGAL:
        assert _check(content, kind, _RUNS[allowed]) is content
    else:
        with pytest.raises(PrivacyError):
            _check(content, kind, _RUNS[allowed])


def test_check_release_refuses_a_tensor_the_server_asked_for_but_nobody_declared() -> None:
    content = encode_update(_ARRAYS | {"images": np.zeros(3, dtype=np.float32)}, 10, None)

    with pytest.raises(PrivacyError, match="record 'arrays'"):
        _check(content, "train", Releases("client-dp", "none"))


def test_check_release_refuses_a_record_of_another_kind() -> None:
    content = encode_update(_ARRAYS, 10, None)
    content[ARRAYS] = ConfigRecord(dict.fromkeys(_ARRAYS, "the text of patient 4711"))

    with pytest.raises(PrivacyError):
        _check(content, "train", Releases("client-dp", "none"))


@pytest.mark.parametrize(
    ("kind", "run"), [("evaluate", "silent"), ("log", "private"), ("log", "open"), ("", "open"), ("train.x", "open")]
)
def test_releases_refuse_requests_that_nothing_may_answer(kind: str, run: str) -> None:
    releases = _RUNS[run]

    with pytest.raises(PrivacyError, match="nothing may leave"):
        releases.fields(kind)
    with pytest.raises(PrivacyError, match="nothing may leave"):
        _check(encode_findings(3, _FOUND), kind, releases)


@pytest.mark.parametrize("extra", [{"train_loss": True}, {"personal": True}])
def test_releases_refuse_extra_fields_under_privacy(extra: dict[str, bool]) -> None:
    with pytest.raises(PrivacyError, match="may not leave"):
        Releases("dp-sgd", "private", **extra)


def test_releases_of_a_private_run_are_arrays_the_declared_size_noised_counts_and_the_head(
    make_config: MakeConfig,
) -> None:
    personal = make_config({"model.personal": "head", "model.tuning": "full"})

    for config in (make_config(), personal):
        assert set(Releases.of(config).fields("train")) == {ARRAYS, METRICS, LEDGER}
        assert Releases.of(config).fields("train")[METRICS] == (NUM_EXAMPLES, CORRECT, WRONG)
        assert Releases.of(config).fields("evaluate")[METRICS] == (NUM_EXAMPLES, NOISED_CONFUSION)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Releases()),
        ({"strategy.name": "QFedAvg"}, Releases(train_loss=True)),
        ({"model.personal": "head", "model.tuning": "full"}, Releases(personal=True)),
    ],
)
def test_releases_of_an_open_run_hold_what_its_settings_need(
    settings: dict[str, str], expected: Releases, make_config: MakeConfig
) -> None:
    assert Releases.of(make_config({"privacy.mechanism": "none"} | settings)) == expected


def test_check_reply_gives_what_an_honest_client_found() -> None:
    found = _check_reply(_reply("train", _EVERYTHING))

    assert found is not None
    assert found.train_loss == 0.75
    assert _check_reply(_reply("train", _RUNS["silent"]), _RUNS["silent"]) is None
    noised = _check_reply(_reply("train", _PRIVATE), _PRIVATE)
    assert noised is not None
    assert noised.noised is not None
    assert noised.noised.cells.tolist() == [5, -2]


def _spoil(content: RecordDict, how: str) -> RecordDict:
    metrics = content.metric_records[METRICS]
    arrays = content.array_records[ARRAYS]
    if how == "weight":
        metrics[NUM_EXAMPLES] = 10**9
    elif how == "counts":
        metrics[CONFUSION] = [1, 2, 3]
    elif how == "classes":
        metrics[CONFUSION] = [1] * 9
    elif how == "loss":
        metrics[TRAIN_LOSS] = float("nan")
    elif how == "field":
        del metrics[PERSONAL_CONFUSION]
    elif how == "order":
        arrays["b.weight"] = arrays.pop("b.weight")
    elif how == "shape":
        arrays["a.bias"] = arrays_to_record({"a.bias": np.zeros((2, 1), dtype=np.float32)})["a.bias"]
    return content


@pytest.mark.parametrize("how", ["weight", "counts", "classes", "loss", "field", "order", "shape"])
def test_check_reply_refuses_what_was_not_agreed(how: str) -> None:
    with pytest.raises(FederationError):
        _check_reply(_spoil(_reply("train", _EVERYTHING), how))


def test_private_replies_declare_no_counts_at_all() -> None:
    for name in ("private", "silent", "central"):
        kinds = [kind for kind, run in _LEGAL if run == name]
        fields = [set(keys or ()) for kind in kinds for keys in _RUNS[name].fields(kind).values()]
        assert not set().union(*fields) & {CONFUSION, LOSS_SUM, TRAIN_LOSS, PERSONAL_CONFUSION}
        assert ARRAYS in _RUNS[name].fields("train")


def test_exact_counts_under_a_mechanism_come_without_a_loss() -> None:
    for kind in ("train", "evaluate"):
        assert _RUNS["exact"].fields(kind)[METRICS] == (NUM_EXAMPLES, CONFUSION)


def test_decode_head_is_the_inverse_of_encode_and_refuses_what_is_none() -> None:
    content = RecordDict({LEDGER: encode_head(_HEAD)})

    assert decode_head(content) == _HEAD
    content.config_records[LEDGER]["seq"] = "seven"
    with pytest.raises(FederationError, match="wrong type"):
        decode_head(content)
    with pytest.raises(FederationError, match="lacks the head"):
        decode_head(RecordDict())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"run-id": 3},
        {"run-id": ""},
        {"run-id": "a" * 33},
        {"run-id": "A" * 32},
        {"run-id": "a" * 31 + "\0"},
        {"run-id": "../" * 10 + "aa"},
        {"run-id": RUN, "seed": 0},
        {"run-id": RUN, "lr": 1.0},
    ],
)
def test_run_id_of_refuses_messages_without_a_run_and_settings_that_no_message_may_bring(
    settings: dict[str, int | float | str],
) -> None:
    with pytest.raises(FederationError):
        run_id_of(RecordDict({CONFIG: ConfigRecord(dict(settings))}))


def test_run_id_of_reads_the_run() -> None:
    assert run_id_of(RecordDict({CONFIG: ConfigRecord({"run-id": RUN, "proximal-mu": 0.1})})) == RUN


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
