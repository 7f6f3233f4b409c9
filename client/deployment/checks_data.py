"""Are the images still there, and can they be used? What is found is for the operator's eyes only."""

from shlex import quote

import numpy as np

from client.deployment.finding import Finding, fail, ok, warn
from client.site import SITE_FILE, Site
from common.config import defaults, override, parse
from common.data.scan import Scan, scan_source
from common.data.sources import open_source
from common.errors import BractError
from common.progress import ProgressFactory

_SHOWN = 3
_SHOWN_CLASSES = 12


def check_data(site: Site, progress: ProgressFactory) -> Finding:
    """Open the client's source and look at each image once; what was looked at before is remembered."""
    try:
        data = parse(override(defaults(), {"data.source": site.source, "data.path": site.path})).data
        scan = scan_source(open_source(data), progress=progress)
    except BractError as error:
        return fail(
            "data",
            f"{site.source} cannot be opened: {error}",
            f"bring the images back (is the disk or share mounted, may this user read it?), or mend source in "
            f"{site.folder / SITE_FILE}",
        )
    return _judge(site, scan, data.max_bad_fraction)


def _judge(site: Site, scan: Scan, most_bad: float) -> Finding:
    labelled = int((scan.labels >= 0).sum())
    bad, usable = int((~scan.usable & (scan.labels >= 0)).sum()), int(scan.usable[: scan.num_train].sum())
    inspect = f"`bract data inspect {quote(site.source)}` lists all: mend or remove them"
    if bad > most_bad * labelled:
        return fail("data", f"{bad} of {labelled} images cannot be used: {_some(scan)}", inspect)
    if not usable:
        return fail("data", f"none of {scan.num_train} training images can be used", inspect)
    found = f"{usable} training images can be used, {site.num_images} are declared; {_classes(scan)} (seen here only)"
    if scan.num_train != site.num_images:
        return warn(
            "data",
            f"{found}; the source has {scan.num_train} now",
            "the declared number is what servers weigh this client by, and stays; if it should change, set up a client "
            "in another folder: what was spent is found again",
        )
    if bad:
        return warn("data", f"{found}; {bad} cannot be used: {_some(scan)}", inspect)
    return ok("data", found)


def _some(scan: Scan) -> str:
    lines = [fault.line for fault in scan.faults[:_SHOWN]]
    return "; ".join(lines) + (f"; and {len(scan.faults) - _SHOWN} more" if len(scan.faults) > _SHOWN else "")


def _classes(scan: Scan) -> str:
    counts = np.bincount(scan.labels[scan.usable], minlength=len(scan.classes)).tolist()
    shown = [f"{name} {count}" for name, count in zip(scan.classes, counts, strict=True)]
    more = len(shown) - _SHOWN_CLASSES
    return ", ".join(shown[:_SHOWN_CLASSES]) + (f" and {more} more classes" if more > 0 else "")
