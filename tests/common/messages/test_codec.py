"""The wire contract: what is encoded is decoded again, and what nobody encodes so is refused."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.errors import FederationError
from common.messages.codec import (
    CONFIG,
    SERVER_ROUND,
    Evaluation,
    arrays_to_record,
    decode_declaration,
    decode_evaluation,
    decode_head,
    encode_declaration,
    encode_evaluation,
    encode_head,
    encode_update,
    record_to_arrays,
    run_id_of,
    server_round_of,
    sum_counts,
)
from common.messages.fields import (
    CLIENT,
    CONFUSION,
    LEDGER,
    LOSS_SUM,
    METRICS,
    NUM_EXAMPLES,
    PERSONAL_CONFUSION,
    PERSONAL_LOSS_SUM,
    TRAIN_LOSS,
)
from common.metrics import NoisedCounts, count
from common.score_histograms import score_histograms
from common.subgroup_counts import SubgroupCounts
from tests.support.server.replies import COUNTS, DECLARED, EVERYTHING, FOUND, HEAD, OWN_COUNTS, WEIGHTS, reply

RUN = "a1" * 16


def test_arrays_survive_the_wire_in_order() -> None:
    back = record_to_arrays(arrays_to_record(WEIGHTS))

    assert list(back) == list(WEIGHTS)
    assert all(np.array_equal(back[name], WEIGHTS[name]) for name in WEIGHTS)


def test_arrays_survive_the_wire_when_they_are_transposed_views() -> None:
    view = WEIGHTS["b.weight"].T

    assert np.array_equal(record_to_arrays(arrays_to_record({"w": view}))["w"], view)


def test_record_to_arrays_narrows_what_aggregation_widened() -> None:
    back = record_to_arrays(arrays_to_record({"w": np.array([0.1, 0.2], dtype=np.float64)}))

    assert back["w"].dtype == np.float32


def test_decode_declaration_is_the_inverse_of_encode() -> None:
    assert decode_declaration(encode_declaration(DECLARED)) == DECLARED


@pytest.mark.parametrize("field", ["name", "num-units", "classes", "input-shape", "backbone-hash", "bundle"])
def test_decode_declaration_names_a_missing_field(field: str) -> None:
    content = encode_declaration(DECLARED)
    del content.config_records[CLIENT][field]

    with pytest.raises(FederationError, match=f"lacks '{field}'"):
        decode_declaration(content)


def test_decode_declaration_refuses_a_reply_without_its_record() -> None:
    with pytest.raises(FederationError, match=f"lacks '{CLIENT}'"):
        decode_declaration(encode_evaluation(3, FOUND))


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
        ("bundle", "2cae"),
        ("bundle", 7),
        ("name", "x" * 65),
        ("name", "\x1b[2Jward"),
        ("name", ""),
        ("classes", ["x" * 2000, "y"]),
        ("classes", [str(n) for n in range(200_000)]),
        ("input-shape", [1] * 5),
    ],
)
def test_decode_declaration_refuses_a_wrong_type_or_size(field: str, value: str | int | float | bytes) -> None:
    content = encode_declaration(DECLARED)
    content.config_records[CLIENT][field] = value

    with pytest.raises(FederationError, match=r"wrong type|cannot be shown|is longer than any"):
        decode_declaration(content)


@pytest.mark.parametrize(("field", "value"), [("input-shape", ["a"]), ("input-shape", [8.5]), ("num-units", True)])
def test_decode_declaration_refuses_a_shape_or_size_that_is_not_whole(field: str, value: bool | list[str]) -> None:
    content = encode_declaration(DECLARED)
    content.config_records[CLIENT][field] = value

    with pytest.raises(FederationError, match="wrong type"):
        decode_declaration(content)


@pytest.mark.parametrize("content", [encode_update(WEIGHTS, 7, FOUND), encode_evaluation(7, FOUND)])
def test_decode_findings_is_the_inverse_of_encode(content: RecordDict) -> None:
    found = decode_evaluation(content)

    assert found is not None
    assert (found.personal, found.train_loss) == (None, None)
    counts = found.counts
    assert counts.confusion.tolist() == COUNTS.confusion.tolist()
    assert counts.loss_sum == COUNTS.loss_sum
    assert content.metric_records[METRICS][NUM_EXAMPLES] == 7


def test_decode_findings_gives_personal_counts_and_the_training_loss_apart() -> None:
    found = decode_evaluation(reply("train", EVERYTHING))

    assert found is not None
    assert found.personal is not None
    assert (found.counts.confusion.tolist(), found.counts.loss_sum) == (COUNTS.confusion.tolist(), 2.5)
    assert (found.personal.confusion.tolist(), found.personal.loss_sum) == (OWN_COUNTS.confusion.tolist(), 1.25)
    assert found.train_loss == 0.75


def test_decode_findings_is_none_when_the_reply_carries_none() -> None:
    assert decode_evaluation(encode_update(WEIGHTS, 7, None)) is None


@pytest.mark.parametrize(
    ("confusion", "loss"),
    [([1, 2, 3], 1.0), ([1, 2, 3, -1], 1.0), ([1, 2, 3, 4], [1.0]), ([1.5, 2.0, 3.0, 4.0], 1.0), ([1] * 9, 1.0)],
    ids=["not-square", "negative", "many-losses", "not-whole", "three-classes"],
)
@pytest.mark.parametrize("keys", [(CONFUSION, LOSS_SUM), (PERSONAL_CONFUSION, PERSONAL_LOSS_SUM)])
def test_decode_findings_refuses_what_is_no_confusion_matrix(
    confusion: list[int] | list[float], loss: float | list[float], keys: tuple[str, str]
) -> None:
    content = reply("train", EVERYTHING)
    content.metric_records[METRICS][keys[0]] = confusion
    content.metric_records[METRICS][keys[1]] = loss

    with pytest.raises(FederationError, match="not a confusion matrix"):
        decode_evaluation(content, 2)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -0.1, [0.5], 1])
def test_decode_findings_refuses_a_training_loss_that_no_strategy_could_weigh_by(loss: float | list[float]) -> None:
    content = reply("train", EVERYTHING)
    content.metric_records[METRICS][TRAIN_LOSS] = loss

    with pytest.raises(FederationError, match="training loss"):
        decode_evaluation(content, 2)


@pytest.mark.parametrize(
    "metrics",
    [{CONFUSION: [1], LOSS_SUM: 1.0}, {CONFUSION: [], LOSS_SUM: 1.0}],
    ids=["one-class", "no-class"],
)
def test_sum_counts_refuses_what_cannot_be_added(metrics: dict[str, float | list[int]]) -> None:
    broken = RecordDict({METRICS: MetricRecord({NUM_EXAMPLES: 1, **metrics})})

    with pytest.raises(FederationError):
        sum_counts([encode_evaluation(6, FOUND), broken], NUM_EXAMPLES)


def test_sum_counts_adds_and_does_not_average() -> None:
    summed = sum_counts([encode_evaluation(1, FOUND), encode_evaluation(1000, FOUND)], NUM_EXAMPLES)

    assert summed[CONFUSION] == [6, 2, 0, 4]
    assert summed[LOSS_SUM] == 5.0


def test_sum_counts_is_empty_when_no_client_sent_counts() -> None:
    assert not sum_counts([encode_update(WEIGHTS, 1, None)] * 2, NUM_EXAMPLES)


def test_decode_head_is_the_inverse_of_encode_and_refuses_what_is_none() -> None:
    content = RecordDict({LEDGER: encode_head(HEAD)})

    assert decode_head(content) == HEAD
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


LOGITS, LABELS = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]], np.float32), np.array([0, 1])
HISTOGRAMS = score_histograms(LOGITS, LABELS)


def moved(counts: np.ndarray) -> list[int]:
    """Return counts of the same sums, of which the first is negative."""
    first, second, *others = counts.ravel().tolist()
    return [first - 5, second + 5, *others]


def with_histograms(*, noised: bool) -> RecordDict:
    counts = count(LOGITS, LABELS)
    if noised:
        return encode_evaluation(9, Evaluation(noised=NoisedCounts(counts.confusion - 1), histograms=HISTOGRAMS))
    return encode_evaluation(9, Evaluation(counts, histograms=HISTOGRAMS))


@pytest.mark.parametrize("noised", [True, False])
def test_histograms_survive_the_wire(noised: bool) -> None:
    found = decode_evaluation(with_histograms(noised=noised), 3)

    assert found is not None
    assert found.histograms is not None
    assert np.array_equal(found.histograms.scores, HISTOGRAMS.scores)
    assert np.array_equal(found.histograms.confidence, HISTOGRAMS.confidence)
    assert (found.noised is not None) == noised


@pytest.mark.parametrize(
    ("noised", "name", "wrong"),
    [
        (True, "noised-score-counts", [1] * 119),
        (True, "noised-score-counts", [1] * 160),
        (True, "noised-score-counts", [0.5] * 120),
        (True, "noised-score-counts", [1 << 41] * 120),
        (True, "noised-confidence-counts", [-(1 << 41)] * 30),
        (True, "noised-confidence-counts", [1 << 63] * 30),
        (True, "noised-confidence-counts", [-(1 << 63)] * 30),
        (True, "noised-confidence-counts", [1] * 31),
        (True, "noised-confidence-counts", 1),
        (False, "score-counts", moved(HISTOGRAMS.scores)),
        (False, "score-counts", [2, *HISTOGRAMS.scores.ravel().tolist()[1:]]),
        (False, "confidence-counts", moved(HISTOGRAMS.confidence)),
        (False, "confidence-counts", [7, *HISTOGRAMS.confidence.ravel().tolist()[1:]]),
        (False, "confidence-counts", None),
    ],
)
def test_histograms_that_cannot_be_are_refused(noised: bool, name: str, wrong: Any) -> None:
    content = with_histograms(noised=noised)
    if wrong is None:
        del content.metric_records[METRICS][name]
    else:
        content.metric_records[METRICS][name] = wrong

    with pytest.raises(FederationError, match="histograms"):
        decode_evaluation(content, 3)


def with_subgroups(cells: Any, *, noised: bool) -> RecordDict:
    counts = count(LOGITS, LABELS)
    exact = {"noised": NoisedCounts(counts.confusion)} if noised else {"counts": counts}
    content = encode_evaluation(9, Evaluation(subgroups=SubgroupCounts(np.array([[1, 0], [0, 1]])), **exact))  # type: ignore[arg-type]
    if cells is not None:
        content.metric_records[METRICS]["noised-subgroup-counts" if noised else "subgroup-counts"] = cells
    return content


@pytest.mark.parametrize("noised", [True, False])
def test_subgroups_survive_the_wire(noised: bool) -> None:
    found = decode_evaluation(with_subgroups(None, noised=noised), 3, 2)

    assert found is not None
    assert found.subgroups is not None
    assert found.subgroups.cells.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("noised", "wrong"),
    [
        (True, [1, 0]),
        (True, [1, 0, 0]),
        (True, [1, 0, 0, 1, 0, 0]),
        (True, [1.0, 0.0, 0.0, 1.0]),
        (True, [1 << 41, 0, 0, 1]),
        (True, [1 << 63, 0, 0, 1]),
        (True, 4),
        (False, [2, -1, -1, 2]),
        (False, [2, 0, 0, 0]),
        (False, [1, 0, 1, 1]),
    ],
)
def test_subgroups_that_cannot_be_are_refused(noised: bool, wrong: Any) -> None:
    with pytest.raises(FederationError, match="subgroups"):
        decode_evaluation(with_subgroups(wrong, noised=noised), 3, 2)
