"""Real clients that take their own place, their code or their protection from a run."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import client.session as session_module
from client import admission
from client.client_config import load_site
from client.guard import Guard
from client.runtime import supernode
from client.session import RunClients
from client.setup import init_client
from common.data import preprocessing
from common.errors import ConfigError, PolicyError
from common.privacy.policy import ANYTHING, load_policy
from common.system import app_bundle
from tests.client import test_admission as admitted
from tests.mutants.faults import planted
from tests.support.clients.own_clients import SMALL, MakeConfig, OwnClient, run_named, write_images


def a_run_says_nothing_about_a_clients_place(tmp_path: Path, own_home: Path, make_config: MakeConfig) -> None:
    """Source, weights, split, size and the node's nature are the client's own, whatever the run's settings say."""
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(20)))
    wished = {"data.path": "elsewhere", "data.test-fraction": 0.9, "data.max-bad-fraction": 0.0}
    config = make_config(SMALL | wished | {"data.validation": "train"})
    (client.folder / "client.toml").write_text((client.folder / "client.toml").read_text().replace("= 20", "= 31"))
    session = RunClients(config).open(str(client.folder))
    assert session.rows.num_units == 31
    assert session.trainer.config.data.validation == "drop"
    assert len(session.rows.train_labels) > len(session.rows.test_labels)
    for node in (
        {"partition-id": 0, "num-partitions": 1},
        {"bract-simulation": "yes", "partition-id": 0, "num-partitions": 1},
    ):
        with pytest.raises(ConfigError, match="not marked as simulated"):
            admission.client_ref(node)
    with pytest.raises(ConfigError, match="name your own copy"):
        RunClients(make_config(SMALL | {"model.weights": "/etc/passwd"})).open(str(client.folder))


def a_joined_client_refuses_no_folder(tmp_path: Path, own_home: Path, make_config: MakeConfig) -> None:
    """A folder too many above the classes gives empty batches."""
    images = write_images(tmp_path / "images", range(20))
    client = OwnClient(tmp_path, images)
    (images / "archive").mkdir()
    for name in ("dark", "bright"):
        (images / name).rename(images / "archive" / name)
    assert RunClients(make_config(SMALL)).open(str(client.folder)).rows.num_units == 20


planted(
    a_joined_client_refuses_no_folder,
    preprocessing.Preparation._scan,
    {"a folder that a joined client refuses": ("open_joined if shows_nothing else open_source", "open_source")},
)
_OWN = a_run_says_nothing_about_a_clients_place
planted(
    _OWN,
    RunClients._own,
    {
        "a source from the run": ('"path": site.path,', '"path": config.data.path,'),
        "a use of a part from the run": ("site.validation", "config.data.validation"),
        "a share of held-out images from the run": (
            "_everything(prepared, site)",
            "_everything(prepared, __import__('dataclasses').replace(site, test_fraction=config.data.test_fraction))",
        ),
    },
)
planted(
    _OWN,
    session_module._everything,
    {
        "a size that was found": ("num_units=np.array([site.num_images])", "num_units=np.array([count])"),
    },
)
planted(
    _OWN,
    session_module._own_weights,
    {
        "a weights file that the server names": ("if not site.weights:", "if False:"),
    },
)
planted(
    _OWN,
    admission.client_ref,
    {
        "a node that is simulated by its partition": (
            "node_config.get(SIMULATION_KEY) is not True and not _runs_in_ray()",
            "False",
        ),
        "a node that is simulated by a word": (
            "node_config.get(SIMULATION_KEY) is not True",
            "not node_config.get(SIMULATION_KEY)",
        ),
    },
)


def a_refusal_is_in_the_ledger_and_its_reason_stays_there(
    tmp_path: Path, own_home: Path, make_config: MakeConfig
) -> None:
    from common.ledger.data_holder import own_holder

    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(4)))
    reply = client.ask(make_config(SMALL | {"privacy.mechanism": "none"}), "query", run="greedy")
    assert vars(reply.error) == {"_code": 1006, "_reason": "POLICY"}
    with own_holder().open_session() as session:
        (refusal,) = session.ledger.entries("kind = 'refuse'")
    assert (refusal.event["run"], "mechanism" in refusal.event["why"]) == (run_named("greedy"), True)


