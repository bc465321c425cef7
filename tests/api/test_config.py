"""Settings at run time: who may change them, what is refused, what changes at once, and how it is undone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from api.config import Configurator
from api.limits import new_key
from tests.fakes import flat_png
from utils.errors import BadRequest, Conflict
from utils.live_settings import MemoryKeeper, State, following
from utils.releases import Store, seal
from utils.settings import Settings

ANN, BOB = new_key(), new_key()
KEYS = {"api_keys": f"ann={ANN[1]},bob={BOB[1]}", "api_admins": "ann"}
AS_ANN, AS_BOB = {"X-API-Key": ANN[0]}, {"X-API-Key": BOB[0]}
PNG = {"file": ("photo.png", flat_png())}


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def test_only_a_key_with_the_right_may_see_or_change_settings(serve) -> None:
    async def work(client) -> None:
        for call in (client.get("/v1/config"), client.patch("/v1/config", json={}), client.post("/v1/config/undo")):
            answer = await call
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/undo")):
            answer = await client.request(method, f"/v1/config{path}", headers=AS_BOB)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert (await client.get("/v1/config", headers=AS_ANN)).status_code == 200

    serve(work, **KEYS)


def test_without_keys_nobody_may_even_from_an_address_of_that_name(serve) -> None:
    async def work(client) -> None:
        assert (await client.get("/v1/config")).status_code == 403

    serve(work)
    with pytest.raises(ValidationError, match=r"IMGV_API_KEYS has no key of the name '127\.0\.0\.1'"):
        Settings.of(api_admins="127.0.0.1")


def test_a_threshold_holds_from_the_next_image_on_and_one_call_undoes_it(serve, caplog) -> None:
    async def work(client) -> list[float]:
        found = [(await client.post("/v1/verify", files=PNG)).json()["threshold"]]
        changed = (await client.patch("/v1/config", json={"threshold": 0.875})).json()
        assert (changed["values"]["threshold"], changed["changed"], changed["by"]) == (0.875, ["threshold"], "ann")
        found.append((await client.post("/v1/verify", files=PNG)).json()["threshold"])
        assert (await client.get("/v1/models")).json()["fusion"]["thresholds"]["label"] == 0.875
        undone = (await client.post("/v1/config/undo")).json()
        assert (undone["version"], undone["changed"], undone["can_undo"]) == (2, [], 0)
        found.append((await client.post("/v1/verify", files=PNG)).json()["threshold"])
        answer = await client.post("/v1/config/undo")
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        return found

    before, during, after = serve(work, headers=AS_ANN, **KEYS)
    assert (during, after) == (0.875, before)
    assert "version 1 by ann: threshold=0.875" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": 2}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"thresold": 0.5}, "thresold"),
        ({"profile": "huge"}, "does not run here"),
        ({"release": "x"}, "IMGV_RELEASE"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"rate_per_minute": 0}, "rate_per_minute"),
        ([1], "JSON object"),
    ],
)
def test_what_is_not_understood_changes_nothing(serve, given, words) -> None:
    async def work(client) -> None:
        answer = await client.patch("/v1/config", json=given)
        assert answer.status_code == 400
        assert words in answer.json()["detail"]
        assert (await client.get("/v1/config")).json()["version"] == 0

    serve(work, headers=AS_ANN, **KEYS)


def test_limits_and_the_level_of_the_log_change_at_once(serve) -> None:
    async def work(client) -> None:
        await client.patch("/v1/config", json={"rate_per_minute": 1, "batch_images": 1, "log_level": "ERROR"})
        assert logging.getLogger().level == logging.ERROR
        statuses = [(await client.post("/v1/verify", files=PNG, headers=AS_BOB)).status_code for _ in range(2)]
        assert statuses == [200, 429]
        await client.patch("/v1/config", json={"rate_per_minute": None, "log_level": None})
        assert logging.getLogger().level == logging.WARNING
        many = [("files", ("a.png", flat_png())), ("files", ("b.png", flat_png(10)))]
        assert (await client.post("/v1/verify/batch", files=many)).status_code == 400

    serve(work, headers=AS_ANN, **KEYS)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """Two releases, of which "one" judges."""
    store = Store(tmp_path / "store")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        store.publish(seal(tmp_path / name, name, profile="embedded", code="", data="", weights={}))
    store.promote("one")
    monkeypatch.setattr("api.app.catalogue", lambda *_: None)
    return store


def test_a_release_is_promoted_by_name_and_the_one_before_comes_back(serve, store) -> None:
    async def work(client) -> None:
        changed = (await client.patch("/v1/config", json={"release": "two"})).json()
        assert changed["values"]["release"] == store.pointer().release == "two"
        await client.post("/v1/config/undo")
        assert store.pointer().release == "one"

    serve(work, headers=AS_ANN, release=str(store.folder), release_refresh_seconds=1000, **KEYS)


def test_a_release_that_cannot_be_promoted_leaves_the_settings_as_they_were(serve, store) -> None:
    async def work(client) -> None:
        assert (await client.patch("/v1/config", json={"threshold": 0.875})).status_code == 200
        answer = await client.patch("/v1/config", json={"release": "three", "threshold": 0.5})
        assert (answer.status_code, answer.json()["code"]) == (500, "release_unusable")
        now = (await client.get("/v1/config")).json()
        assert (now["changed"], now["values"]["threshold"], now["can_undo"]) == (["threshold"], 0.875, 1)
        assert (now["values"]["release"], store.pointer().release) == ("one", "one")

    serve(work, headers=AS_ANN, release=str(store.folder), release_refresh_seconds=1000, **KEYS)


def test_a_change_that_is_refused_because_another_came_between_moves_no_release(store) -> None:
    class Busy(MemoryKeeper):
        async def read(self) -> State:
            state = await super().read()
            await self.write(state.changed({"threshold": 0.5}, "bob"))
            return state

    config = Configurator(Settings.of(release=str(store.folder)), Busy(), lambda _: None)
    with pytest.raises(Conflict):
        asyncio.run(config.change({"release": "two"}, "ann"))
    assert store.pointer().release == "one"


def test_changes_of_other_settings_leave_a_release_that_was_promoted_elsewhere(store) -> None:
    async def main() -> list[str]:
        config = Configurator(Settings.of(release=str(store.folder)), MemoryKeeper(), lambda _: None)
        await config.change({"release": "two"}, "ann")
        store.promote("one")
        await config.change({"threshold": 0.5}, "ann")
        found = [store.pointer().release]
        await config.undo("ann")
        return [*found, store.pointer().release]

    assert asyncio.run(main()) == ["one", "one"]


def test_of_two_changes_at_a_time_one_is_refused() -> None:
    async def main() -> None:
        keeper = MemoryKeeper()
        state = await keeper.read()
        assert await keeper.write(state.changed({"threshold": 0.5}, "ann"))
        assert not await keeper.write(state.changed({"threshold": 0.6}, "bob"))
        assert (await keeper.read()).values.threshold == 0.5

    asyncio.run(main())


def test_twenty_changes_can_be_undone_one_by_one() -> None:
    state = State()
    for number in range(30):
        state = state.changed({"threshold": number / 100}, "ann")
    for number in range(28, 8, -1):
        state = state.undone("ann")
        assert state.values.threshold == number / 100
    with pytest.raises(BadRequest, match="nothing is left"):
        state.undone("ann")


def test_a_state_that_cannot_be_read_leaves_what_holds(caplog) -> None:
    class Broken(MemoryKeeper):
        async def read(self) -> State:
            raise OSError("gone")

    async def main() -> None:
        async with following(Broken(), lambda values: pytest.fail("applied"), 0.01):
            await asyncio.sleep(0.05)

    asyncio.run(main())
    assert "cannot be read; those that hold go on: gone" in caplog.text
