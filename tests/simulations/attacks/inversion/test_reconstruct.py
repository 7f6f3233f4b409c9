"""Gradient inversion: the update is the real one, the attack works on it, and noise stops it.

Drives `simulations.attacks.inversion.findings`, `simulations.attacks.inversion.plot`,
`simulations.attacks.inversion.victim`, `simulations.commands.audit_inversion`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from client.training.trainer import Trainer
from common.config.schema import RunConfig
from common.data.client_dataset import shard
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared, prepare
from common.errors import ConfigError, DataError
from common.models.classifier import CnnNetwork, load_arrays
from common.system.progress import no_progress
from simulations.attacks.inversion.findings import Likeness, invert_both, psnr, ssim, verdict
from simulations.attacks.inversion.reconstruct import Attack, gradient_of, inner_maps_of, label_of, rebuild
from simulations.attacks.inversion.victim import Victim, mean_image, rank_of, victim_of
from simulations.commands.audit_inversion import inversion_command

pytestmark = pytest.mark.numerical

# Noise as set spares the search for it; about what epsilon 8 over 30 rounds needs.
NOISE = 3.3
SETTINGS = {
    "model.backbone": "cnn",
    "training.local-epochs": 1,
    "num-rounds": 30,
    "privacy.noise-multiplier": NOISE,
    "privacy.metrics": "none",
}
QUICK = ("--steps", "5", "--restarts", "1", *(x for key in SETTINGS for x in ("--set", f"{key}={SETTINGS[key]}")))


@pytest.fixture(scope="module")
def run(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config(SETTINGS)


@pytest.fixture(scope="module")
def pixels(run: RunConfig) -> Prepared:
    return prepare(run)


@pytest.fixture(scope="module")
def victim(run: RunConfig, pixels: Prepared) -> Victim:
    return victim_of(run, pixels, 0)


def network_of(victim: Victim) -> CnnNetwork:
    return CnnNetwork(victim.pixels.shape[0], victim.pixels.shape[2], len(victim.prepared.scan.classes))


def command(*arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("inversion")(inversion_command)
    return CliRunner().invoke(app, ["inversion", *arguments], env={"COLUMNS": "300"})


def test_reply_is_what_the_client_of_a_run_sends(run: RunConfig, pixels: Prepared, victim: Victim) -> None:
    owner = np.full(len(pixels.scan.labels), -1, dtype=np.int32)
    owner[victim.image] = 0
    dealt = Partition(owner, np.zeros(len(owner), dtype=bool), np.array([1]), np.array([1]), 0)
    plain = run.model_copy(update={"privacy": run.privacy.model_copy(update={"mechanism": "none"})})
    trainer = Trainer(plain, (8, 8, 1), pixels.scan.classes)

    own = shard(pixels, dealt, 0, private=False)
    sent = trainer.train(victim.start, own, name="00000", server_round=1, plan=None)

    reply = victim.reply(private=False)
    assert list(reply) == list(trainer.trainable)
    assert all(reply[name].dtype == np.float32 and np.array_equal(reply[name], sent[name]) for name in sent)


def test_reply_with_privacy_has_fresh_noise_of_the_plans_size(victim: Victim) -> None:
    one, other = victim.reply(private=True), victim.reply(private=True)

    difference = np.concatenate([(one[name] - other[name]).ravel() for name in one]) / victim.settings.learning_rate
    expected = np.sqrt(2) * victim.plan.noise_stddev / victim.plan.expected_batch_size
    assert victim.plan.noise_multiplier == NOISE
    assert difference.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * difference.size))


def test_gradient_is_what_torch_says_whatever_the_weight_decay(run: RunConfig, victim: Victim) -> None:
    decaying = run.model_copy(update={"training": run.training.model_copy(update={"weight_decay": 0.1})})
    victim = replace(victim, config=decaying)
    network = network_of(victim)
    load_arrays(network, victim.start)
    inputs, label = network.prepare(victim.pixels[None]), torch.tensor([victim.label])

    torch.nn.functional.cross_entropy(network(inputs), label).backward()

    found = gradient_of(victim.start, victim.reply(private=False), victim.settings)
    for name, parameter in network.named_parameters():
        assert np.allclose(found[name], parameter.grad, atol=1e-5), name


def test_label_is_read_off_every_class(run: RunConfig, pixels: Prepared) -> None:
    images = [int(np.flatnonzero(pixels.scan.labels == label)[7]) for label in range(10)]
    victims = [victim_of(run, pixels, image) for image in images]

    read = [label_of(gradient_of(v.start, v.reply(private=False), v.settings)) for v in victims]

    assert read == list(range(10))


def test_inner_maps_are_exact_without_noise_and_not_trusted_with_it(victim: Victim) -> None:
    network = network_of(victim)
    load_arrays(network, victim.start)
    entering: list[torch.Tensor] = []
    network.dense.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0][0].detach()))
    network(network.prepare(victim.pixels[None]))

    maps, trust = inner_maps_of(gradient_of(victim.start, victim.reply(private=False), victim.settings))
    _, trust_in_noise = inner_maps_of(gradient_of(victim.start, victim.reply(private=True), victim.settings))

    assert np.allclose(maps, entering[0].numpy(), atol=1e-4)
    assert trust == pytest.approx(1.0, abs=1e-4)
    assert trust_in_noise < 0.05


def test_attack_rebuilds_the_image_without_privacy_alone(victim: Victim) -> None:
    found = invert_both(victim, Attack(restarts=2, steps=200), no_progress)

    plain, noised, blind = found.likeness(found.plain), found.likeness(found.noised), found.blind
    assert plain.psnr > blind.psnr + 10
    assert (plain.rank, found.plain.label) == (1, victim.label)
    assert plain.ssim > 0.95
    assert noised.psnr < blind.psnr + 1
    assert noised.ssim < 0.3
    assert found.verdict.startswith("Recognisable without privacy: PSNR")
    assert found.epsilon_of_update < found.epsilon


def test_attack_repeats_with_its_seed_and_counts_its_steps(victim: Victim) -> None:
    reply, told = victim.reply(private=False), []

    def rebuilt(seed: int) -> np.ndarray:
        attack = Attack(restarts=2, steps=4, seed=seed)
        shape, network = victim.pixels.shape, network_of(victim)
        settings, start = victim.settings, victim.start
        return rebuild(network, start, reply, settings, attack, input_shape=shape, advance=told.append).pixels

    assert np.array_equal(rebuilt(1), rebuilt(1))
    assert not np.array_equal(rebuilt(1), rebuilt(2))
    assert sum(told) == 4 * 2 * 4


def test_rank_is_first_for_the_image_itself_and_last_for_one_colour(pixels: Prepared, victim: Victim) -> None:
    other = pixels.inputs[np.array([1])][0]

    assert rank_of(victim, 0.5 * victim.pixels + 20) == 1
    assert rank_of(victim, other) > 1
    assert rank_of(victim, np.full((8, 8, 1), 90)) == len(pixels.scan.labels)


def test_average_leaves_the_victims_image_out(pixels: Prepared, victim: Victim) -> None:
    everything = pixels.inputs[:].astype(np.float64)

    assert np.allclose(mean_image(victim), everything[1:].mean(axis=0))


def test_likeness_by_hand() -> None:
    black, white = np.zeros((8, 8, 1), dtype=np.uint8), np.full((8, 8, 1), 255, dtype=np.uint8)

    assert psnr(black, black + np.uint8(51)) == pytest.approx(20 * np.log10(5))
    assert ssim(white, white) == pytest.approx(1.0)
    assert ssim(black, white) == pytest.approx(1e-4 / (1 + 1e-4))


@pytest.mark.parametrize(
    ("plain", "noised", "says"),
    [
        (
            Likeness(30, 0.9, 1),
            Likeness(5, 0, 900),
            "With epsilon 7.999: 5.0 dB, no better than an average image (13.0 dB)",
        ),
        (Likeness(30, 0.9, 1), Likeness(14, 0, 2), "14.0 dB, above an average image (13.0 dB), yet other images"),
        (Likeness(30, 0.9, 1), Likeness(20, 0.5, 1), "RECOGNISABLE WITH PRIVACY TOO"),
        (Likeness(12, 0.1, 1), Likeness(5, 0, 900), "failed even without privacy"),
        (Likeness(20, 0.1, 2), Likeness(5, 0, 900), "failed even without privacy"),
    ],
)
def test_verdict_follows_from_the_figures(plain: Likeness, noised: Likeness, says: str) -> None:
    assert says in verdict(plain, noised, Likeness(13.0, 0.2), epsilon=7.999)


def test_command_writes_a_picture_and_json(tmp_path: Path) -> None:
    done = command(*QUICK, "--image", "3", "--out", str(tmp_path / "seen.png"), "--json")

    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["image"], found["label"], found["without_privacy"]["label"]) == (3, "3", "3")
    assert found["privacy"]["noise_multiplier"] == NOISE
    assert found["config"]["data.image-size"] == 32
    assert found["attack"]["steps"] == 5
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 2 * picture.height


def test_command_says_what_it_shows_and_does_not(tmp_path: Path) -> None:
    done = command(*QUICK, "--set", "data.image-size=8", "--out", str(tmp_path / "seen.png"))

    assert done.exit_code == 0, done.output
    for words in ("an average image", "for the one update shown", "harder to invert, not safe", "seen.png"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--image", "1797"), ["--image 1797", "0 to 1796"]),
        (("--image", "-1"), ["--image -1", "0 to 1796"]),
        (("--out", "/no/such/folder/a.png"), ["--out", "folder that exists"]),
        (("--out", "a.jpg"), ["--out a.jpg", ".png"]),
        (("--set", "model.backbone=efficientnet_lite0"), ["model.backbone", "cnn"]),
        (("--set", "privacy.mechanism=client-dp"), ["privacy.mechanism", "exact update"]),
        (("--set", "training.local-epochs=2"), ["training.local-epochs", "one step"]),
        (("--set", "training.optimizer=adamw"), ["training.optimizer", "sgd"]),
        (("--set", "training.augmentation=flip"), ["training.augmentation"]),
    ],
)
def test_command_refuses_what_it_cannot_show(
    arguments: tuple[str, ...], fragments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    done = command(*arguments)

    assert done.exit_code == 2
    assert all(fragment in " ".join(done.output.split()) for fragment in fragments), done.output
    assert not list(tmp_path.iterdir())


def test_victim_is_refused_when_its_image_cannot_be_used(run: RunConfig, pixels: Prepared) -> None:
    usable = pixels.scan.usable.copy()
    usable[4] = False

    with pytest.raises(DataError, match="--image 4"):
        victim_of(run, replace(pixels, scan=replace(pixels.scan, usable=usable)), 4)
    with pytest.raises(ConfigError, match="0 to 1796"):
        victim_of(run, pixels, 5000)