_REFUSAL = a_refusal_is_in_the_ledger_and_its_reason_stays_there
planted(
    _REFUSAL,
    admission.admit,
    {
        "a refusal that is not noted": ("note_refusal(session, run, site.name, 0, kind, error)", "pass"),
    },
)
planted(
    admitted.test_a_wish_beyond_the_policy_is_refused_before_any_image_is_opened,
    admission.admit,
    {
        "a run that is not held to the policy": ("policy.check_run(config)", "pass"),
    },
)


def a_guard_holds_each_message_to_the_policy(tmp_path: Path, make_config: MakeConfig) -> None:
    ended = ANYTHING.model_copy(update={"expires": datetime.now(UTC).date() - timedelta(2)})
    guard = Guard(make_config({"privacy.mechanism": "none"}), "a", ended, None, None, (None, None))  # type: ignore[arg-type]
    for ask in (
        lambda: guard.agree("run"),
        lambda: guard.answer("run", 1, "train", None, None),
        lambda: guard.close("run"),
    ):  # type: ignore[arg-type]
        with pytest.raises(PolicyError, match="the policy ended"):
            ask()


planted(
    a_guard_holds_each_message_to_the_policy,
    Guard._ledger_session,
    {
        "a guard that asks no policy where there is no ledger": (
            "        if self.holder is None:\n            self.policy.check_run(self.config)\n".replace(
                "        if", "    if", 1
            ).replace("            self.policy", "        self.policy", 1),
            "    if self.holder is None:\n",
        ),
    },
)


def a_supernode_has_tls_a_key_and_the_loopback_alone(tmp_path: Path, own_home: Path) -> None:
    site = load_site(OwnClient(tmp_path, write_images(tmp_path / "images", range(2))).folder)
    command = supernode.command_for(site, port=7, secret_file=tmp_path / "secret")
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert command[1:4] == ["-P", "-m", "client.runtime.supernode_main"], "-P: nothing of this folder is imported"
    assert options["--root-certificates"] == str(site.authority_file)
    assert options["--auth-supernode-private-key"] == str(site.key_file)
    assert (options["--isolation"], options["--host"]) == ("process", "127.0.0.1")
    assert "--insecure" not in command


_NODE = a_supernode_has_tls_a_key_and_the_loopback_alone
planted(
    _NODE,
    supernode.command_for,
    {
        "a client without TLS": ('"--root-certificates": str(site.authority_file)', '"--insecure": ""'),
        "a client without its key": ('"--auth-supernode-private-key": str(site.key_file)', '"--max-retries": "0"'),
        "a client that runs a server's code in its own process": (
            '"--isolation": "process"',
            '"--isolation": "subprocess"',
        ),
        "tasks that are offered to every machine": ('"--host": _LOOPBACK', '"--host": "0.0.0.0"'),
        "modules that are imported from the working folder": ('"-P", ', ""),
    },
)


def a_new_clients_policy_pins_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_bundle, "installed_bundle", lambda: b"")
    monkeypatch.setattr(app_bundle, "bundle_digest", lambda _: "ab" * 32)
    file = tmp_path / "policy.toml"
    for grouped, units in ((True, ("group",)), (False, ("image", "group"))):
        file.write_text(init_client._policy_text(grouped))
        policy = load_policy(file)
        assert (policy.bundle, policy.mechanisms, policy.units) == ("ab" * 32, ("dp-sgd",), units)
        assert (policy.metrics, policy.max_epsilon, policy.accept_group_bound) == (("none", "private"), 8.0, False)


_NEW = a_new_clients_policy_pins_what_is_installed
planted(
    _NEW,
    init_client._policy_text,
    {
        "a new client without a pin": ("bundle_digest(installed_bundle()))", "'')"),
        "a new client that allows every mechanism": ("json.dumps([DEFAULT_MECHANISM])", "json.dumps(list(MECHANISMS))"),
        "a new client of patients that protects single images": ("if grouped else", "if not grouped else"),
    },
)
