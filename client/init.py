"""Set up a client on a machine of its own: what it declares, and a policy with safe defaults."""

import json
from pathlib import Path

from client.site import SITE_FILE, Site, check_name
from common.config import defaults, override, parse
from common.data.scan import refuse_if_too_bad, scan_source, source_entries
from common.data.sources import names_a_place, open_source
from common.data.units import group_names
from common.errors import ConfigError
from common.ledger.holder import Holder, own_holder
from common.privacy.policy import load_policy
from common.progress import ProgressFactory

_POLICY = """\
# What may be done with the images of this client, whatever a server asks. Nothing a server sends can widen it.
# A run that asks for more is refused before anything is computed, and the refusal is noted in the ledger.

# The most that any image may ever have spent, over all runs and all clients of this user on this machine,
# at this delta. A run registers its whole plan before round 1, and is refused if the total would be more.
max-epsilon = 8.0
delta = 1e-5

# Which accountant the cap is for. "pld": plans that are fixed in advance (tighter). "rdp": also right where later
# runs are planned after the results of earlier ones were seen (Renyi filter).
accountant = "pld"

# A plan with less noise is refused, whatever its epsilon.
least-noise-multiplier = 0.3

# "dp-sgd": noise is added here, nobody else is trusted. "client-dp" trusts the server with exact updates;
# "none" protects nobody. Leave both out unless you mean it.
mechanisms = ["dp-sgd"]

# Ways of tuning: head, bias, norm, lora, last, full.
tunings = ["head", "bias", "norm", "lora", "last", "full"]

# How counts of held-out images may leave: "none", "private" (with noise, charged), "exact" (not protected).
metrics = ["none", "private"]

# What may be protected: "image", or "group": all images of one unit, such as a patient, together.
units = UNITS

# A run that would go on with fewer clients in a round (its min-clients) is refused. That the server keeps to what it
# says is taken on trust.
least-cohort = 1

# Whether groups of images (patients) may be protected that were protected one by one before: the bound grows.
accept-group-bound = false

# Last day on which anything is allowed; without it there is no end.
# expires = 2030-12-31
"""


def init_client(folder: Path, source: str, *, path: str, name: str, progress: ProgressFactory) -> tuple[Site, Holder]:
    """Write a client's folder, and make the holder's ledger and keys if this user has none yet.

    Guarantee: a second client over the same images finds what they have spent: ledger and keys belong to
    the user, not to the folder.

    Args:
        folder: Where to write; must not hold a client yet.
        source: As `data.source`: a folder of images, a manifest, or a known name.
        path: As `data.path`.
        name: What servers call the client.
        progress: Called with a total and a label.

    Raises:
        ConfigError: The folder holds a client, or the name is empty or longer than 64 characters.
        DataError: The images are missing, or too many are unusable; lists them.
        LedgerError: The holder's folder cannot be used.
    """
    if (folder / SITE_FILE).exists():
        raise ConfigError(f"{folder} holds a client already: edit {folder / SITE_FILE}, or name another folder")
    check_name(name)
    place = str(Path(source).expanduser().resolve()) if names_a_place(source) else source
    data = parse(override(defaults(), {"data.source": place, "data.path": path})).data
    images = open_source(data)
    entries = source_entries(images)
    # Once, here, by the holder: later no server can ask by its settings how many files are bad.
    refuse_if_too_bad(scan_source(images, progress=progress), max_bad_fraction=data.max_bad_fraction)
    groups = group_names(entries.units)
    num_groups = entries.num_train if groups is None else len(set(groups[: entries.num_train].tolist()))
    site = Site(folder, name, place, path, entries.num_train, num_groups, data.test_fraction, "", "", "")
    holder = own_holder()
    with holder.books():
        pass
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not site.policy_file.exists():
        units = '["image", "group"]' if groups is None else '["group"]'
        site.policy_file.write_text(_POLICY.replace("UNITS", units), encoding="utf-8")
    load_policy(site.policy_file)
    (folder / SITE_FILE).write_text(_site_text(site), encoding="utf-8")
    return site, holder


def _site_text(site: Site) -> str:
    return "\n".join(
        [
            "# One client of this machine, written by `bract client init`.",
            f"name = {json.dumps(site.name)}",
            f"source = {json.dumps(site.source)}",
            f"path = {json.dumps(site.path)}",
            "# Declared once, a public constant: it weighs this client's updates and sets its sample rate. It stays as",
            "# it is when images come or go.",
            f"num-images = {site.num_images}",
            f"num-groups = {site.num_groups}",
            "# Share of the images that is held out for evaluation, if the source has no test set. Leave it: an image",
            "# that was trained on must not be evaluated on.",
            f"test-fraction = {site.test_fraction}",
            "# File of the backbone's weights, for a run whose weights are a file: no server names one.",
            f"weights = {json.dumps(site.weights)}",
            "# Where the federation's server listens, as host:port, and the certificate that its own must be signed by.",
            f"superlink = {json.dumps(site.superlink)}",
            f"authority = {json.dumps(site.authority)}",
            "",
        ]
    )
