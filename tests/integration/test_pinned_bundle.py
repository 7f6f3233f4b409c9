"""`bract client start` on Flower's deployment runtime: TLS, node keys, and only the pinned code runs."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from client.client_config import Site
from client.setup.init_client import init_client
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.ledger.data_holder import own_holder
from common.system.app_bundle import bundle_digest, bundle_of, stage_app
from common.system.progress import no_progress
from tests.support.clients.own_clients import POLICY, SMALL, write_images
from tests.support.network.federation import environment, flwr_run, process
from tests.support.network.tls_superlink import START, free_address, secure_link, write_certificates

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]
Sites = tuple[str, list[Site], list[Path]]  # the address of their server, and their homes
SETTINGS: dict[str, Scalar] = SMALL | {"num-clients": 2}


def ready_client(root: Path, number: int, address: str, pin: str) -> Site:
    """A client as `bract client init` makes it, for a server, with a pin."""
    folder = root / f"ward-{number}"
    folder.mkdir()
    (folder / "policy.toml").write_text(f'{POLICY}bundle = "{pin}"\n')
    images = write_images(root / f"images-{number}", range(60 * number, 60 * number + 60))
    site, _ = init_client(
        folder,
        str(images),
        path="",
        name=folder.name,
        progress=no_progress,
        server=address,
        authority=root / "ca.pem",
    )
    return site


def run_over(root: Path, address: str, sites: Sequence[Site], config: RunConfig, homes: Sequence[Path]) -> str:
    """One run over started clients; gives what the server's side streamed."""
    with ExitStack() as stack:
        authority = stack.enter_context(secure_link(root, address, [site.public_key_file for site in sites]))
        for site, home in zip(sites, homes, strict=True):
            log = site.folder / "start.log"
            env = environment(root, BRACT_HOME=str(home))
            stack.enter_context(process([sys.executable, "-c", START, str(site.folder)], log, env))
        return flwr_run(root, address, config, seconds=240, app=root / "bract", authority=authority)


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """Two clients, each of a data holder of its own, that pin the app in tmp_path/bract."""
    write_certificates(tmp_path)
    address, pin = free_address(), bundle_digest(bundle_of(stage_app(tmp_path)))
    homes, made = [tmp_path / f"home-{number}" for number in range(2)], []
    for number, home in enumerate(homes):
        monkeypatch.setenv("BRACT_HOME", str(home))
        made.append(ready_client(tmp_path, number, address, pin))
    return address, made, homes


def refusals(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("BRACT_HOME", str(home))
    with own_holder().open_session() as session:
        return [entry.event["why"] for entry in session.ledger.entries("kind = ?", ("refuse",))]


def test_a_federation_of_pinned_clients_runs_over_tls(
    tmp_path: Path, sites: Sites, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, made, homes = sites
    run = tmp_path / "run"

    streamed = run_over(tmp_path, address, made, make_config(SETTINGS | {"output-dir": str(run)}), homes)

    told = [(site.folder / "start.log").read_text() for site in made]
    assert (run / "summary.json").is_file(), streamed + "\n".join(told)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["clients"]) == ("complete", 2, 2)
    for lines in told:
        assert "Connected to" in lines
        assert "round 2, train: answered in" in lines
        assert "--insecure" not in lines
    assert [refusals(home, monkeypatch) for home in homes] == [[], []]


def test_every_client_refuses_a_bundle_that_is_not_the_pinned(
    tmp_path: Path, sites: Sites, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, made, homes = sites
    run = tmp_path / "run"
    with (tmp_path / "bract" / "client" / "app.py").open("a") as stream:
        stream.write("# a server's own idea\n")

    streamed = run_over(tmp_path, address, made, make_config(SETTINGS | {"output-dir": str(run)}), homes)

    assert "BUNDLE" in streamed
    assert (
        not (run / "summary.json").is_file() or json.loads((run / "summary.json").read_text())["status"] != "complete"
    )
    for site, home in zip(made, homes, strict=True):
        assert not (site.folder / "bundles").exists()
        noted = refusals(home, monkeypatch)
        assert len(noted) == 1
        assert "nothing of it was run" in noted[0]
        assert "not answered (BUNDLE)" in (site.folder / "start.log").read_text()
