"""A server asks about the images by its settings: what comes back follows from the settings alone."""

import shutil
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

import client.app as client_app
from client.admission import admit
from client.client_config import load_site
from client.home import OwnHome
from client.secure.secrets_file import SecretsFile
from client.session import SessionCache
from common.config.loading import Scalar, resolved
from common.errors import ConfigError
from common.ledger.data_holder import own_holder
from common.messages.codec import PROTOCOL_VERSION
from tests.support.clients.own_clients import POLICY, SMALL, MakeConfig, OwnClient, code, picture, run_named

pytestmark = pytest.mark.usefixtures("own_home")

HEAD: dict[str, Scalar] = {"model.backbone": "timm:test_resnet", "data.image-size": 32, "model.tuning": "head"}


def save_weights(file: Path) -> Path:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return file


def declared(reply: Message) -> dict[str, object]:
    return dict(reply.content.config_records["client"])


def test_a_wish_beyond_the_policy_is_refused_before_any_image_is_opened(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images)
    shutil.rmtree(images)

    assert code(client.ask(make_config(SMALL | {"privacy.mechanism": "none"}), "query", run="first")) == "POLICY"
    with own_holder().open_session() as session:
        assert [entry.kind for entry in session.ledger.entries()] == ["genesis", "refuse"]


