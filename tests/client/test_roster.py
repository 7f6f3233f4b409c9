"""Identity keys and rosters, from the command that shows a line to the policy that names a digest.

Drives `client.commands.secure`, `client.secure.roster_file`, `common.ledger.identity_key`.
"""

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bract import app
from client.client_config import Site, load_site
from client.secure.party import own_party
from client.secure.roster_file import ROSTER_FILE, read_roster, roster_line, take_roster
from common.config.secure_sum import SecureSum
from common.errors import ConfigError, PolicyError
from common.ledger.identity_key import own_identity, simulated_identity
from common.privacy.policy import Policy, load_policy
from tests.support.clients.own_clients import write_images

OTHERS = [roster_line(f"ward-{number}", simulated_identity(0, str(number)).public_key) for number in (1, 2)]


def bract(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


def site_at(folder: Path) -> Site:
    return Site(folder, "ward-0", "", "", 1, 1, 0.2, "", "", "")


@pytest.fixture(name="images")
def images_fixture(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", range(8))


def own_line(folder: Path) -> str:
    return bract("client", "identity", folder).strip()


def test_a_roster_gets_from_the_holders_into_the_policy(tmp_path: Path, images: Path, own_home: Path) -> None:
    told = bract("client", "init", tmp_path / "first", "--data", images, "--name", "Ward 7")
    line, key = own_line(tmp_path / "first"), own_home / "holder" / "identity.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert f"Identity  for a roster of secure sums: {line}\n" in told
    assert line == roster_line("Ward 7", own_identity().public_key)
    roster = tmp_path / "roster.txt"
    roster.write_text("\n".join(["# three wards", "", *OTHERS, line]))

    # A client that is there already: the holder puts the lines into the policy.
    shown = bract("client", "roster", tmp_path / "first", roster)
    # A new one: it is in the policy from the start.
    bract("client", "init", tmp_path / "second", "--data", images, "--name", "Ward 7", "--roster", roster)

    policy, constants = load_policy(tmp_path / "second" / "policy.toml"), SecureSum.of(3, 1)
    assert policy.aggregations == ("plain", "secure")
    assert (
        policy.roster == read_roster(roster).digest.hex() == read_roster(tmp_path / "first" / ROSTER_FILE).digest.hex()
    )
    assert f'roster = "{policy.roster}"' in shown
    assert load_policy(tmp_path / "first" / "policy.toml").aggregations == ("plain",)
    assert own_party(load_site(tmp_path / "second"), policy, constants).roster.names == ("Ward 7", "ward-1", "ward-2")


def test_a_client_goes_by_the_roster_of_its_policy_alone(tmp_path: Path, own_home: Path) -> None:
    site, roster, three = site_at(tmp_path), tmp_path / "all.txt", SecureSum.of(3, 1)
    own = roster_line("ward-0", own_identity().public_key)
    roster.write_text("\n".join([*OTHERS, own]))
    policy, folder = Policy(max_epsilon=1.0, delta=1e-5), tmp_path
    named = policy.model_copy(update={"roster": take_roster(site, roster).digest.hex()})

    assert len(own_party(site, named, three).roster) == 3
    with pytest.raises(PolicyError, match="names no roster"):
        own_party(site, policy, three)
    with pytest.raises(PolicyError, match="the run is for num-clients=4, the roster has 3"):
        own_party(site, named, SecureSum.of(4, 1))
    (folder / ROSTER_FILE).write_text("\n".join([OTHERS[0], own]))
    with pytest.raises(PolicyError, match=r"not the roster that the policy names"):
        own_party(site, named, three)
    (own_home / "holder" / "identity.key").write_bytes(bytes(32))
    (folder / ROSTER_FILE).write_text(roster.read_text())
    with pytest.raises(PolicyError, match="does not have this client's name 'ward-0' with its identity key"):
        own_party(site, named, three)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([OTHERS[0], OTHERS[0]], "line 2: 'ward-1' is there twice"),
        ([OTHERS[0], OTHERS[0].replace("ward-1", "ward-9")], "two clients have the same one"),
        (["abcd ward-1"], "a key is not 64 hex digits"),
        (["ward-1"], "line 1: write a public key"),
        ([f"{'zz' * 32} ward-1"], "line 1: write a public key"),
        (OTHERS, "lacks this client's own line"),
    ],
)
def test_a_roster_that_cannot_be_used_is_refused(tmp_path: Path, own_home: Path, lines: list[str], match: str) -> None:
    roster = tmp_path / "all.txt"
    roster.write_text("\n".join(lines))

    with pytest.raises(ConfigError, match=match):
        take_roster(site_at(tmp_path), roster)

    assert not (tmp_path / ROSTER_FILE).exists()


def test_an_identity_key_that_others_can_read_is_refused(own_home: Path) -> None:
    own_identity()
    (own_home / "holder" / "identity.key").chmod(0o640)

    with pytest.raises(Exception, match="can be read by others"):
        own_identity()


def test_read_roster_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt cannot be read"):
        read_roster(tmp_path / "nowhere.txt")
