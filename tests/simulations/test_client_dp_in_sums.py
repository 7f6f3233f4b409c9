"""`client-dp` under a secure sum: clip, noise in shares, charges at the clients, and what a policy allows.

Drives `client.secure.exchange`, `common.messages.secure_words`, `common.privacy.mechanisms.client_dp`.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import bract
from common.config.loading import defaults, override, parse
from common.errors import BractError, PrivacyError
from common.ledger.audit.read_only import open_read_only
from common.ledger.image_index import PARTS
from common.ledger.registrations import charges_in
from common.messages.fields import Releases
from common.messages.secure_words import SecureWords
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.accounting import spent_by
from common.privacy.noise import SecureStream
from common.privacy.plan import SENSITIVITY_SLACK
from common.secagg.noise_shares import ShareScale, clipped_words, values_of_sum
from server import federation
from server.audit.audit import audit_run
from tests.simulations.test_noise_in_shares import CLIENTS, HONEST, SETTINGS, Silent, images_fixture  # noqa: F401
from tests.support.secagg.ring_sums import ring_sum

NOISE, BOUND = 3.0, 0.5
WHOLE: dict[str, Any] = SETTINGS | {
    "privacy.mechanism": "client-dp",
    "privacy.noise-multiplier": NOISE,
    "privacy.clipping-norm": BOUND,
    "privacy.counts-noise": "",
    "privacy.closing-noise": "",
    # Updates so short that what is opened is noise alone.
    "training.learning-rate": 1e-9,
}
SIZE = 3000


def words_of_run() -> SecureWords:
    config = parse(override(defaults(), WHOLE | {"round-retries": 0}))
    sizes = {f"ward-{number}": 10 + number for number in range(CLIENTS)}
    return SecureWords({HEAD_WEIGHT: (2, SIZE // 2)}, 2, Releases.of(config), sizes, CLIENTS, config.plan(10))


def update_of(length: float, seed: int = 0) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed).standard_normal((2, SIZE // 2))
    return {HEAD_WEIGHT: drawn / np.linalg.norm(drawn) * length}


@pytest.mark.parametrize("length", [0.1, 1.0, 1e6, 1e308, math.nan, math.inf])
def test_a_client_moves_the_sum_by_the_clip_bound_at_most_and_never_its_noise(length: float) -> None:
    """T1: one client's real step under frozen noise, against the same client without any update."""
    words = words_of_run()
    update = update_of(1.0)
    with np.errstate(over="ignore"):
        update[HEAD_WEIGHT] *= length

    moved = words.encode_clipped(update, Silent()) - words.encode_clipped(update_of(0.0), Silent())
    change = values_of_sum(moved, words.gradient_scale)

    norm = float(np.linalg.norm(change))
    assert norm <= BOUND * (1 + SENSITIVITY_SLACK)
    expected = {0.1: 0.1, 1.0: BOUND, 1e6: BOUND}.get(length, 0.0)
    assert norm == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_the_average_is_over_the_planned_clients_with_the_noise_of_all_shares() -> None:
    """T2. Shares for n would be 0.77 of the noise, and a divisor of four survivors 1.25 of it."""
    words, survivors = words_of_run(), [f"ward-{number}" for number in range(4)]
    opened = ring_sum([words.encode_clipped(update_of(0.0), SecureStream()) for _ in survivors], words.ring.word_bits)

    noise = words.average_update(opened, survivors)[HEAD_WEIGHT]

    declared = NOISE * BOUND * (1 + SENSITIVITY_SLACK) * math.sqrt(len(survivors) / HONEST) / CLIENTS
    energy = float((noise**2).sum()) / declared**2
    assert 2 * min(stats.chi2.sf(energy, noise.size), stats.chi2.cdf(energy, noise.size)) > 1e-7
    assert (words.plan is not None, words.plan and words.plan.noise_shares) == (True, HONEST)
    with pytest.raises(PrivacyError, match="without a mechanism only"):
        words.encode_update(update_of(0.0), "ward-0")


def test_sizes_weigh_nothing_and_updates_add_up() -> None:
    words, frozen = words_of_run(), Silent()
    updates = [update_of(length, seed) for seed, length in enumerate((0.2, 0.4, 3.0))]

    bits = words.ring.word_bits
    opened = ring_sum([words.encode_clipped(update, frozen) for update in updates], bits)
    opened = opened - ring_sum([words.encode_clipped(update_of(0.0), frozen) for _ in updates], bits)
    average = words.average_update(opened, list(words.sizes)[:3])[HEAD_WEIGHT]

    clipped = [update[HEAD_WEIGHT] * min(1.0, BOUND / np.linalg.norm(update[HEAD_WEIGHT])) for update in updates]
    assert average == pytest.approx(sum(clipped) / CLIENTS, abs=3 * words.gradient_scale.step)


