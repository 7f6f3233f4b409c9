"""The wire contract: a client lets out, and a server takes, what the kind of run allows and nothing else.

Drives `common.messages.fields`.
"""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from common.config.schema import RunConfig
from common.errors import FederationError, PrivacyError
from common.messages.checks import check_release, check_reply
from common.messages.codec import Evaluation, arrays_to_record, encode_evaluation, encode_update
from common.messages.fields import (
    ARRAYS,
    CONFUSION,
    CORRECT,
    LEDGER,
    LOSS_SUM,
    METRICS,
    NOISED_CONFUSION,
    NUM_EXAMPLES,
    PERSONAL_CONFUSION,
    TRAIN_LOSS,
    WRONG,
    Releases,
)
from common.privacy.mechanisms.registry import MECHANISMS
from tests.support.server.replies import DECLARED, EVERYTHING, FOUND, LEGAL, PRIVATE, RUNS, WEIGHTS, reply

MakeConfig = Callable[..., RunConfig]


def _check(content: RecordDict, kind: str, releases: Releases) -> RecordDict:
    travelling = {name: array.shape for name, array in WEIGHTS.items()}
    return check_release(content, message_type=kind, releases=releases, travelling=travelling)


def _check_reply(content: RecordDict, releases: Releases = EVERYTHING) -> Evaluation | None:
    travelling = {name: array.shape for name, array in WEIGHTS.items()}
    return check_reply(content, DECLARED, message_type="train", releases=releases, travelling=travelling)


@pytest.mark.parametrize(("kind", "run"), LEGAL)
def test_check_release_passes_what_the_encoders_make(kind: str, run: str) -> None:
    content = reply(kind, RUNS[run])

    assert _check(content, kind, RUNS[run]) is content


@pytest.mark.parametrize(("kind", "run"), LEGAL)
def test_check_release_refuses_any_field_that_is_extra_or_missing(kind: str, run: str) -> None:
    releases = RUNS[run]
    names = list(reply(kind, releases))

    for name in names:
        for field in list(reply(kind, releases)[name]):
            renamed = reply(kind, releases)
            renamed[name]["other"] = renamed[name].pop(field)
            missing = reply(kind, releases)
            del missing[name][field]
            for content in (renamed, missing):
                with pytest.raises(PrivacyError, match=f"record '{name}' holds other fields"):
                    _check(content, kind, releases)
        extra = reply(kind, releases)
        extra[name]["other"] = next(iter(extra[name].values()))
        with pytest.raises(PrivacyError, match=f"record '{name}' holds other fields"):
            _check(extra, kind, releases)


@pytest.mark.parametrize(("kind", "run"), LEGAL)
def test_check_release_refuses_any_record_that_is_extra_or_missing(kind: str, run: str) -> None:
    releases = RUNS[run]
    for name in list(reply(kind, releases)):
        content = reply(kind, releases)
        del content[name]
        with pytest.raises(PrivacyError, match="may not leave"):
            _check(content, kind, releases)
    content = reply(kind, releases)
    content["log"] = ConfigRecord({"labels": [1, 2]})
    with pytest.raises(PrivacyError, match=r"'log'.* may not leave"):
        _check(content, kind, releases)


@pytest.mark.parametrize("sent", list(RUNS))
@pytest.mark.parametrize("allowed", list(RUNS))
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_check_release_passes_a_reply_of_this_very_kind_of_run_only(kind: str, allowed: str, sent: str) -> None:
    content = reply(kind, RUNS[sent])
    wanted = reply(kind, RUNS[allowed])
    fits = all(set(content.get(name, ())) == set(wanted.get(name, ())) for name in {*content, *wanted})

    if fits and (kind, allowed) in LEGAL:
        assert _check(content, kind, RUNS[allowed]) is content
    else:
        with pytest.raises(PrivacyError):
            _check(content, kind, RUNS[allowed])


def test_check_release_refuses_a_tensor_the_server_asked_for_but_nobody_declared() -> None:
    content = encode_update(WEIGHTS | {"images": np.zeros(3, dtype=np.float32)}, 10, None)

    with pytest.raises(PrivacyError, match="record 'arrays'"):
        _check(content, "train", Releases(MECHANISMS["client-dp"], "none"))


def test_check_release_refuses_a_record_of_another_kind() -> None:
    content = encode_update(WEIGHTS, 10, None)
    content[ARRAYS] = ConfigRecord(dict.fromkeys(WEIGHTS, "the text of patient 4711"))

    with pytest.raises(PrivacyError):
        _check(content, "train", Releases(MECHANISMS["client-dp"], "none"))


@pytest.mark.parametrize(
    ("kind", "run"), [("evaluate", "silent"), ("log", "private"), ("log", "open"), ("", "open"), ("train.x", "open")]
)
def test_releases_refuse_requests_that_nothing_may_answer(kind: str, run: str) -> None:
    releases = RUNS[run]

    with pytest.raises(PrivacyError, match="nothing may leave"):
        releases.fields(kind)
    with pytest.raises(PrivacyError, match="nothing may leave"):
        _check(encode_evaluation(3, FOUND), kind, releases)


@pytest.mark.parametrize("extra", [{"train_loss": True}, {"personal": True}])
def test_releases_refuse_extra_fields_under_privacy(extra: dict[str, bool]) -> None:
    with pytest.raises(PrivacyError, match="may not leave"):
        Releases(MECHANISMS["dp-sgd"], "private", **extra)


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
    found = _check_reply(reply("train", EVERYTHING))

    assert found is not None
    assert found.train_loss == 0.75
    assert _check_reply(reply("train", RUNS["silent"]), RUNS["silent"]) is None
    noised = _check_reply(reply("train", PRIVATE), PRIVATE)
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
        _check_reply(_spoil(reply("train", EVERYTHING), how))


def test_private_replies_declare_no_counts_at_all() -> None:
    for name in ("private", "silent", "central"):
        kinds = [kind for kind, run in LEGAL if run == name]
        fields = [set(keys or ()) for kind in kinds for keys in RUNS[name].fields(kind).values()]
        assert not set().union(*fields) & {CONFUSION, LOSS_SUM, TRAIN_LOSS, PERSONAL_CONFUSION}
        assert ARRAYS in RUNS[name].fields("train")


def test_exact_counts_under_a_mechanism_come_without_a_loss() -> None:
    for kind in ("train", "evaluate"):
        assert RUNS["exact"].fields(kind)[METRICS] == (NUM_EXAMPLES, CONFUSION)
