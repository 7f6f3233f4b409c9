"""Is the policy readable and in force, and does it pin the code that may run here?"""

import math
from datetime import UTC, datetime
from shlex import quote

from client.deployment.finding import Finding, fail, ok, warn
from client.site import Site
from common.errors import BractError, ConfigError
from common.privacy.policy import Policy, load_policy

_SOON_DAYS = 14
_TRUSTING = {
    "none": "mechanism none protects nobody",
    "client-dp": "mechanism client-dp trusts the server with exact updates",
}


def check_policy(site: Site) -> tuple[Policy | None, Finding]:
    """The policy, None if it cannot be read; and whether anything is allowed under it."""
    try:
        policy = load_policy(site.policy_file)
    except ConfigError as error:
        return None, fail(
            "policy",
            str(error),
            "mend the line that is named; nothing is answered until then. `bract client init` in an empty folder "
            "writes a policy to compare with",
        )
    return policy, _judge(policy, site)


def _judge(policy: Policy, site: Site) -> Finding:
    today, file = datetime.now(UTC).date(), site.policy_file
    if policy.expires is not None and today > policy.expires:
        return fail(
            "policy", f"it ended on {policy.expires}", f"set a later day as expires in {file}, or stop the client"
        )
    empty = [name for name in ("mechanisms", "tunings", "metrics", "units") if not getattr(policy, name)]
    if empty:
        return fail("policy", f"nothing is allowed: {', '.join(empty)} is empty", f"list what may be done in {file}")
    found = f"at most epsilon {policy.max_epsilon:g} at delta {policy.delta:g}, {', '.join(policy.mechanisms)}" + (
        f", until {policy.expires}" if policy.expires else ""
    )
    trusting = [text for mechanism, text in _TRUSTING.items() if mechanism in policy.mechanisms]
    if not math.isfinite(policy.max_epsilon):
        trusting.append("max-epsilon sets no limit")
    if trusting:
        return warn("policy", f"{found}; {'; '.join(trusting)}", f"if you do not mean it, take it out of {file}")
    if policy.expires is not None and (policy.expires - today).days <= _SOON_DAYS:
        return warn("policy", found, f"it ends soon: set a later day as expires in {file} if the client is to go on")
    return ok("policy", found)


def check_pin(site: Site, policy: Policy) -> Finding:
    """Whether the code that may run here is named, and is the one that is installed."""
    review = f"`bract client review {quote(str(site.folder))}`"
    try:
        installed = installed_digest()
    except BractError as error:
        return fail("pin", f"the installed Bract cannot be named: {error}", "reinstall bract")
    if not policy.bundle:
        return (fail if "dp-sgd" in policy.mechanisms else warn)(  # a start is refused where noise is promised
            "pin",
            "no code is pinned: whatever a server sends would be trusted with the images",
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


def installed_digest() -> str:
    """Digest of the bundle that the installed Bract would be, 64 hex digits.

    Raises:
        BractError: The installation is not whole.
    """
    from common.bundle import bundle_digest, installed_bundle

    return bundle_digest(installed_bundle())
