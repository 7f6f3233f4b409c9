"""Creation of a client's folder, with its declared numbers and a safe policy."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from client.client_config import AUTHORITY_FILE, SITE_FILE, Site, check_name, server_place
from client.secure.roster_file import check_roster, policy_lines, read_roster, take_roster
from client.setup.ca_certificate import as_pem, read_authority
from client.setup.node_key import make_node_key
from client.site_images import own_images
from common.config.loading import defaults
from common.data.partitioning.privacy_units import group_names
from common.data.scan import refuse_if_too_bad, refuse_nothing_usable, scan_source
from common.data.sources.registry import names_a_place
from common.errors import ConfigError
from common.ledger.data_holder import Holder, own_holder
from common.privacy.mechanisms.registry import DEFAULT_MECHANISM, MECHANISMS, mechanism_named
from common.privacy.policy import load_policy
from common.system.files import make_folder, write_atomic
from common.system.progress import ProgressFactory

_NO_ROSTER = ('aggregations = ["plain"]', '# roster = ""')
_ANY_CLASSES = '# classes = ["normal", "tumour"]'
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
min-noise-multiplier = 0.3

# How images may be protected:
TRUST
# Allow no other than the one that is here unless you mean it.
mechanisms = MECHANISMS

# Ways of tuning: head, bias, norm, lora, last, full.
tunings = ["head", "bias", "norm", "lora", "last", "full"]

# How gradients of single images may be computed: "auto", so that none depends on another image, and "opacus", in
# batches. A batch rounds each gradient by all images in it, and no epsilon covers that.
gradients = ["auto"]

# How counts of held-out images may leave: "none", "private" (with noise, charged), "exact" (not protected).
metrics = ["none", "private"]

# What may leave at the end of a run: "matrix", the confusion matrix, and "full", also histograms of the scores.
closing = ["matrix"]

# Columns of your own table by whose values counts may be divided at the end of a run; without it by none.
# subgroup-columns = ["sex", "scanner"]

# What may be protected: "image", or "group": all images of one unit, such as a patient, together.
units = UNITS

# A run that would go on with fewer clients in a round (its min-clients) is refused. That the server keeps to what it
# says cannot be checked here.
min-cohort = 1

# What a server may see of a round: "plain", this client's own update, "secure", only the sum over all clients. Without
# "plain" nothing leaves that is this client's alone. A secure sum needs the digest of the one roster (the names and
# identity keys of all clients) that the holders have exchanged without the server: `bract client roster DIR FILE`.
AGGREGATIONS

# In a secure sum with noise each client adds a share of the noise. true: max-epsilon caps the cost while as many
# clients are honest as the run says. false: it caps the cost under this client's own share, as if all others colluded.
accept-honest-shares = false

# The most that an image may have spent if all other clients colluded; without it only max-epsilon counts.
# max-epsilon-alone = 20.0

# Whether groups of images (patients) may be protected that were protected one by one before: the bound grows.
accept-group-bound = false

# Last day on which anything is allowed; without it there is no end.
# expires = 2030-12-31

# The only list of classes that a run may have, in this order; without it any will do. A client refuses no list because
# of the images it has: the server could tell from it which classes these are.
ANY-CLASSES

# Code that a server sends runs here only if it is exactly this: the Bract that is installed here, named by the digest
# of its files. Every promise above is kept by that code, so an empty pin ("") means trusting whoever sends it.
# Before you change it: `bract client review DIR BUNDLE` shows what another bundle does differently, and ends with
# the line to put here.
bundle = "PINNED"
"""


