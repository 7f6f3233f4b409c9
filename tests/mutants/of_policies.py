"""Limits of a data holder that are read wrongly, once only, or not at all."""

from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from client import admission
from client.client_config import load_site
from client.runtime import start, task
from client.session import ClientSession, RunClients
from common.errors import BundleError, ConfigError
from common.privacy import policy as policies
from common.privacy.policy import ANYTHING, Policy, load_policy
from common.system import app_bundle
from simulations import app as simulation
from tests.client import test_admission as admitted
from tests.common.privacy import test_policy as limits
from tests.common.system import test_app_bundle as bundles
from tests.contracts import test_whole_digests as digests
from tests.mutants.faults import every_case, planted
from tests.simulations import test_who_is_asked as asked
from tests.support.clients.own_clients import OwnClient, write_images

planted(
    asked.test_a_policy_of_the_clients_is_asked_about_by_each_of_them,
    simulation.make_context,
    {"simulated clients that nobody asks about their policy": (" or config.privacy.policy)", ")")},
)


def every_limit_is_in_the_digest() -> None:
    strict = Policy(max_epsilon=1.0, delta=1e-5)
    other: dict[str, Any] = {
        **{"max_epsilon": 2.0, "delta": 1e-6, "accountant": "rdp", "min_noise_multiplier": 1.0, "mechanisms": ()},
        **{
            "tunings": (),
            "metrics": (),
            "closing": (),
            "subgroup_columns": ("sex",),
            "units": (),
            "min_cohort": 2,
            "accept_group_bound": True,
            "accept_honest_shares": True,
        },
        **{"aggregations": ("plain", "secure"), "roster": "cd" * 32, "max_epsilon_alone": 9.0},
        **{"gradients": ("auto", "opacus"), "expires": date(2031, 1, 1), "classes": ("a", "b"), "bundle": "ab" * 32},
    }
    assert set(other) == set(Policy.model_fields)
    digests_of = {strict.model_copy(update={name: value}).digest for name, value in other.items()}
    assert len(digests_of | {strict.digest}) == 1 + len(other)


_LIMITS = limits.test_check_plan_takes_its_limits_and_refuses_beyond
planted(
    _LIMITS,
    Policy.check_plan,
    {
        "a delta that must be smaller than the policy's": ("plan.delta > self.delta", "plan.delta >= self.delta"),
        "a delta that may be any": ("plan.delta > self.delta", "False"),
        "noise that must be more than the policy's": ("if noise < self", "if noise <= self"),
    },
)
_CAP = every_case(limits.test_check_spent_caps_the_figure_that_the_policy_names)
planted(
    _CAP,
    Policy.check_spent,
    {
        "an epsilon that must be less than the cap": ("not total <= self", "not total < self"),
        "an epsilon that is no number": ("not total <= self.max_epsilon", "total > self.max_epsilon"),
    },
)
planted(
    _CAP,
    Policy.capped_figure,
    {
        "a cap on the other accountant's figure": ('self.accountant == "rdp"', 'self.accountant != "rdp"'),
        "a cap on one accountant's figure alone": ('spent.rdp if self.accountant == "rdp" else spent.pld', "spent.pld"),
        "a cap on the smaller figure": (
            'spent.rdp if self.accountant == "rdp" else spent.pld',
            "min(spent.pld, spent.rdp)",
        ),
    },
)
_REFUSED = every_case(limits.test_check_run_refuses)
planted(
    _REFUSED,
    Policy.check_run,
    {
        "a least cohort that is not looked at": ("config.min_updates < self.min_cohort", "False"),
        "a least cohort of the clients that are planned": (
            "config.min_updates < self.min_cohort",
            "config.cohort_size < self.min_cohort",
        ),
        "classes in any order": (
            "config.data.class_names != self.classes",
            "set(config.data.class_names) != set(self.classes)",
        ),
        "units that are not looked at": (
            "of_units if config.mechanism.clips_units else ()",
            "of_units if False else ()",
        ),
        "an empty list that allows everything": ("if value not in allowed:", "if allowed and value not in allowed:"),
    },
)
_LAST_DAY = partial(limits.test_check_run_ends_after_the_last_day, days=0, allowed=True)
planted(
    _LAST_DAY,
    Policy.check_run,
    {
        "a policy that ends before its last day": ("today > self.expires", "today >= self.expires"),
    },
)
planted(
    partial(limits.test_check_run_ends_after_the_last_day, days=-1, allowed=False),
    Policy.check_run,
    {
        "a policy that never ends": ("today > self.expires", "False"),
    },
)
planted(
    every_limit_is_in_the_digest,
    policies._digest_of,
    {
        "a policy's digest without one of its keys": ("exclude=added)", "exclude={'min_cohort', *(added or ())})"),
    },
)


def a_policy_that_was_changed_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    found = []
    for epsilon in (3.0, 1.0):
        file.write_text(f"max-epsilon = {epsilon}\ndelta = 1e-5\n")
        found.append(load_policy(file).max_epsilon)
    assert found == [3.0, 1.0]