def test_an_update_that_rounding_made_too_long_is_refused() -> None:
    """Nine values of 0.51 steps would become whole steps, and twice as long."""
    scale = ShareScale(step=1.0, share_stddev=100.0, most_of_unit=1.53, bits=64)

    with pytest.raises(PrivacyError, match="longer than the clip bound after rounding"):
        clipped_words(np.full(9, 0.51), scale, stream=SecureStream())


def test_a_run_adds_the_noise_of_its_clients_and_charges_each_client(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server adds nothing: noise at both ends would be 1.26 of what is accounted here."""
    models: list[np.ndarray] = []
    genuine = federation.run_rounds

    def watched(channel: Any, strategy: Any, arrays: Any, *args: Any, **more: Any) -> Any:
        models.append(arrays[HEAD_WEIGHT].astype(np.float64))
        for result in genuine(channel, strategy, arrays, *args, **more):
            models.append(result.arrays[HEAD_WEIGHT].astype(np.float64))
            yield result

    monkeypatch.setattr(federation, "run_rounds", watched)
    bract.simulate(WHOLE | {"data.source": str(images), "privacy.metrics": "exact"}, out=tmp_path / "run", quiet=True)

    noise = np.diff(np.stack(models), axis=0)
    declared = NOISE * BOUND * (1 + SENSITIVITY_SLACK) * math.sqrt(CLIENTS / HONEST) / CLIENTS
    energy = float((noise**2).sum()) / declared**2
    assert 2 * min(stats.chi2.sf(energy, noise.size), stats.chi2.cdf(energy, noise.size)) > 1e-7
    stated = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert (stated["privacy_unit"], stated["noise_shares"], stated["max_grad_norm"]) == ("client", HONEST, BOUND)
    assert stated["epsilon_max_alone"] > 1.5 * stated["epsilon_max"]
    assert "each client: epsilon <=" in stated["statement"]
    assert "at the clients: this holds while 3 clients of each sum are honest" in stated["statement"]
    assert not [gap for gap in stated["not_protected"] if "must be trusted" in gap]
    report = audit_run(tmp_path / "run")
    assert (report.verdict, report.remarks.doubts) == ("verified", [])
    assert report.trust.startswith("each client clips its own update and adds a share of the noise; 3 of 5")
    check_ledger(next((tmp_path / "run").rglob("*.sqlite")), stated)


def check_ledger(file: Path, stated: dict[str, Any]) -> None:
    """All images of a client are one unit, in training and beside it."""
    with open_read_only(file) as ledger:
        (charge,) = charges_in(ledger)
    assert charge.unit == "group"
    assert len(charge.parts["training"].images) > 1
    assert max(len(set(charge.parts[part].units.tolist())) for part in PARTS) == 1
    spent = spent_by(charge.planned["training"], delta=stated["delta"])
    assert spent.pld == pytest.approx(stated["epsilon_max"])
    assert not [event for event in charge.planned["evaluation"] if event.count]


@pytest.mark.parametrize(
    ("lines", "allowed"),
    [
        ('mechanisms = ["client-dp"]\naccept-honest-shares = true', True),
        ('mechanisms = ["client-dp"]\naccept-honest-shares = true\nmax-epsilon-alone = 3.5', False),
        ('mechanisms = ["client-dp"]', False),
        ("accept-honest-shares = true", False),
    ],
    ids=["believes", "caps its own share", "believes nobody", "allows dp-sgd alone"],
)
def test_a_holder_decides_whether_and_at_what_cost(images: Path, tmp_path: Path, lines: str, allowed: bool) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'{lines}\nmax-epsilon = 3.0\ndelta = 1e-5\naggregations = ["secure"]\nmetrics = ["none"]\n')
    settings = WHOLE | {"data.source": str(images), "privacy.policy": str(policy), "num-rounds": 1}
    # One round at this noise costs less than 3 with three honest clients, and more than 3.5 by the client's own share.
    settings |= {"privacy.noise-multiplier": 2.0}

    for aggregation in ("secure", "plain"):
        settings |= {"privacy.aggregation": aggregation}
        if allowed and aggregation == "secure":
            bract.simulate(settings, out=tmp_path / aggregation, quiet=True)
        else:
            with pytest.raises(BractError):
                bract.simulate(settings, out=tmp_path / aggregation, quiet=True)
