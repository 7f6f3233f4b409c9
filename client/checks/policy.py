"""Checks of a client's policy and its pin."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from shlex import quote

from client.checks.check_result import Finding, fail, ok, warn
from client.client_config import Site
from client.secure.roster_file import ROSTER_FILE, check_roster, read_roster
from common.errors import BractError, ConfigError
from common.privacy.batched_gradients import OPACUS
from common.privacy.mechanisms.registry import mechanisms_under
from common.privacy.policy import Policy, load_policy
from common.system.app_bundle import bundle_digest, installed_bundle

_SOON_DAYS = 14


def check_policy(site: Site) -> tuple[Policy | None, Finding]:
    """Check that the policy can be read and allows any run.

    Returns:
        The policy, None where it cannot be read, and the finding.
    """
    try:
        policy = load_policy(site.policy_file)
    except ConfigError as error:
        return None, fail(
            "policy",
            str(error),
            "fix the line that is named; until then no server is answered. `bract client init` in an empty folder "
            "writes a policy to compare with",
        )
    return policy, _judge_policy(policy, site)


def check_pin(site: Site, policy: Policy) -> Finding:
    """Check that the policy pins the code that is installed here."""
    review = f"`bract client review {quote(str(site.folder))}`"
    try:
        installed = bundle_digest(installed_bundle())
    except BractError as error:
        return fail("pin", f"the installed Bract is damaged: {error}", "reinstall bract")
    if not policy.bundle:
        # `bract client start` refuses to start without a pin where noise is promised.
        allowed = mechanisms_under(policy.mechanisms, policy.aggregations)
        promises_noise = any(mechanism.noise_at_client for mechanism in allowed)
        return (fail if promises_noise else warn)(
            "pin",
            "no code is pinned: any code that a server sends would be trusted with the images",
            f'put bundle = "{installed}", the Bract installed here, into {site.policy_file}; {review} says more',
        )
    if policy.bundle != installed:
        return warn(
            "pin",
            f"{policy.bundle[:16]} is pinned, the Bract installed here is {installed[:16]}: only a server that sends "
            "the pinned one is answered",
            f"if Bract was updated on purpose, {review} ends with the line for {site.policy_file}",
        )
    return ok("pin", f"{policy.bundle[:16]}, the Bract installed here: no other code runs")


def check_roster_of(site: Site, policy: Policy) -> Iterator[Finding]:
    """Check the roster of a policy that allows secure sums."""
    if "secure" not in policy.aggregations:
        return
    take = f"`bract client roster {quote(str(site.folder))} FILE`"
    try:
        roster = read_roster(site.folder / ROSTER_FILE)
        check_roster(roster, site.name, site.folder / ROSTER_FILE)
    except BractError as error:
        yield fail("roster", str(error), f"{take} takes the file that the holders have exchanged")
        return
    if roster.digest.hex() != policy.roster:
        yield fail(
            "roster",
            f"{site.policy_file} names {policy.roster[:16] or 'no roster'}, the client's folder holds "
            f"{roster.digest.hex()[:16]}: runs with secure sums are refused",
            f"{take} shows the line for the policy; compare its digest with the other holders",
        )
        return
    yield ok("roster", f"{len(roster)} clients, {policy.roster[:16]}: the other holders must have the same")


def _judge_policy(policy: Policy, site: Site) -> Finding:
    today, file = datetime.now(UTC).date(), site.policy_file
    if policy.expires is not None and today > policy.expires:
        return fail(
            "policy", f"it ended on {policy.expires}", f"set a later day as expires in {file}, or stop the client"
        )
    empty = [name for name in ("mechanisms", "tunings", "gradients", "metrics", "units") if not getattr(policy, name)]
    if empty:
        return fail("policy", f"nothing is allowed: {', '.join(empty)} is empty", f"list what may be done in {file}")
    allowed = f"at most epsilon {policy.max_epsilon:g} at delta {policy.delta:g}, {', '.join(policy.mechanisms)}" + (
        f", until {policy.expires}" if policy.expires else ""
    )
    mechanisms = mechanisms_under(policy.mechanisms, policy.aggregations)
    warnings = [text for mechanism in mechanisms if (text := mechanism.trust_warning)]
    if OPACUS in policy.gradients:
        warnings.append("gradients of opacus are in batches, and no epsilon covers their rounding")
    if not math.isfinite(policy.max_epsilon):
        warnings.append("max-epsilon sets no limit")
    if warnings:
        return warn("policy", f"{allowed}; {'; '.join(warnings)}", f"if you do not mean it, take it out of {file}")
    if policy.expires is not None and (policy.expires - today).days <= _SOON_DAYS:
        return warn("policy", allowed, f"it ends soon: set a later day as expires in {file} to let the client continue")
    return ok("policy", allowed)