planted(
    a_policy_that_was_changed_is_read_anew,
    policies.load_policy,
    {
        "a policy that is remembered by the name of its file": (
            "_policy_of(file, file.read_bytes())",
            "_policy_of.__dict__.setdefault(str(file), _policy_of(file, file.read_bytes()))",
        ),
    },
)

_NO_FILE = admitted.test_a_client_without_a_policy_file_takes_nobodys_word_for_it
planted(
    _NO_FILE,
    admission.admit,
    {
        "a client without a policy that admits a run": (
            "load_policy(site.policy_file)",
            "load_policy(site.policy_file) if site.policy_file.exists() else load_policy.__globals__['ANYTHING']",
        ),
    },
)
planted(
    _NO_FILE,
    ClientSession.guard,
    {
        "a client without a policy whose guard allows anything": (
            "if self.policy_file is None",
            "if self.policy_file is None or not self.policy_file.exists()",
        ),
    },
)
planted(
    _NO_FILE,
    RunClients._own,
    {
        "a client without a policy that is opened as a simulated one": (
            "site.policy_file, OwnHome()",
            "site.policy_file if site.policy_file.exists() else None, OwnHome()",
        ),
    },
)


def a_client_starts_with_a_policy_and_a_pin_alone(tmp_path: Path, own_home: Path) -> None:
    """What `bract client start` and each task ask before any code of a server runs."""
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(2)))
    site, unpinned = load_site(client.folder), ANYTHING
    with pytest.raises(BundleError, match="pins no code"):
        task.check_pinned(unpinned)
    task.check_pinned(ANYTHING.model_copy(update={"bundle": "ab" * 32}))
    task.check_pinned(ANYTHING.model_copy(update={"mechanisms": ("none",)}))
    central = ANYTHING.model_copy(update={"mechanisms": ("client-dp",), "aggregations": ("plain",)})
    task.check_pinned(central)
    with pytest.raises(BundleError, match="allows client-dp but pins no code"):
        task.check_pinned(central.model_copy(update={"aggregations": ("secure",)}))
    site.policy_file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        start.start_client(client.folder, None)  # type: ignore[arg-type]


_START = a_client_starts_with_a_policy_and_a_pin_alone
planted(
    _START,
    task.check_pinned,
    {
        "an unpinned client that starts where it allows another mechanism too": (
            "if local and not policy.bundle:",
            "if list(policy.mechanisms) == local and not policy.bundle:",
        ),
        "an unpinned client that starts where it adds the noise of whole clients": (
            "mechanisms_under(policy.mechanisms, policy.aggregations)",
            "mechanisms_under(policy.mechanisms, ['plain'])",
        ),
        "an unpinned client that starts": ("if local and not policy.bundle:", "if False:"),
    },
)
planted(
    _START,
    start.start_client,
    {
        "a client that starts without a policy": ("policy = load_policy(site.policy_file)", "return 0"),
    },
)
planted(
    digests.test_pin_of_a_bundle_is_whole,
    task.check_bundle,
    {
        "a bundle by its digest's first digits": ("digest != policy.bundle", "digest[:16] != policy.bundle[:16]"),
        "a bundle that nobody compares": ("policy.bundle and digest != policy.bundle", "False"),
    },
)
_CHECKED = digests.test_pin_that_a_launcher_has_checked_is_whole
planted(
    _CHECKED,
    admission.admit,
    {
        "a launcher's word by its first digits": (
            "policy.bundle != pinned",
            "not pinned.startswith(policy.bundle[:16])",
        ),
        "a launcher's word in capitals": ("policy.bundle != pinned", "policy.bundle != pinned.lower()"),
        "a pinned client that runs what was sent": (
            "policy.bundle and policy.bundle != pinned",
            "pinned and policy.bundle != pinned",
        ),
    },
)
_TAMPERED = every_case(bundles.test_digest_changes_with_any_byte_file_or_name)
planted(
    _TAMPERED,
    app_bundle.files_digest,
    {
        "a bundle by its names and sizes": ("hashlib.sha256(files[name]).hexdigest()", "len(files[name])"),
        "a bundle by its contents": ("{name}\\0", ""),
    },
)
planted(
    partial(
        bundles.test_a_folder_that_was_changed_is_noticed, tamper=lambda folder: (folder / "more.py").write_bytes(b"")
    ),
    app_bundle.holds_exactly,
    {
        "a folder that holds more than the bundle": ("set(kept) == set(files)", "set(kept) >= set(files)"),
    },
)
planted(
    partial(
        bundles.test_a_folder_that_was_changed_is_noticed, tamper=lambda folder: (folder / "elsewhere").symlink_to("/")
    ),
    app_bundle.holds_exactly,
    {
        "a folder with links": ("path.is_symlink() or ", ""),
    },
)
planted(
    every_case(bundles.test_bundle_with_a_name_no_honest_server_makes_is_refused),
    app_bundle._check_entries,
    {
        "a bundle with two files of one name but for capitals": (".casefold()", ""),
    },
)
