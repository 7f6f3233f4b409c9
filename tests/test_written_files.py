"""Every file that the product writes is whole, with a mode and a durability that somebody has decided on.

A new writer, another mode or a missing `durable` shows here first. What a reader could lose is said at each row.
"""

from tests.support.house import product_files
from tests.support.writers import ATOMIC, writers_of

OWNER, ALL = 0o600, 0o666  # the umask takes its part of the second

# Place -> whether each write is on the disk when it returns, and its mode. None: a variable decides.
WRITTEN_WHOLE: dict[str, tuple[bool | None, int | None]] = {
    # Keys, certificates, policies: made once, and nothing could make them again.
    "client/setup/init_client.py _write": (True, ALL),
    "client/secure/roster_file.py take_roster": (True, ALL),
    "client/setup/node_key.py make_node_key": (True, None),  # the private half 0600, the public one for all
    "common/ledger/holder_keys.py read_or_make_key": (True, OWNER),
    "server/commands/operate.py bundle_command": (True, OWNER),
    "server/deployment/admission.py admit": (True, OWNER),
    "server/deployment/admission.py revoke": (True, OWNER),
    "server/deployment/setup.py _fill": (True, OWNER),
    "server/deployment/setup.py renew": (True, OWNER),
    "server/deployment/start.py run_server": (True, OWNER),
    "server/deployment/submit_run.py run_on_server": (True, OWNER),
    # State that a run or a budget goes on from.
    "server/rounds/node_registry.py forget_node": (True, OWNER),
    "server/state/checkpoint.py save_checkpoint": (True, ALL),
    "server/state/client_roll.py move_out": (True, ALL),
    "server/state/run_directory.py create": (True, ALL),
    "server/state/run_directory.py run_id": (True, ALL),
    "client/training/personal_tensors.py keep": (None, OWNER),  # durable at a real client
    # Without these no sum of the run can be opened. The server's part is public.
    "client/secure/secrets_file.py save": (None, OWNER),  # durable at a real client
    "server/federation.py _secure_rounds": (None, OWNER),  # durable with real clients
    # After a crash it is behind the ledger, which is on the disk.
    "common/ledger/data_holder.py _write_head": (False, OWNER),
    # Made anew at each start.
    "client/runtime/supernode.py supernode_of": (False, OWNER),
    # What a client does now, for its operator.
    "client/status/activity.py _write": (False, OWNER),
    "server/reporting/tracking/tracked_run.py _note": (False, ALL),
    # Whom a run waits for, gone when it goes on.
    "server/rounds/waiting.py turn": (False, ALL),
    # Results, which follow from the checkpoint.
    "server/state/run_directory.py write_model": (False, ALL),
    "server/state/run_directory.py write_text": (False, ALL),
    "simulations/attacks/membership/score_store.py put": (False, ALL),
    "simulations/attacks/membership/score_store.py write_json": (False, ALL),
    # What a model says of images, where a user asked for a file.
    "server/commands/report.py compare_command": (False, ALL),
    "common/commands/models/predict.py write_output": (False, OWNER),
    # A model for others, as `write_model` writes it.
    "common/commands/models/export.py _write": (False, ALL),
    # Caches of images and facts, made again where they are missing.
    "common/data/array_files.py save_arrays": (False, OWNER),
    "common/data/inputs/input_format.py open_store": (False, OWNER),
    "common/data/sources/huggingface.py open_hugging_face": (False, OWNER),
    "common/models/backbone_info.py _remembered": (False, OWNER),
    "common/system/files.py write_atomic": (None, None),  # passes on what it is given
}

# Files that are written in another way, and why that is enough.
WRITTEN_OTHERWISE = {
    "common/system/files.py": "the one place that opens files for `write_atomic`",
    "common/ledger/database.py": "SQLite, durable by itself",
    "common/ledger/signed_heads.py append_lines": "lines are appended, and synced where they must last",
    "common/ledger/audit/read_only.py": "a copy of a ledger for one look",
    "common/system/figure_cache.py": "a cache of lines, of which half a line is skipped",
    "common/system/content_store.py": "a cache of rows with checksums",
    "common/system/app_bundle.py": "a folder that is renamed when it is complete, and compared before each use",
    "common/data/partitioning/export.py": "a folder of copies that the user asked for, renamed when it is complete",
    "common/data/sources/medmnist.py": "a download that is renamed when it is complete",
    "common/data/partition_plot.py": "a picture",
    "common/data/source_plot.py": "a picture",
    "common/inference/export/torch_program.py": "a file in memory",
    "common/commands/plan_view.py": "a picture",
    "server/reporting/counts_file.py": "by `write_text` of the run's folder",
    "server/reporting/plots.py": "a picture",
    "server/reporting/run_page/report.py": "by `write_text` of the run's folder, from files that stay",
    "server/reporting/trackers.py": "lines for those that follow the run; the checkpoint holds them too",
    "server/reporting/artifacts.py save_readme": "by `write_text` of the run's folder",
    "server/state/run_directory.py": "`write_text` of its own, and a lock",
    "client/secure/exchange.py": "by `save` of the client's file of secrets",
    "client/runtime/client_lock.py": "a lock",
    "client/runtime/reconnect.py": "an empty file whose time counts",
    "client/runtime/supernode.py": "the log of the SuperNode",
    "simulations/": "files of a simulation or an attack, over no image that needs protection",
}


def test_every_file_that_is_written_whole_has_the_mode_and_the_durability_that_it_needs() -> None:
    found: dict[str, set[tuple[bool | None, int | None]]] = {}
    for file in product_files():
        for writer in writers_of(file):
            if writer.call in ATOMIC:
                found.setdefault(writer.place, set()).add((writer.durable, writer.mode))

    # Two files of one function may have two modes: then the table says None, and a test of its own looks at them.
    seen = {
        place: pairs.pop() if len(pairs) == 1 else (_same(pairs, 0), _same(pairs, 1)) for place, pairs in found.items()
    }
    assert seen == WRITTEN_WHOLE


def _same(pairs: set[tuple[bool | None, int | None]], column: int) -> int | None:
    values = {pair[column] for pair in pairs}
    return values.pop() if len(values) == 1 else None


def test_nothing_else_writes_files_but_where_a_reason_is_given() -> None:
    others = [writer for file in product_files() for writer in writers_of(file) if writer.call not in ATOMIC]

    without_reason = [
        writer for writer in others if not any(writer.place.startswith(place) for place in WRITTEN_OTHERWISE)
    ]
    assert without_reason == []
    for place in WRITTEN_OTHERWISE:
        assert any(writer.place.startswith(place) for writer in others), f"{place} writes nothing any more"
