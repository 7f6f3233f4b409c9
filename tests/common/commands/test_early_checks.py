"""What a client alone would find out shows in the dry run and in the plan, before anything is read or trained."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from bract import app
from common.commands import early_checks
from common.config.sections import DataConfig
from common.data.sources import image_folder, registry

DRY_RUN, PLAN = "simulate SOURCE --dry-run", "plan --set data.source=SOURCE"
POLICY = "max-epsilon = {}\ndelta = 1e-5\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        for number in range(6):
            file = tmp_path / "photos" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * number + len(label)).save(file)
    return tmp_path / "photos"


@pytest.mark.parametrize("command", [DRY_RUN, PLAN])
@pytest.mark.parametrize(
    ("policy", "settings", "said"),
    [
        ("", "privacy.unit=group", "needs a source that says which images belong together"),
        ("", "model.tuning=lora model.backbone=resnet18 model.weights=random", "needs the package peft: pip install"),
        ("", "model.backbone=clip:ViT-B-32", "needs the package open_clip: pip install"),
        ("missing", "", "cannot be read (No such file"),
        ("max-epsilon = ", "", "is not a TOML file"),
        ("max-epsilon = 8.0", "", "delta: Field required"),
        ("max-epsilom = 8.0", "", "max-epsilom"),
        (POLICY.format(2.0), "", "the policy allows 2"),
        (POLICY.format(8.5) + "min-noise-multiplier = 50.0", "", "is less than the policy's 50"),
        (POLICY.format(8.5) + "tunings = ['bias']", "", "model.tuning='head' is not allowed, only bias"),
        (POLICY.format(8.5) + "mechanisms = ['client-dp']", "", "privacy.mechanism='dp-sgd' is not allowed"),
        (POLICY.format(8.5) + "expires = 2001-01-01", "", "the policy ended on 2001-01-01"),
    ],
)
def test_a_run_that_every_client_would_refuse_is_refused_ahead(
    photos: Path, command: str, policy: str, settings: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_checks, "is_installed", lambda _: False)
    file = photos.parent / "policy.toml"
    if policy and policy != "missing":
        file.write_text(policy)
    pairs = [*settings.split(), "num-clients=2", *([f"privacy.policy={file}"] if policy else [])]
    arguments = [word for pair in pairs for word in ("--set", pair)]

    done = CliRunner().invoke(
        app, [*command.replace("SOURCE", str(photos)).split(), *arguments], env={"COLUMNS": "200"}
    )

    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split()), done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", [f"{DRY_RUN} --set model.backbone=cnn --set data.image-size=8", PLAN])
def test_a_dry_run_and_a_plan_open_their_source_once(
    photos: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, loaded = [], []
    genuine, load = image_folder.open_folder, image_folder._load

    def counted(config: DataConfig) -> object:
        opened.append(config.source)
        return genuine(config)

    monkeypatch.setattr(registry, "open_folder", counted)
    monkeypatch.setattr(image_folder, "_load", lambda *arguments: loaded.append(1) or load(*arguments))

    done = CliRunner().invoke(app, [*command.replace("SOURCE", str(photos)).split(), "--set", "num-clients=2"])

    assert done.exit_code == 0, done.output
    assert (opened, loaded) == ([str(photos)], [1])
