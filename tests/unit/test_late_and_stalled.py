"""What the pages say of blind answers that came late, never, or are not what was sealed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authors import Author
from starlette.testclient import TestClient
from web_home import HOUR, NONCE, TESTS, WebHome

from ponyswarm.keys import peer_id
from ponyswarm.messages import Spec
from ponyswarm.web.app import application

SPEC = Spec(python=("3.12",), redundancy=2, cross_check="blind", timeout=600)
ADA, GRACE, COPYCAT, SILENT, TURNCOAT = (Author(number) for number in range(2, 7))


class Scene:
    """One blind cell. Ada and Grace commit, then tell; the copycat commits when they have told;
    the silent one commits and says no more; the turncoat tells another outcome than it sealed."""

    def __init__(self, folder: Path) -> None:
        self.home = WebHome(folder)
        maintainer = Author(1)
        project = self.home.found(maintainer, "aurora")
        job, (cell,) = self.home.job(maintainer, project, spec=SPEC)
        self.cell = cell.hex()
        place = (project, job, cell)
        honest = tuple(self.home.commit(one, *place, ()).id for one in (ADA, GRACE))
        silent = self.home.commit(SILENT, *place, ()).id
        turncoat = self.home.commit(TURNCOAT, *place, ()).id
        for one in (ADA, GRACE):
            self.home.run(one, *place, nonce=NONCE, seen=(*honest, silent, turncoat))
        late = self.home.commit(COPYCAT, *place, ()).id
        self.home.run(COPYCAT, *place, nonce=NONCE, seen=(*honest, late))
        self.home.run(TURNCOAT, *place, bad=TESTS[:1], nonce=NONCE, seen=honest)
        self.client = TestClient(
            application(self.home.site()), base_url="http://localhost:7640", backend="trio"
        )

    def page(self, address: str) -> Any:
        return self.client.get(f"{address}.json").json()

    def record(self, author: Author) -> dict[str, int]:
        return self.page(f"/volunteer/{peer_id(author.public)}")["tally"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.home.close()


def test_a_cell_tells_who_was_blind_who_came_late_and_whose_word_is_void(scene: Scene) -> None:
    runs = {run["key"]["id"]: run for run in scene.page(f"/cell/{scene.cell}")["runs"]}
    check = {author: runs[peer_id(author.public)]["check"] for author in (ADA, GRACE, COPYCAT)}
    assert check == {ADA: "blind", GRACE: "blind", COPYCAT: "late"}
    assert "commit" in runs[peer_id(TURNCOAT.public)]["why_not"]


def test_a_commit_that_was_not_told_is_sealed_until_its_window_ends_and_then_stalled(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(page: Any, word: str) -> set[str]:
        return {one["id"] for one in page[word]}

    address = f"/cell/{scene.cell}"
    silent = peer_id(SILENT.public)
    monkeypatch.setattr("ponyswarm.web.app.now_ms", lambda: scene.home.now + 1000)
    page = scene.page(address)
    assert silent in of(page, "sealed")
    assert not page["stalled"]
    monkeypatch.setattr("ponyswarm.web.app.now_ms", lambda: scene.home.now + HOUR)
    page = scene.page(address)
    assert silent in of(page, "stalled")
    assert not page["sealed"]
    assert "did not tell it in time" in scene.client.get(address).text


def test_a_record_counts_late_void_and_stalled_apart_from_agreed(scene: Scene) -> None:
    assert scene.record(ADA) == scene.record(GRACE) == {"agreed": 1}
    assert scene.record(COPYCAT) == {"late": 1}
    assert scene.record(SILENT) == {"stalled": 1}
    assert scene.record(TURNCOAT) == {"void": 1, "stalled": 1}
    text = scene.client.get(f"/volunteer/{peer_id(SILENT.public)}").text
    assert "committed to an outcome and never told it" in text
