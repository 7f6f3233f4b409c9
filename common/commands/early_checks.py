"""Checks before a run that its clients would otherwise be the first to make."""

from pathlib import Path

from common.config.sections import ModelConfig, PrivacyConfig
from common.errors import ConfigError, DataError
from common.models.providers.registry import PROVIDERS
from common.privacy.policy import ANYTHING, Policy, load_policy
from common.system.extras import install_hint, is_installed

# Optional package -> the extra that installs it, and what needs it.
_PACKAGES = {"peft": ("lora", "model.tuning='lora'"), "open_clip": (PROVIDERS["clip"].extra, "CLIP backbones")}


def check_packages(model: ModelConfig) -> None:
    """Refuse a model whose optional package is not installed.

    Raises:
        ConfigError: The package is missing; the text has the command that installs it.
    """
    wanted = {"peft": model.tuning == "lora", "open_clip": model.backbone.startswith("clip:")}
    for package, (extra, what) in _PACKAGES.items():
        if wanted[package] and not is_installed(package):
            raise ConfigError(f"{what} needs the package {package}: {install_hint(extra)}")


def refuse_missing_folder(folder: str) -> None:
    """Refuse an `evaluation.folder` that is not there.

    An empty setting passes.

    Raises:
        DataError: There is nothing at that place.
    """
    if folder and not Path(folder).exists():
        raise DataError(f"evaluation.folder={folder!r}: there is no such folder or table")


def refuse_unknown_rows(privacy: PrivacyConfig, *, exact_sums: bool) -> None:
    """Refuse exact sums over real clients under `privacy.strict-rows`.

    Raises:
        ConfigError: The settings ask for strict rows, and sums have no noise.
    """
    # A client that refused because of its classes would tell the server of them, and so would counts of holders.
    if privacy.strict_rows and exact_sums:
        raise ConfigError(
            "privacy.strict-rows refuses secure sums without noise over real clients, because nobody may know which "
            "classes they hold: use a privacy.mechanism, or leave it false"
        )


def policy_of(privacy: PrivacyConfig) -> Policy:
    """Return the policy that simulated clients follow.

    Raises:
        ConfigError: The file that `privacy.policy` names cannot be used.
    """
    return load_policy(Path(privacy.policy)) if privacy.policy else ANYTHING