def init_client(
    folder: Path,
    source: str,
    *,
    path: str,
    name: str,
    progress: ProgressFactory,
    server: str = "",
    authority: Path | None = None,
    classes: Sequence[str] = (),
    validation: str = "drop",
    roster: Path | None = None,
) -> tuple[Site, Holder]:
    """Write a client's folder and, at first use, the holder's ledger.

    Guarantee: a second client over the same images finds the charges of the first, because ledger and keys belong to
    the user and not to the folder.

    Args:
        folder: Folder to write; it must not hold a client yet. A policy and a node's key in it are kept.
        source: Value for `data.source`: a folder of images, a manifest, or a known name.
        path: Value for `data.path`.
        name: Name of the client at servers.
        progress: Called with a total and a label.
        server: Address of the server, `host:port`; empty if it is not known yet.
        authority: Certificate of the authority that signed the server's own; None if it is not known yet.
        classes: The only class list that a new policy allows; none if any will do.
        validation: Value for `data.validation`.
        roster: File of the clients with which secure sums are allowed; None for no secure sums yet.

    Raises:
        ConfigError: The folder holds a client already, or the name, the server's address, the authority's certificate,
            or a policy, a roster or a key in the folder cannot be used.
        DataError: The images are missing, too many are unusable, or none is of a class; lists them.
        LedgerError: The holder's folder cannot be used.
    """
    if (folder / SITE_FILE).exists():
        raise ConfigError(f"{folder} holds a client already: edit {folder / SITE_FILE}, or name another folder")
    check_name(name)
    if server:
        server_place(server)
    if roster is not None:
        check_roster(known := read_roster(roster), name, roster)
    secure = policy_lines(known) if roster is not None else _NO_ROSTER
    certificates = () if authority is None else read_authority(authority)
    fraction = float(defaults()["data.test-fraction"])
    site = Site(folder, name, _place_of(source), path, 1, 1, fraction, "", "", "", validation)
    site, grouped = _declared(site, classes, progress)
    site = replace(site, superlink=server, authority=AUTHORITY_FILE if certificates else "")
    policy = None if site.policy_file.exists() else _policy_text(grouped, classes, secure)
    if policy is None:
        load_policy(site.policy_file)
    holder = own_holder()
    with holder.open_session():
        pass
    _write(site, policy, certificates, roster)
    return site, holder


def _place_of(source: str) -> str:
    return str(Path(source).expanduser().resolve()) if names_a_place(source) else source


def _declared(site: Site, classes: Sequence[str], progress: ProgressFactory) -> tuple[Site, bool]:
    """Return the client with its declared numbers and whether its images come in groups."""
    images, data = own_images(site, classes)
    entries, scan = images.entries, scan_source(images, progress=progress)
    # Checked once, by the holder: at a running client, a server could learn by its settings how many files are bad.
    refuse_if_too_bad(scan, max_bad_fraction=data.max_bad_fraction)
    refuse_nothing_usable(scan, images.remarks())
    groups = group_names(entries.units)
    num_groups = entries.num_train if groups is None else len(set(groups[: entries.num_train].tolist()))
    return replace(site, num_images=entries.num_train, num_groups=num_groups), groups is not None


def _policy_text(grouped: bool, classes: Sequence[str] = (), secure: Sequence[str] = _NO_ROSTER) -> str:
    from common.system.app_bundle import bundle_digest, installed_bundle

    units = '["group"]' if grouped else '["image", "group"]'
    trust = "\n".join(map(_trust, MECHANISMS))
    text = _POLICY.replace("UNITS", units).replace("TRUST", trust)
    text = text.replace("MECHANISMS", json.dumps([DEFAULT_MECHANISM]))
    text = text.replace("PINNED", bundle_digest(installed_bundle()))
    text = text.replace("AGGREGATIONS", "\n".join(secure))
    # Last, because a class may have one of the names above.
    allowed = f"classes = {json.dumps(list(classes), ensure_ascii=False)}" if classes else _ANY_CLASSES
    return text.replace("ANY-CLASSES", allowed)


def _trust(name: str) -> str:
    """Return the policy's comment on whom a mechanism trusts."""
    plain, summed = (mechanism_named(name, summed=summed).trust for summed in (False, True))
    return f'# "{name}": {plain}.' + ("" if summed == plain else f"\n#   In a secure sum: {summed}.")


def _write(site: Site, policy: str | None, authority: tuple[x509.Certificate, ...], roster: Path | None = None) -> None:
    """Write the folder's files."""
    make_folder(site.folder, mode=0o700)
    make_node_key(site)
    if policy is not None:
        # Whole or not at all: a policy that was cut short would still load, without its last lines, such as the pin.
        write_atomic(site.policy_file, policy, durable=True, mode=0o666)
        load_policy(site.policy_file)
    if roster is not None:
        take_roster(site, roster)
    if authority:
        write_atomic(site.authority_file, as_pem(authority), durable=True, mode=0o666)
    # Last, because this file makes the folder a client: an attempt that was cut short can then be made again.
    write_atomic(site.folder / SITE_FILE, _site_text(site), durable=True, mode=0o666)


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
            "# Where the federation's server listens, as host:port, and the certificate that signs its own.",
            f"superlink = {json.dumps(site.superlink)}",
            f"authority = {json.dumps(site.authority)}",
            *([f"validation = {json.dumps(site.validation)}"] if site.validation != "drop" else []),
            "",
        ]
    )
