"""Checks of a run's statement beside its figures.

An epsilon of a secure sum holds while so many clients are honest. A statement that leaves this out claims more than the
run gives, though its figures fit.
"""

from collections.abc import Mapping
from typing import Any

from common.config.sections import PrivacyConfig
from common.config.secure_sum import SecureSum
from common.ledger.audit.integrity_checks import Remarks
from common.privacy.mechanisms.contract import Mechanism
from server.audit.statement_reader import PrivacyStatement
from server.reporting.privacy_statement import (
    SCOPE,
    in_shares,
    missing_words,
    not_protected,
    sampling_words,
    statement_sentence,
)
from server.state.initial_model import wrong_start
from server.state.privacy_spent import RunPrivacyCost
from server.state.secure_statement import aggregation_statement

# Facts of the set-up, which the configuration does not know.
_OF_SETUP = ("roster", "present")


def check_aggregation(content: Mapping[str, Any], secure: SecureSum | None, *, noised: bool, remarks: Remarks) -> None:
    """Compare what is stated of secure aggregation with the run's configuration.

    `secure` is None where updates leave one by one, `noised` says whether each sum has noise.
    """
    stated = content.get("aggregation")
    # Statements from before secure sums lack it, and no run of theirs was configured for one.
    if secure is None or not isinstance(stated, dict):
        if secure is not None or stated is not None:
            remarks.doubts.append("configuration and statement disagree on whether updates left in secure sums alone")
        return
    expected = aggregation_statement(secure, None, noised=noised)
    for name in expected | stated:
        if name not in _OF_SETUP:
            _compare(f"aggregation.{name}", stated.get(name), expected.get(name), remarks)


def check_words(
    content: Mapping[str, Any],
    mechanism: Mechanism,
    cost: RunPrivacyCost,
    privacy: PrivacyConfig,
    metrics: str,
    gradients: str,
    remarks: Remarks,
) -> str:
    """Compare what is stated beside the figures with the words that a run writes.

    Return the sentence that the run writes, without its part about an earlier model.

    Args:
        content: Content of `privacy.json` of a private run.
        mechanism: Configured mechanism.
        cost: Stated cost of the run, which follows from its plans.
        privacy: Configured privacy.
        metrics: Configured release of counts.
        gradients: Configured provider of gradients.
        remarks: Gets a doubt for each difference.
    """
    shares = in_shares(cost)
    for name in ("noise_shares", "if_all_others_collude"):
        _compare(name, content.get(name), shares.get(name), remarks)
    _compare("scope", content.get("scope"), SCOPE, remarks)
    _compare("sampling_method", content["sampling_method"], sampling_words(mechanism, cost), remarks)
    gaps = not_protected(mechanism, cost, content["bundles"], metrics, gradients)
    _compare("not_protected", content["not_protected"], gaps, remarks)
    return statement_sentence(mechanism, cost, privacy, metrics, gradients) + missing_words(content.get("missing", {}))


def check_bundles(statement: PrivacyStatement, sent: str, remarks: Remarks) -> None:
    """Compare the code that clients have pinned with the code that the run sent.

    `sent` is the digest of that code by the settings, empty if they do not have it. A pin counts only if it is of that
    code.
    """
    for name, pinned in statement.text["bundles"].items():
        if not pinned or pinned == sent:
            continue
        if statement.simulated:
            remarks.doubts.append(
                f"the statement says that client {name} has pinned code, and simulated clients pin none"
            )
        elif sent:
            text = f"client {name} has pinned the code {pinned[:16]}, and the run was configured to send {sent[:16]}"
            # Settings stay when newer code goes on with a run. Who joined after that may have pinned that code.
            late = name in statement.joined_late
            (remarks.warnings if late else remarks.doubts).append(f"the statement says that {text}")


def check_sentence(content: Mapping[str, Any], initial: str, before: str | None, remarks: Remarks) -> None:
    """Check the sentence and what is said of the run's start.

    `before` is the sentence up to that model, None if it is not known.

    Raises:
        PrivacyError: The part about the model cannot be read, or the accountants disagree.
    """
    if bool(initial) != ("initial_model" in content):
        remarks.doubts.append("configuration and statement disagree on whether the run started from an earlier model")
    elif initial:
        if doubt := wrong_start(content, before):
            remarks.doubts.append(doubt)
    elif before is not None:
        _compare("statement", content["statement"], before, remarks)


def _compare(name: str, stated: object, written: object, remarks: Remarks) -> None:
    if stated != written:
        remarks.doubts.append(f"the statement says {name} {stated!r}, this run gives {written!r}")
