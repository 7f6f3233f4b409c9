"""Files that are written in part, without their mode or without being on the disk."""

from functools import partial

from client.home import OwnHome
from client.session import ClientSession
from client.training.personal_tensors import PersonalState
from common.system import files
from server.state import checkpoint, client_roll
from server.state.run_directory import RunDirectory
from tests import test_written_files as written
from tests.client import test_personal_state as personal
from tests.common import test_files as atomic
from tests.mutants.faults import planted, planted_in_text, planted_value
from tests.server.state import test_checkpoint as checkpoints
from tests.server.state import test_run_directory as folders
from tests.server.state import test_written_checkpoint as written_checkpoints

_FLUSHED = atomic.test_write_atomic_flushes_content_and_folder_only_when_durable
planted(
    _FLUSHED,
    files.atomic_stream,
    {
        "a durable file that is not synced": ("os.fsync(stream.fileno())", "pass"),
        "a durable file whose name is not synced": ("sync_folder(file.parent)", "pass"),
    },
)
planted(
    _FLUSHED,
    files.sync_folder,
    {
        "a folder that is opened and not synced": ("os.fsync(handle)", "pass"),
    },
)
_MODE = partial(atomic.test_write_atomic_replaces_a_file_and_leaves_nothing_else, content="x", durable=False)
planted(
    _MODE,
    files.atomic_stream,
    {
        "a file of any mode": ("os.open(path, flags, mode)", "os.open(path, flags, 0o666)"),
        "a scratch file that stays": (
            "scratch = file.with",
            "file.with_name(file.name + '.part').touch(); scratch = file.with",
        ),
    },
)
planted(
    atomic.test_write_atomic_keeps_what_is_there_when_it_may_not_overwrite,
    files.atomic_stream,
    {
        "a key that is overwritten": ("os.replace if overwrite else os.link", "os.replace"),
    },
)
planted(
    atomic.test_atomic_stream_leaves_the_old_file_when_its_block_fails,
    files.atomic_stream,
    {
        "half a file that takes the place of the old one": (
            'scratch = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")',
            "file.unlink(missing_ok=True); scratch = file.with_name(secrets.token_hex(4))",
        ),
    },
)

_OWNER = personal.test_tensors_are_for_their_owner_only_from_the_first_byte_on
planted(
    _OWNER,
    PersonalState.keep,
    {
        "personal tensors that others can read": ("mode=0o600", "mode=0o644"),
        "a folder of personal tensors that others can open": ("mode=0o700", "mode=0o755"),
    },
)
_LASTS = partial(personal.test_tensors_survive_a_power_failure_where_they_shall, durable=True)
planted(
    _LASTS,
    PersonalState.keep,
    {
        "personal tensors that a power failure takes": ("durable=self.durable", "durable=False"),
    },
)
_HOME = personal.test_a_real_clients_home_is_durable_and_a_simulated_one_as_the_run_says
planted_value("a real client's home that is not durable", _HOME, OwnHome, "durable", False)
_ITSELF = personal.test_a_round_starts_from_an_earlier_one_and_never_from_itself
planted(
    _ITSELF,
    PersonalState.before,
    {
        "a repeated round that starts from itself": ("number < server_round", "number <= server_round"),
    },
)
_STORES = personal.test_each_client_run_and_plan_has_a_store_of_its_own
planted(
    _STORES,
    ClientSession.personal,
    {
        "personal tensors of another plan": ("{run}\\x1f{protected}", "{run}"),
        "personal tensors of another run": ("{run}\\x1f{protected}", "{protected}"),
        "personal tensors of another client": ("/ agreed / self.name", "/ agreed"),
        "personal tensors that are never durable": ("durable=self.home.durable", "durable=False"),
    },
)

planted(
    written_checkpoints.test_a_checkpoint_is_on_the_disk_before_the_next_round,
    checkpoint.save_checkpoint,
    {
        "a checkpoint that a power failure takes": ("durable=True", "durable=False"),
    },
)
planted(
    written_checkpoints.test_facts_of_many_clients_are_on_the_disk_before_the_checkpoint_names_them,
    client_roll.move_out,
    {
        "sizes of clients that a power failure takes": ("durable=True", "durable=False"),
    },
)
planted(
    checkpoints.test_a_file_of_another_version_is_refused,
    checkpoint.load_checkpoint,
    {
        "a checkpoint of another version": ('metadata.get("format") not in (_APART, _FORMAT, _UNCHECKED)', "False"),
    },
)
planted(
    folders.test_a_run_has_one_process_at_a_time,
    RunDirectory.lock,
    {
        "two processes that run one run": ("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
    },
)

_TABLE = written.test_every_file_that_is_written_whole_has_the_mode_and_the_durability_that_it_needs
_OTHERS = written.test_nothing_else_writes_files_but_where_a_reason_is_given
for _file, _right, _wrong in (
    ("client/training/personal_tensors.py", "mode=0o600", "mode=0o640"),
    ("client/setup/init_client.py", "policy, durable=True", "policy, durable=False"),
    ("client/setup/node_key.py", "content, durable=True", "content, durable=False"),
    ("client/runtime/supernode.py", "durable=False, mode=0o600", "durable=False, mode=0o644"),
    ("common/ledger/holder_keys.py", "durable=True, mode=0o600", "durable=True, mode=0o644"),
    ("common/ledger/data_holder.py", "durable=False, mode=0o600", "durable=False, mode=0o644"),
    ("common/data/array_files.py", "durable=False, mode=0o600", "durable=False, mode=0o644"),
    ("server/rounds/node_registry.py", "kept), durable=True", "kept), durable=False"),
    ("server/state/checkpoint.py", "durable=True", "durable=False"),
    (
        "server/deployment/admission.py",
        'client_name}\\n".encode(), durable=True, mode=0o600',
        'client_name}\\n".encode(), durable=True, mode=0o644',
    ),
    ("server/deployment/setup.py", "content, durable=True, mode=0o600", "content, durable=True, mode=0o644"),
):
    planted_in_text(f"another mode or durability in {_file}", _TABLE, _file, _right, _wrong)
for _file, _right, _wrong in (
    (
        "client/setup/node_key.py",
        "write_atomic(site.key_file, content, durable=True, mode=0o600, overwrite=False)",
        "site.key_file.write_bytes(content)",
    ),
    (
        "common/ledger/holder_keys.py",
        "write_atomic(file, os.urandom(_SIZE), durable=True, mode=0o600, overwrite=False)",
        "file.write_bytes(os.urandom(_SIZE))",
    ),
    (
        "server/state/checkpoint.py",
        "write_atomic(folder / CHECKPOINT, _with_checksum(content, _NO_CHECKSUM, checksum), durable=True, mode=0o666)",
        "(folder / CHECKPOINT).write_bytes(_with_checksum(content, _NO_CHECKSUM, checksum))",
    ),
    (
        "client/training/personal_tensors.py",
        "np.savez(stream, **arrays)",
        "np.savez(self._file(server_round), **arrays)",
    ),
    (
        "server/rounds/node_registry.py",
        'write_atomic(file, "".join(kept), durable=True, mode=0o600)',
        'open(file, "w").write("".join(kept))',
    ),
):
    planted_in_text(f"a file that is written past write_atomic in {_file}", _OTHERS, _file, _right, _wrong)
