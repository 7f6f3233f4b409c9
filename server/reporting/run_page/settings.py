"""Settings, versions and hashes of a run."""

from common.config.loading import defaults
from common.page.blocks import Block, Cell, Details, Section, Table, name_cell, setting_cell, text
from server.reporting.run_page.run_files import CONFIG, RunFiles
from server.reporting.tracking.released_values import shown_settings


def settings_section(files: RunFiles) -> Section:
    """Return what the run can be repeated from."""
    usual, settings = defaults(), shown_settings(files.config)
    changed = tuple(
        (name_cell(key), setting_cell(value), setting_cell(usual.get(key)))
        for key, value in settings.items()
        if key not in ("output-dir", "resume") and usual.get(key) != value
    )
    columns = ("setting", "value", "default")
    own = Table("Settings that are not the default, or follow from others", columns, changed, (False,) * 3)
    every = tuple((name_cell(key), setting_cell(value)) for key, value in settings.items())
    blocks: list[Block] = [
        own,
        Details(
            f"All {len(every)} settings", (Table(f"All settings, from {CONFIG}", columns[:2], every, (False, False)),)
        ),
    ]
    if left_out := [key for key in files.config if key not in settings]:
        said = "Places on the machine that made the run are left out, because a report may be passed on: "
        blocks.append(text(said + ", ".join(left_out) + ".", small=True))
    versions = files.privacy.get("versions") or files.summary.get("versions", {})
    if versions:
        rows = tuple((name_cell(name), name_cell(str(version))) for name, version in versions.items())
        blocks.append(Table("Versions", ("package", "version"), rows, (False, False)))
    hashes = [(name, digest) for name, digest in files.hashes.items() if digest]
    for label, key in (
        ("model/model.safetensors, as its card states", "model_sha256"),
        ("backbone", "backbone_sha256"),
    ):
        if files.card.get(key):
            hashes.append((label, str(files.card[key])))
    if bundle := files.config.get("system.bundle"):
        hashes.append(("code that the clients were sent", str(bundle)))
    of_files = tuple((Cell(name), Cell(digest)) for name, digest in hashes)
    blocks.append(
        Table("SHA-256 of the files that this page is made from", ("file", "SHA-256"), of_files, (False, False))
    )
    blocks.append(text("`bract report DIR` makes this page again from these files.", small=True))
    return Section("settings", "Settings, versions and hashes", tuple(blocks))
