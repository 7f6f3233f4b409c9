"""`bract client watch` as it is served, in Chromium."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from client.status.activity import ActivityRecord, Link
from common.ledger.data_holder import own_holder
from tests.support.browser import running_browser
from tests.support.clients.own_clients import OwnClient
from tests.support.ledger.builders import PLAN, holding, release

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]
HOSTILE = "<img src=x onerror=\"document.title='taken'\">\u202e'" + "x" * 10_000
SECTIONS = ["Now", "Budget", "Runs", "Refusals", "Pinned code", "What leaves this client", "Ledger"]


def test_a_holder_sees_the_client_live_and_on_this_machine_alone(tmp_path: Path, images: Path) -> None:
    client = OwnClient(tmp_path, images, "max-epsilon = 2.0\ndelta = 1e-5\n", name="a")
    with own_holder().open_session() as session:
        release(session, "run", PLAN, (holding(0, 6), holding(6, 8)), [(1, "train")])
        session.refuse(HOSTILE, "a", 1, HOSTILE, HOSTILE)
    command = [sys.executable, "-m", "bract", "client", "watch", str(client.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            found = re.search(r"http://127.0.0.1:(\d+)/\S{40,}/", process.stdout.readline())
            assert found, process.stderr.read()
            address = found.group()
            assert httpx.get(f"http://127.0.0.1:{found.group(1)}/wrong/", timeout=60).status_code == 404
            assert httpx.get(address, headers={"Host": "evil.example"}, timeout=60).status_code == 403
            with running_browser(tmp_path / "profile") as browser:
                tab = browser.new_tab()
                for width, dark in ((400, False), (900, True), (1600, False)):
                    tab.open(address, width=width, dark=dark)
                    assert tab.run("document.documentElement.scrollWidth") <= width
                    assert tab.regions() == SECTIONS
                    assert tab.run("document.title") == "Client a"
                assert tab.serious_issues("html") == []
                ActivityRecord(client.folder).link(Link.NO_ANSWER)
                # What the page's own script does with the event, without a click.
                wait = (
                    "new Promise(done => { const look = () => document.querySelector('main').textContent"
                    ".includes('did not end in order') ? done(true) : setTimeout(look, 50); look(); })"
                )
                assert tab.run(wait)
                assert re.fullmatch(r"\d+ s ago", tab.run("document.querySelector('#now time').textContent"))
                assert {url.removeprefix(address) for url in tab.requests} == {"", "events"}
                assert tab.problems == []
        finally:
            process.terminate()
