"""Collecting from servers on loopback that answer in the documented shapes; the network rule alone is lifted."""

from __future__ import annotations

import asyncio
import csv
import http.server
import io
import json
import subprocess
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from ssrfguard import AddressTable, Policy

from ingress import fetch
from lifecycle import web as web_module
from lifecycle.collect import Collection, collect
from lifecycle.collect import main as collect_main
from lifecycle.sources import (
    SOURCES,
    civitai,
    commons,
    flickr,
    huggingface,
    lexica,
    open_source,
    openverse,
    pexels,
    unsplash,
)
from lifecycle.web import Web
from utils.errors import BadSettings, FetchFailed, UrlRefused
from utils.exits import Exit
from utils.settings import Settings


def picture(seed: int, kind: str = "JPEG", side: int = 160) -> bytes:
    """Unlike every other seed's, at any size and compression."""
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


class Site(http.server.ThreadingHTTPServer):
    """Files by path; ``answers`` may give JSON for a path and its query; ``troubles`` are statuses to give first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, object] = {}
        self.troubles: dict[str, list[tuple[int, str]]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.asked.append(parts.path)
        self.server.headers.append(dict(self.headers))
        if troubles := self.server.troubles.get(parts.path):
            status, retry = troubles.pop(0)
            self.send_response(status)
            if retry:
                self.send_header("Retry-After", retry)
            self.end_headers()
            return
        body = self.server.files.get(parts.path)
        if answer := self.server.answers.get(parts.path):
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = json.dumps(answer(query) if callable(answer) else answer).encode()
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    with Site() as server:
        rule = Policy(allowed_ports={server.server_port}, denied_networks=AddressTable(()))
        monkeypatch.setattr(fetch, "policy_for", lambda ports: rule)
        monkeypatch.setattr(web_module, "_backoff", lambda state: 0.01)
        yield server
        server.shutdown()


def settings_of(**given: object) -> Settings:
    return Settings.of(decode_in_child=False, **given)


def run(argument: str, folder: Path, count: int = 50, since: str = "", **given: object) -> Counter[str]:
    settings = settings_of(**given)

    async def main() -> Counter[str]:
        return await collect(argument, count, Collection.at(folder), Web(settings, 1000), settings, since)

    return asyncio.run(main())


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "sources.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_commons_is_read_page_by_page_and_what_is_there_is_not_fetched_again(site, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(commons, "API", f"{site.url}/w/api.php")
    for number in range(3):
        site.files[f"/{number}.jpg"] = picture(number)
    site.files["/broken.jpg"] = picture(9)[: len(picture(9)) // 2]
    site.files["/copy.png"] = picture(0, "PNG")  # the same picture in another file
    names = ["0.jpg", "1.jpg", "broken.jpg", "copy.png", "gone.jpg", "2.jpg"]

    def answer(query: dict[str, str]) -> object:
        assert query["gcmtitle"] == "Category:Quality images"
        begin = int(query.get("gcmcontinue", 0))
        pages = [
            {
                "title": f"File:{name}",
                "imageinfo": [
                    {
                        "url": f"{site.url}/{name}",
                        "descriptionurl": f"{site.url}/wiki/{name}",
                        "user": "someone",
                        "timestamp": "2026-11-01T00:00:00Z",
                        "mime": "image/jpeg",
                        "extmetadata": {
                            "Artist": {"value": f"<a href='x'>Author {name[0]}</a>"},
                            "LicenseShortName": {"value": "CC BY-SA 4.0"},
                        },
                    }
                ],
            }
            for name in names[begin : begin + 4]
        ]
        following = {"continue": {"gcmcontinue": str(begin + 4), "continue": "gcmcontinue||"}} if begin == 0 else {}
        return {"query": {"pages": pages}} | following

    site.answers["/w/api.php"] = answer
    told = run("commons:Quality images", tmp_path)
    assert told == {"taken": 3, "truncated": 1, "repeats another": 1, "url_not_found": 1}
    first = rows(tmp_path)[0]
    assert (first["author"], first["licence"], first["label"]) == ("Author 0", "CC BY-SA 4.0", "real")
    assert first["source"].startswith("commons-Author_0")
    assert (tmp_path / first["filepath"]).read_bytes() == picture(0)
    before = site.asked.count("/0.jpg")
    assert run("commons:Quality images", tmp_path) == {"there already": 6}
    assert site.asked.count("/0.jpg") == before
    assert all(each["User-Agent"] == "img-ml-verify-collect" for each in site.headers)


def test_civitai_is_read_by_its_cursor_newest_first_within_the_window(site, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(civitai, "API", f"{site.url}/api/v1/images")
    for number in range(4):
        site.files[f"/{number}.jpeg"] = picture(number)

    def answer(query: dict[str, str]) -> object:
        page = int(query.get("cursor", 0))
        items = [
            {
                "id": number,
                "url": f"{site.url}/{number}.jpeg",
                "createdAt": f"2026-1{1 - page}-0{number + 1}T00:00:00Z",
                "username": "maker",
                "baseModel": "Flux.1 D",
                "type": "image",
            }
            for number in (2 * page, 2 * page + 1)
        ]
        return {"items": items, "metadata": {"nextCursor": "1"} if page == 0 else {}}

    site.answers["/api/v1/images"] = answer
    assert run("civitai", tmp_path, since="2026-11-01") == {"taken": 2, "older": 2}
    assert {(each["label"], each["generator"]) for each in rows(tmp_path)} == {("ai", "Flux.1 D")}


@pytest.mark.parametrize(
    ("module", "answer", "given"),
    [
        (
            openverse,
            {"page_count": 1, "results": [{"url": "U", "creator": "A", "license": "by", "license_version": "4.0"}]},
            {},
        ),
        (
            unsplash,
            {
                "total_pages": 1,
                "results": [
                    {
                        "urls": {"raw": "U"},
                        "user": {"name": "A"},
                        "links": {"html": "H", "download_location": "D"},
                        "created_at": "2026-11-02",
                    }
                ],
            },
            {"unsplash_access_key": "k"},
        ),
        (pexels, {"photos": [{"src": {"original": "U"}, "url": "H", "photographer": "A"}]}, {"pexels_api_key": "k"}),
        (
            flickr,
            {"photos": {"pages": 1, "photo": [{"id": "1", "owner": "o", "ownername": "A", "url_o": "U"}]}},
            {"flickr_api_key": "k"},
        ),
        (lexica, {"images": [{"src": "U", "gallery": "H", "prompt": "a cat"}]}, {}),
    ],
)
def test_each_documented_shape_is_understood(site, monkeypatch, tmp_path, module, answer, given) -> None:
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(module, "API", f"{site.url}/api")
    text = json.dumps(answer).replace('"U"', f'"{site.url}/a.jpg"').replace('"D"', f'"{site.url}/used"')
    site.answers |= {"/api": json.loads(text), "/used": {"url": "x"}}
    site.files["/a.jpg"] = picture(1)
    assert run(f"{name}:cat", tmp_path, **given) == {"taken": 1}
    (row,) = rows(tmp_path)
    assert row["claim"]
    assert row["licence"]
    if given and name != "flickr":
        assert any("k" in each.get("Authorization", "") for each in site.headers)
        assert "Authorization" not in site.headers[-1]  # the image is no matter of the interface


@pytest.mark.parametrize("name", ["unsplash", "pexels", "flickr"])
def test_a_source_without_its_key_says_where_to_get_one(tmp_path, name) -> None:
    with pytest.raises(BadSettings, match=r"IMGV_.*https://"):
        run(f"{name}:cat", tmp_path)


def test_a_gallery_is_read_by_a_css_selector_and_robots_txt_is_kept(site, tmp_path) -> None:
    site.files["/robots.txt"] = b"User-agent: *\nDisallow: /private\n"
    pictures = [
        '<img class="ad" src="/ad.jpg">',
        '<img class="art" src="1.jpg">',
        '<img class="art" data-src="/private/2.jpg">',
    ]
    site.files["/show"] = "".join(pictures).encode()
    site.files["/1.jpg"] = picture(1)
    site.files["/private/2.jpg"] = picture(2)
    assert run(f"gallery:ai,Midjourney,img.art,{site.url}/show", tmp_path) == {"taken": 1, "url_refused": 1}
    assert "/private/2.jpg" not in site.asked
    assert "/ad.jpg" not in site.asked


def test_a_server_that_asks_for_patience_gets_it(site, tmp_path) -> None:
    site.files["/a.jpg"] = picture(1)
    site.troubles["/a.jpg"] = [(429, "0"), (503, "")]
    listed = tmp_path / "list.txt"
    listed.write_text(f"# mine\n{site.url}/a.jpg\n{site.url}/b.jpg # gone\n")
    assert run(f"urls:real,me,{listed}", tmp_path / "out") == {"taken": 1, "url_not_found": 1}
    assert site.asked.count("/a.jpg") == 3


def test_what_failed_for_now_is_asked_for_again_another_day(site, tmp_path) -> None:
    site.files["/a.jpg"] = picture(1)
    site.troubles["/a.jpg"] = [(503, "")] * web_module.ATTEMPTS
    (tmp_path / "list.txt").write_text(f"{site.url}/a.jpg\n")
    assert run(f"urls:real,me,{tmp_path / 'list.txt'}", tmp_path / "out") == {"fetch_failed": 1}
    assert run(f"urls:real,me,{tmp_path / 'list.txt'}", tmp_path / "out") == {"taken": 1}


def test_robots_txt_in_trouble_rejects_nothing_for_good(site, tmp_path) -> None:
    site.files["/a.jpg"], site.files["/b.jpg"] = picture(1), picture(2)
    site.troubles["/robots.txt"] = [(503, "")] * web_module.ATTEMPTS
    (tmp_path / "list.txt").write_text(f"{site.url}/a.jpg\n{site.url}/b.jpg\n")
    assert run(f"urls:real,me,{tmp_path / 'list.txt'}", tmp_path / "out") == {"fetch_failed": 2}
    assert site.asked == ["/robots.txt"] * web_module.ATTEMPTS  # once for both, and no image without it
    assert not (tmp_path / "out" / "rejected.csv").exists()
    assert run(f"urls:real,me,{tmp_path / 'list.txt'}", tmp_path / "out") == {"taken": 2}


def test_a_server_that_asks_for_more_patience_than_we_have_is_left_alone_for_this_run(site, tmp_path) -> None:
    site.files["/b.jpg"] = picture(2)
    site.troubles["/a.jpg"] = [(429, str(int(web_module.LONGEST_WAIT) + 1))]
    (tmp_path / "list.txt").write_text(f"{site.url}/a.jpg\n{site.url}/b.jpg\n")
    assert run(f"urls:real,me,{tmp_path / 'list.txt'}", tmp_path / "out") == {"fetch_failed": 2}
    assert site.asked == ["/robots.txt", "/a.jpg"]
    assert not (tmp_path / "out" / "rejected.csv").exists()


def test_a_large_file_has_time_by_its_size_and_an_image_by_the_setting(site, monkeypatch) -> None:
    given = []

    async def fetch_async(url: str, **how: object) -> bytes:
        given.append(how["seconds"])
        return b""

    monkeypatch.setattr(fetch, "fetch_async", fetch_async)

    async def main() -> None:
        web = Web(settings_of(fetch_seconds=7), 1000)
        await web.image(f"{site.url}/a.jpg")
        await web.file(f"{site.url}/a.zip", 100 << 20)

    asyncio.run(main())
    assert given == [7, 7, 100]  # robots.txt, the image, the file


def test_unsplash_hears_of_a_download_when_there_is_one(site, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(unsplash, "API", f"{site.url}/api")
    result = {"user": {"name": "A"}, "created_at": "2026-11-02"}
    results = [
        {
            **result,
            "urls": {"raw": f"{site.url}/{number}.jpg"},
            "links": {"html": "H", "download_location": f"{site.url}/used{number}?ixid=1"},
        }
        for number in range(3)
    ]
    site.answers["/api"] = {"total_pages": 1, "results": results}
    for number in range(3):
        site.files[f"/{number}.jpg"] = picture(number)
        site.files[f"/used{number}"] = b"{}"
    assert run("unsplash:cat", tmp_path, count=2, unsplash_access_key="k") == {"taken": 2}
    assert [path for path in site.asked if path.startswith("/used")] == ["/used0", "/used1"]
    assert "exclude training" in rows(tmp_path)[0]["licence"]


def test_a_source_that_offers_only_what_is_too_old_is_not_read_to_its_end(monkeypatch, tmp_path) -> None:
    from lifecycle import collect as module
    from lifecycle.sources import Item, urls

    offered = []

    async def endless(web: object, what: str, settings: object):
        for number in range(100):
            offered.append(number)
            yield Item(url=f"http://x/{number}", label="ai", claim="", date="2020-01-01")

    monkeypatch.setattr(urls, "items", endless)
    monkeypatch.setattr(module, "OLDER", 10)
    assert run("urls:x", tmp_path, since="2026-01-01") == {"older": 10}
    assert len(offered) <= 11


def test_a_day_that_is_none_is_refused(capsys) -> None:
    from lifecycle.collect import main

    with pytest.raises(SystemExit, match="2"):
        main(["urls:x", "--since", "yesterday"])
    assert "'yesterday' is no day" in capsys.readouterr().err


def test_the_command_takes_a_folder_without_further_options(tmp_path, capsys) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jpg").write_bytes(picture(1))
    out = tmp_path / "data"
    assert collect_main([f"folder:real,me,{tmp_path / 'mine'}", "--out", str(out)]) == Exit.DONE
    assert f"1 real and 0 AI images in {out}; next: python -m scripts.make_dataset_csv" in capsys.readouterr().out


def test_folders_of_one_name_are_told_apart(tmp_path) -> None:
    for place, seed in (("one", 1), ("two", 3)):
        for label, more in (("real", 0), ("fake", 1)):
            folder = tmp_path / place / "archive" / label
            folder.mkdir(parents=True)
            (folder / "a.jpg").write_bytes(picture(seed + more))
    out = tmp_path / "out"
    assert run(f"kaggle:{tmp_path}/one/archive", out) == {"taken": 2}
    assert run(f"kaggle:{tmp_path}/two/archive", out) == {"taken": 2}
    assert len({(each["source"], each["label"]) for each in rows(out)}) == 4
    assert len({each["source"] for each in rows(out)}) == 2
    assert run(f"folder:real,me,{tmp_path}/one/archive/real", tmp_path / "mine") == {"taken": 1}
    assert run(f"folder:real,me,{tmp_path}/two/archive/real", tmp_path / "mine") == {"taken": 1}


def test_a_private_address_is_refused_by_the_products_own_guard(tmp_path) -> None:
    web = Web(settings_of(), 1000)
    with pytest.raises(UrlRefused):
        asyncio.run(web.api("http://127.0.0.1:9/api", {}))
    with pytest.raises((UrlRefused, FetchFailed)):
        asyncio.run(web.image("http://169.254.169.254/latest/meta-data"))


def test_folders_git_snapshots_and_archives_are_read_where_they_lie(tmp_path) -> None:
    kaggle = tmp_path / "set"
    for label, seed in (("real", 1), ("fake", 2)):
        (kaggle / "train" / label).mkdir(parents=True)
        (kaggle / "train" / label / "a.jpg").write_bytes(picture(seed))
    repository = tmp_path / "repository"
    (repository / "art").mkdir(parents=True)
    (repository / "art" / "x.png").write_bytes(picture(3, "PNG"))
    (repository / "logo.png").write_bytes(picture(4, "PNG"))
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for step in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *step], check=True)
    with zipfile.ZipFile(tmp_path / "part.zip", "w") as archive:
        archive.writestr("a.png", picture(5, "PNG"))
        archive.writestr("part.json", "{}")
    out = tmp_path / "out"
    assert run(f"kaggle:{kaggle}", out) == {"taken": 2}
    assert run(f"git:ai,DALL-E 3,^art/,{repository}", out) == {"taken": 1}
    assert run(f"diffusiondb:{tmp_path / 'part.zip'}", out) == {"taken": 1}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "b.jpg").write_bytes(picture(1))
    assert run(f"folder:real,me,{tmp_path / 'mine'}", out) == {"repeats another": 1}
    assert sorted((each["label"], each["generator"]) for each in rows(out)) == [
        ("ai", "DALL-E 3"),
        ("ai", "Stable Diffusion"),
        ("ai", "set"),
        ("real", ""),
    ]


def test_shards_of_a_hugging_face_data_set_are_read(site, monkeypatch, tmp_path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"image": [{"bytes": picture(1), "path": "a.jpg"}, {"bytes": picture(2), "path": "b.jpg"}]})
    parquet.write_table(table, tmp_path / "shard.parquet")
    site.files["/shard.parquet"] = (tmp_path / "shard.parquet").read_bytes()
    monkeypatch.setattr(huggingface, "API", f"{site.url}/parquet")
    site.answers["/parquet"] = {"parquet_files": [{"url": f"{site.url}/shard.parquet"}]}
    assert run("huggingface:ai,FLUX.1,owner/name", tmp_path / "out") == {"taken": 2}


def test_a_rolling_window_drops_what_is_old(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(picture(1))
    out = tmp_path / "out"
    run(f"folder:real,me,{tmp_path / 'in'}", out)
    (path,) = out.glob("real/*/*.jpeg")
    collection = Collection.at(out)
    assert collection.drop_older(1) == 0
    table = out / "sources.csv"
    table.write_text(table.read_text().replace(rows(out)[0]["collected"], "2020-01-01T00:00:00+00:00"))
    collection = Collection.at(out)
    assert collection.drop_older(30) == 1
    assert not path.exists()
    assert rows(out) == []
    assert run(f"folder:real,me,{tmp_path / 'in'}", out) == {"there already": 1}  # else the window would never move


def test_every_source_can_be_opened_and_a_wrong_name_gets_a_hint() -> None:
    for name in SOURCES:
        assert callable(open_source(f"{name}:x")[1].items)
    with pytest.raises(BadSettings, match="did you mean 'commons'"):
        open_source("comons:x")