def test_a_client_without_a_policy_file_takes_nobodys_word_for_it(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    """A simulated client without a policy allows anything; a real one allows nothing."""
    client, config = OwnClient(tmp_path, images), make_config(SMALL)
    session = client_app.SESSIONS.open(config, str(client.folder), "")
    (client.folder / "policy.toml").unlink()

    with pytest.raises(ConfigError, match=r"the policy .* cannot be read"):
        admit(config, str(client.folder), "", run_named("first"), "query")
    with pytest.raises(ConfigError, match=r"the policy .* cannot be read"):
        session.guard(run_named("first"))
    reopened = SessionCache().open(config, str(client.folder), "")
    with pytest.raises(ConfigError, match=r"the policy .* cannot be read"):
        reopened.guard(run_named("first"))


@pytest.mark.parametrize("classes", ["dark,bright", "dark,zz", "zz,yy"])
def test_the_answer_does_not_say_which_classes_there_are(
    tmp_path: Path, images: Path, make_config: MakeConfig, classes: str
) -> None:
    client, config = OwnClient(tmp_path, images), make_config(SMALL | {"data.classes": classes})

    assert [code(client.ask(config, kind, run="first")) for kind in ("query", "train", "evaluate")] == ["ok"] * 3


@pytest.mark.parametrize("fraction", [0.0, 0.04, 0.06, 1.0])
def test_the_answer_does_not_say_how_many_files_are_bad(
    tmp_path: Path, images: Path, make_config: MakeConfig, fraction: float
) -> None:
    (images / "dark" / "broken.png").write_bytes(b"no image")
    client, config = OwnClient(tmp_path, images), make_config(SMALL | {"data.max-bad-fraction": fraction})

    assert code(client.ask(config, "query", run="first")) == "ok"


def test_the_declared_shape_does_not_say_whether_an_image_is_gray(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    gray = tmp_path / "gray"
    for number in range(40):
        place = gray / ("dark", "bright")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).convert("L").save(place / f"{number}.png")

    shapes = [
        declared(OwnClient(tmp_path, folder).ask(make_config(SMALL), "query", run=folder.name))["input-shape"]
        for folder in (images, gray)
    ]

    assert shapes == [[8, 8, 3], [8, 8, 3]]


@pytest.mark.parametrize("settings", [{"data.image-size": ""}, {"data.classes": "dark"}])
def test_settings_that_leave_something_to_the_images_are_refused(
    tmp_path: Path, images: Path, make_config: MakeConfig, settings: dict[str, Scalar]
) -> None:
    client = OwnClient(tmp_path, images)

    assert code(client.ask(make_config(SMALL | settings), "query", run="first")) == "CONFIG"


def test_no_server_moves_an_image_from_training_to_evaluation(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images, POLICY.replace("5.0", "50.0"))
    for number, fraction in enumerate((0.1, 0.9)):
        config = make_config(SMALL | {"data.test-fraction": fraction})
        assert code(client.ask(config, "train", run=f"run {number}")) == "ok"

    with own_holder().open_session() as session:
        first, second = (entry.event["parts"] for entry in session.ledger.entries("kind = 'register'"))
    assert first == second


def test_a_node_that_only_has_a_partition_id_is_no_simulated_client(make_config: MakeConfig) -> None:
    content = RecordDict({"config": ConfigRecord({"run-id": run_named("first"), "protocol": PROTOCOL_VERSION})})
    for node, answer in (({}, "CONFIG"), ({"bract-simulation": "yes"}, "CONFIG"), ({"bract-simulation": True}, "ok")):
        where = {"partition-id": 0, "num-partitions": 5} | node
        context = Context(1, 2, where, RecordDict(), resolved(make_config()))

        assert code(client_app.app(Message(content, 2, "query"), context)) == answer


def test_a_policy_that_became_stricter_holds_from_the_next_round_on(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client, config = OwnClient(tmp_path, images), make_config(SMALL)
    before = code(client.ask(config, "train", run="first", server_round=1))
    policy = client.folder / "policy.toml"
    policy.write_text(POLICY.replace("max-epsilon = 5.0", "max-epsilon = 0.1"))

    assert before == "ok"
    assert code(client.ask(config, "train", run="first", server_round=2)) == "POLICY"
    policy.write_text(POLICY.replace("max-epsilon = 5.0", "max-epsilon = 4.5"))
    assert code(client.ask(config, "train", run="first", server_round=2)) == "ok"


def test_exact_closing_counts_leave_once_a_run_and_are_written_down(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images, POLICY.replace('"private"', '"private", "exact"'))
    config = make_config(SMALL | {"privacy.metrics": "exact"})

    answers = [
        code(client.ask(config, "evaluate", run="first", server_round=number, fill=number)) for number in (2, 1, 77)
    ]

    assert answers == ["ok", "POLICY", "POLICY"]
    with own_holder().open_session() as session:
        kinds = [entry.kind for entry in session.ledger.entries()]
    assert kinds[:5] == ["genesis", "register", "note", "reserve", "commit"]


@pytest.mark.parametrize(
    ("line", "settings", "answer"),
    [
        ("min-cohort = 5", {"num-clients": 5}, "POLICY"),
        ("min-cohort = 4", {"num-clients": 5}, "ok"),
        ("min-cohort = 2", {"num-clients": 5, "min-clients": 0}, "POLICY"),
        ("min-cohort = 2", {"num-clients": 5, "min-clients": 2}, "ok"),
        ('units = ["group"]', {}, "POLICY"),
        ('units = ["image"]', {}, "ok"),
    ],
)
def test_the_policy_says_how_few_clients_and_what_is_protected(
    tmp_path: Path, images: Path, make_config: MakeConfig, line: str, settings: dict[str, Scalar], answer: str
) -> None:
    client = OwnClient(tmp_path, images, f"{POLICY}{line}\n")

    assert code(client.ask(make_config(SMALL | settings), "query", run="first")) == answer


def test_a_client_with_images_of_its_own_takes_no_part_in_a_simulation(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images)

    assert code(client.ask(make_config(SMALL | {"data.source": "digits"}), "query", run="first")) == "CONFIG"
    with own_holder().open_session() as session:
        assert [entry.kind for entry in session.ledger.entries()] == ["genesis"]


def test_no_server_has_a_file_of_its_choice_read_and_its_hash_sent(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    theirs, own = (save_weights(tmp_path / f"{name}.safetensors") for name in ("theirs", "own"))
    client = OwnClient(tmp_path, images, POLICY.replace('"full"', '"head"'))
    config = make_config(SMALL | HEAD | {"model.weights": str(theirs)})
    (tmp_path / "notes.txt").write_text("no weights")
    missing, other = (make_config(SMALL | HEAD | {"model.weights": str(tmp_path / n)}) for n in ("none", "notes.txt"))

    assert {code(client.ask(each, "query", run="first")) for each in (config, missing, other)} == {"CONFIG"}
    site = client.folder / "client.toml"
    site.write_text(site.read_text().replace('weights = ""', f'weights = "{own}"'))
    hashes = [declared(client.ask(each, "query", run="first"))["backbone-hash"] for each in (config, other)]
    (client.folder / "mine.safetensors").write_bytes(own.read_bytes())
    site.write_text(site.read_text().replace(str(own), "mine.safetensors"))  # seen from the client's folder
    hashes.append(declared(client.ask(config, "query", run="first"))["backbone-hash"])
    assert hashes[0] == hashes[1] == hashes[2] != ""


def test_a_pin_that_nothing_has_checked_is_refused_before_any_image_is_opened(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images, POLICY + f'bundle = "{"ab" * 32}"\n')
    for file in images.rglob("*.png"):
        file.unlink()

    config = make_config(SMALL)
    for checked in ({}, {"bract-bundle": "cd" * 32}):  # a node started by hand; one whose launcher let other code in
        assert code(client.ask(config, "query", run="first", node=checked)) == "POLICY"


def test_a_client_declares_the_bundle_that_its_launcher_has_checked(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    pinned, loose = (
        OwnClient(tmp_path, images, POLICY + f'bundle = "{"ab" * 32}"\n'),
        OwnClient(tmp_path, images),
    )

    assert (
        declared(pinned.ask(make_config(SMALL), "query", run="a", node={"bract-bundle": "ab" * 32}))["bundle"]
        == "ab" * 32
    )
    assert declared(loose.ask(make_config(SMALL), "query", run="b"))["bundle"] == ""


@pytest.mark.parametrize(("version", "shown"), [(None, "protocol none"), (1, "protocol 1"), ("1", "protocol none")])
def test_a_server_of_another_version_gets_a_bare_code_and_its_query_costs_nothing(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture, version: Scalar | None, shown: str
) -> None:
    client, settings = OwnClient(tmp_path, images), {"run-id": run_named("first")}
    content = RecordDict({"config": ConfigRecord(settings | ({} if version is None else {"protocol": version}))})
    # Its settings are of that version too: these must not hide the plainer reason.
    context = Context(1, 2, {"bract-client": str(client.folder)}, RecordDict(), {"a-setting-of-tomorrow": 1})

    reply = client_app.app(Message(content, 2, "query"), context)

    assert vars(reply.error) == {"_code": 1008, "_reason": "BUNDLE"}
    (line,) = [record.getMessage() for record in caplog.records if record.name == "bract.client"]
    assert "\n" not in line
    assert "another version of Bract" in line
    assert shown in line
    with own_holder().open_session() as session:
        assert [entry.kind for entry in session.ledger.entries()] == ["genesis"]


def test_a_client_of_an_older_version_refuses_the_unknown_key_before_any_charge(
    tmp_path: Path, images: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.messages.checks._check_protocol", lambda _: None)
    monkeypatch.setattr("common.messages.codec._CONFIG_KEYS", {"server-round", "run-id", "proximal-mu"})
    client = OwnClient(tmp_path, images)

    assert code(client.ask(make_config(SMALL), "query", run="first")) == "MESSAGE"
    with own_holder().open_session() as session:
        assert [entry.kind for entry in session.ledger.entries()] == ["genesis"]


@pytest.mark.parametrize("took_part", [True, False])
def test_a_run_is_closed_though_the_policy_allows_nothing_any_more(
    tmp_path: Path, images: Path, make_config: MakeConfig, took_part: bool
) -> None:
    client, config = OwnClient(tmp_path, images), make_config(SMALL)
    if took_part:
        assert code(client.ask(config, "train", run="first")) == "ok"
    secrets = SecretsFile.of(
        OwnHome().folder(""), run_named("first"), load_site(client.folder).name, durable=False
    ).file
    secrets.parent.mkdir(parents=True)
    secrets.touch()
    (client.folder / "policy.toml").write_text(f"{POLICY}mechanisms = []\n")

    assert code(client.ask(config, "query.close", run="first")) == "POLICY"

    assert not secrets.exists()
    with own_holder().open_session() as session:
        notes = [entry.event["note"] for entry in session.ledger.entries("kind = 'note'")]
    assert notes == (["closed"] if took_part else [])
    (client.folder / "policy.toml").write_text(POLICY)
    assert code(client.ask(config, "train", run="first", server_round=2)) == ("POLICY" if took_part else "ok")
