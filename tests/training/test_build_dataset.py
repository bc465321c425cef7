"""The builder of the data set, on small repositories, packages and folders that are made here."""

from __future__ import annotations

import csv
import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import piexif
import pytest
from PIL import Image, PngImagePlugin

from training import build_dataset
from training.build_dataset import candidates, judge, main, spread
from training.origins import open_origin
from training.sources import COLUMNS, Source, read_catalogue, read_hashes, write_file
from utils.errors import TableError
from utils.exits import Exit

GIT = (
    "git",
    "-c",
    "user.name=a",
    "-c",
    "user.email=a@b",
    "-c",
    "init.defaultBranch=main",
    "-c",
    "commit.gpgsign=false",
)


def source(name: str, label: str = "real", **changes: str) -> Source:
    """A row of the catalogue about the repository owner/NAME."""
    facts = dict.fromkeys(COLUMNS, "") | {
        "id": name,
        "address": f"github:owner/{name}",
        "version": "unseen",
        "include": r"^images/",
        "label": label,
        "family": "flux" if label == "ai" else "",
        "kind": "photo",
        "content": "photo",
        "subject": "mixed",
        "group": name,
        "evidence": "made here",
        "grade": "stated",
        "licence": "none stated",
        "split": "train",
    }
    return Source(**(facts | changes))


def picture(seed: int, side: int = 300, format: str = "PNG", **options: object) -> bytes:
    """Blocks of random colours: no two seeds look alike, and each outlasts compression."""
    blocks = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    noise = np.random.default_rng(seed).integers(0, 9, (side, side, 3), np.uint8)
    pixels = np.clip(np.asarray(Image.fromarray(blocks).resize((side, side)), np.int16) + noise, 0, 255)
    file = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format, **options)
    return file.getvalue()


def commit(repository: Path, files: dict[str, bytes | None], bare: bool = True) -> None:
    """Write (None: delete) and commit files; ``repository`` ends as a snapshot, bare or with its work tree."""
    tree = repository / "repo"
    if not (tree / ".git").exists():
        tree.mkdir(parents=True)
        subprocess.run([*GIT, "init", "-q"], cwd=tree, check=True)
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data) if data is not None else path.unlink()
    subprocess.run([*GIT, "add", "-A"], cwd=tree, check=True)
    subprocess.run([*GIT, "commit", "-q", "-m", "files"], cwd=tree, check=True)
    if bare:
        (tree / ".git").rename(repository / "bare")
        shutil.rmtree(tree)
        (repository / "bare").rename(tree)


class Workshop:
    """A folder with mirrors, a catalogue and the data set."""

    def __init__(self, folder: Path) -> None:
        self.mirror, self.catalogue, self.out = folder / "mirror", folder / "catalogue", folder / "set"
        self.mirror.mkdir()
        self.catalogue.mkdir()

    def build(self, *more: str) -> int:
        given = ["--mirror", str(self.mirror), "--out", str(self.out), "--catalogue", str(self.catalogue)]
        return main([*given, "--jobs", "1", *more])

    def rows(self, name: str = "dataset.csv") -> list[dict[str, str]]:
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Two sources: three photographs, and two AI images among files that do not belong."""
    made = Workshop(tmp_path)
    commit(made.mirror / "owner+real", {f"images/{i}.jpg": picture(i, format="JPEG", quality=90) for i in range(3)})
    files = {f"images/{i}.png": picture(10 + i) for i in range(2)}
    commit(made.mirror / "owner+ai", {**files, "images/readme.txt": b"no image", "other/9.png": picture(9)})
    write_file(made.catalogue / "all.csv", [source("real", split="val"), source("ai", "ai")])
    return made


# --- the whole command


def test_images_are_written_as_published_with_the_facts_that_trainers_take(workshop: Workshop) -> None:
    workshop.build()
    rows = workshop.rows()
    assert Counter((row["source"], row["label"], row["split"]) for row in rows) == {
        ("real", "real", "val"): 3,
        ("ai", "ai", "train"): 2,
    }
    first = next(row for row in rows if row["original"] == "images/1.png")
    assert (workshop.out / first["filepath"]).read_bytes() == picture(11)
    assert first["filepath"] == f"images/ai/ai/{first['sha256'][:16]}.png"
    assert (first["content"], first["family"], first["kind"], first["format"]) == ("photo", "flux", "photo", "PNG")


def test_a_second_run_does_nothing_and_says_so(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert workshop.build("--record") == 0
    assert "nothing to do" not in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in workshop.out.rglob("*.[jp][pn]g")}
    assert workshop.build() == 0
    assert "nothing to do: every source was built before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workshop.out.rglob("*.[jp][pn]g")} == before


def test_a_build_that_was_stopped_goes_on_and_ends_the_same(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.build("--record")
    whole = (workshop.out / "dataset.csv").read_bytes()
    shutil.rmtree(workshop.out)
    judged: list[str] = []

    def stop(raw: bytes, each: Source) -> object:
        judged.append(each.id)
        if judged.count("real") == 2:
            raise KeyboardInterrupt
        return judge(raw, each)

    with monkeypatch.context() as patched:
        patched.setattr(build_dataset, "judge", stop)
        assert workshop.build() == Exit.INTERRUPTED
    assert len(list((workshop.out / "images" / "real" / "real").iterdir())) == 1
    capsys.readouterr()
    assert workshop.build() == 0
    assert "1/1 real: 3 kept" in capsys.readouterr().out  # the other source was not made again
    assert (workshop.out / "dataset.csv").read_bytes() == whole
    assert len(list((workshop.out / "images" / "real" / "real").iterdir())) == 3


def test_several_processes_build_the_same(workshop: Workshop) -> None:
    workshop.build()
    one = (workshop.out / "dataset.csv").read_bytes()
    shutil.rmtree(workshop.out)
    workshop.build("--jobs", "2")
    assert (workshop.out / "dataset.csv").read_bytes() == one


def test_a_changed_row_builds_only_its_source_again(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.build()
    sources = {each.id: each for each in read_catalogue(workshop.catalogue)}
    write_file(workshop.catalogue / "all.csv", [sources["real"], replace(sources["ai"], include="^other/")])
    capsys.readouterr()
    workshop.build()
    assert "1/1 ai: 1 kept" in capsys.readouterr().out
    assert [row["original"] for row in workshop.rows() if row["label"] == "ai"] == ["other/9.png"]
    assert len(list((workshop.out / "images" / "ai" / "ai").iterdir())) == 1


def test_what_differs_from_the_hashes_of_the_catalogue_is_said(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workshop.build("--record") == 0
    assert "hashes agree for 2 of 2" in capsys.readouterr().out
    recorded = {each.id: each for each in read_catalogue(workshop.catalogue)}
    assert (recorded["real"].images, recorded["ai"].images) == ("3", "2")
    assert len(recorded["ai"].version) == 40
    assert {name: len(each) for name, each in read_hashes(workshop.catalogue).items()} == {"real": 3, "ai": 2}
    shutil.rmtree(workshop.mirror / "owner+ai")
    commit(workshop.mirror / "owner+ai", {"images/0.png": picture(10), "images/1.png": picture(77)})
    assert workshop.build() == Exit.FAILED
    printed = capsys.readouterr()
    assert "ai: 1 images of the catalogue are not here, 1 are not in it" in printed.err
    assert "hashes agree for 1 of 2" in printed.out


def test_every_file_that_is_left_out_is_listed_with_its_reason(workshop: Workshop) -> None:
    shutil.rmtree(workshop.mirror / "owner+ai")
    flat = Image.new("RGB", (4000, 4000), "grey")
    files: dict[str, bytes | None] = {
        "images/broken.png": picture(1)[:20_000],
        "images/copy.jpg": picture(50, format="JPEG", quality=60),
        "images/first.png": picture(50),
        "images/flat.bmp": _saved(flat.resize((300, 300)), "BMP"),
        "images/icon.png": _saved(flat.resize((40, 40)), "PNG"),
        "images/moving.gif": _saved(Image.open(BytesIO(picture(3))), "GIF", append=Image.open(BytesIO(picture(4)))),
        "images/real.png": picture(0),
        "images/small.png": picture(5, side=200),
        "images/strip.png": _saved(Image.open(BytesIO(picture(6, side=1200))).crop((0, 0, 1200, 300)), "PNG"),
        "images/text.jpg": b"not an image" * 999,
    }
    commit(workshop.mirror / "owner+ai", files)
    workshop.build()
    reasons = {row["path"]: row["reason"] for row in workshop.rows("rejected.csv")}
    assert reasons == {
        "images/0.jpg": "copies under both labels",
        "images/broken.png": "truncated",
        "images/copy.jpg": "repeats its source",
        "images/flat.bmp": "flat",
        "images/icon.png": "under 6000 bytes",
        "images/moving.gif": "animated",
        "images/real.png": "nearly the same picture under another label: images/0.jpg of real",
        "images/small.png": "under 256 px",
        "images/strip.png": "a strip",
        "images/text.jpg": "not_an_image",
    }
    assert [row["original"] for row in workshop.rows() if row["label"] == "ai"] == ["images/first.png"]


def _saved(image: Image.Image, format: str, append: Image.Image | None = None) -> bytes:
    file = BytesIO()
    more = {"save_all": True, "append_images": [append]} if append else {}
    image.save(file, format, **more)
    return file.getvalue()


def test_the_cap_takes_images_from_all_over_the_paths(workshop: Workshop) -> None:
    workshop.build("--cap", "2")
    kept = [row["original"] for row in workshop.rows() if row["source"] == "real"]
    assert kept == ["images/0.jpg", "images/2.jpg"]
    assert [row["reason"] for row in workshop.rows("rejected.csv")] == ["over 2 of its source"]


def test_the_check_reads_no_image_and_names_what_is_missing(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert workshop.build("--check", "--mirror", str(workshop.catalogue)) == 0  # a second folder, not another one
    assert "2 sources here in another version" in capsys.readouterr().out
    assert not workshop.out.exists()
    shutil.rmtree(workshop.mirror / "owner+ai")
    assert workshop.build("--check") == Exit.FAILED
    assert "missing: ai: github:owner/ai is in none of" in capsys.readouterr().out


def test_a_missing_source_does_not_stop_the_others(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(workshop.mirror / "owner+ai")
    assert workshop.build() == Exit.FAILED
    assert len(workshop.rows()) == 3
    assert "1 sources missing" in capsys.readouterr().out


def test_a_source_without_a_split_is_refused_with_the_next_step(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    write_file(workshop.catalogue / "all.csv", [source("real", split="")])
    assert workshop.build() == Exit.FAILED
    assert "real have no split: run python -m training.splits" in capsys.readouterr().err


# --- where images come from


def test_a_snapshot_is_read_bare_or_within_a_work_tree_by_its_newest_commit(tmp_path: Path) -> None:
    for name, bare in (("one", True), ("two", False)):
        commit(tmp_path / f"owner+{name}", {"images/a.png": b"old", "images/gone.png": b"gone"}, bare=False)
        commit(tmp_path / f"owner+{name}", {"images/a.png": b"new", "images/gone.png": None}, bare=bare)
        with open_origin(source(name), [tmp_path / "absent", tmp_path]) as origin:
            assert origin.paths() == ["images/a.png"]
            assert origin.read("images/a.png") == b"new"


def test_history_gives_the_last_version_of_every_path_deleted_ones_too(tmp_path: Path) -> None:
    repository = tmp_path / "owner+one"
    commit(repository, {"images/a ü.png": b"old", "images/gone.png": b"first"}, bare=False)
    commit(repository, {"images/gone.png": b"last"}, bare=False)
    commit(repository, {"images/a ü.png": b"new", "images/gone.png": None})
    with open_origin(source("one", history="yes"), [tmp_path]) as origin:
        assert {path: origin.read(path) for path in origin.paths()} == {
            "images/a ü.png": b"new",
            "images/gone.png": b"last",
        }


def test_a_file_that_the_snapshot_lacks_is_absent(tmp_path: Path) -> None:
    repository = tmp_path / "owner+one"
    commit(repository, {"images/a.png": b"large"})
    (blob,) = subprocess.check_output([*GIT, "rev-parse", "HEAD:images/a.png"], cwd=repository / "repo").split()
    (repository / "repo" / "objects" / blob.decode()[:2] / blob.decode()[2:]).unlink()
    with open_origin(source("one"), [tmp_path]) as origin:
        assert origin.read("images/a.png") is None


def test_what_is_no_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "owner+one").mkdir()
    (tmp_path / "owner+one" / "HEAD").write_text("ref: refs/heads/main\n")
    with pytest.raises(TableError, match=r"git cannot read .*owner"):
        open_origin(source("one"), [tmp_path])


def _wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / "pictures-1.0-py3-none-any.whl", "w") as file:
        file.writestr("images/a.png", b"a")


def _tarball(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with tarfile.open(folder / name, "w:gz") as file:
            member = tarfile.TarInfo("./images/a.png")
            member.size = 1
            file.addfile(member, BytesIO(b"a"))
            link = tarfile.TarInfo("images/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(link)

    return make


def _deb(folder: Path) -> None:
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not installed")
    (folder / "tree" / "DEBIAN").mkdir(parents=True)
    control = "Package: pictures\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b>\nDescription: b\n"
    (folder / "tree" / "DEBIAN" / "control").write_text(control)
    (folder / "tree" / "images").mkdir()
    (folder / "tree" / "images" / "a.png").write_bytes(b"a")
    target = folder / "pictures_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", folder / "tree", target], check=True, capture_output=True)


def _folder(folder: Path) -> None:
    (folder / "pictures" / "images").mkdir(parents=True)
    (folder / "pictures" / "images" / "a.png").write_bytes(b"a")
    (folder / "pictures" / "images" / "link.png").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("address", "make"),
    [
        ("pypi:pictures", _wheel),
        ("pypi:pictures", _tarball("pictures-1.0.tar.gz")),
        ("npm:@scope/pictures", _tarball("scope-pictures-1.0.tgz")),
        ("debian:pictures", _deb),
        ("folder:pictures", _folder),
    ],
)
def test_packages_and_folders_give_their_files_and_no_links(
    tmp_path: Path, address: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path)
    with open_origin(source("one", address=address), [tmp_path]) as origin:
        assert origin.paths() == ["images/a.png"]
        assert origin.read("images/a.png") == b"a"


# --- what is chosen


def test_patterns_choose_among_the_image_files() -> None:
    paths = ["images/b.png", "images/a.JPG", "images/a.txt", "images/logo.png", "other/c.png"]
    assert candidates(source("one", exclude="logo"), paths) == ["images/a.JPG", "images/b.png"]


def test_every_beginning_of_the_order_is_spread_over_the_paths() -> None:
    paths = [f"{i:03}" for i in range(100)]
    ordered = spread(paths)
    assert sorted(ordered) == paths
    for count in (4, 10, 50):
        gaps = np.diff(sorted(int(path) for path in ordered[:count]))
        assert gaps.max() <= 2 * 128 / count


CAMERA = piexif.dump({"0th": {piexif.ImageIFD.Make: b"Canon"}})
SETTINGS = PngImagePlugin.PngInfo()
SETTINGS.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 300x300, Model: sd15")


def _collage() -> bytes:
    dark, bright = (np.asarray(Image.open(BytesIO(picture(seed))), np.int16) // 3 for seed in (1, 2))
    return _saved(Image.fromarray(np.hstack([dark, bright + 170]).astype(np.uint8)), "PNG")


def _mostly_white() -> bytes:
    pixels = np.full((300, 300, 3), 255, np.uint8)
    pixels[:80] = np.asarray(Image.open(BytesIO(picture(1))))[:80]
    return _saved(Image.fromarray(pixels), "PNG")


@pytest.mark.parametrize(
    ("check", "passing", "failing"),
    [
        ("camera", picture(1, format="JPEG", exif=CAMERA), picture(1, format="JPEG")),
        ("generator", picture(1, pnginfo=SETTINGS), picture(1)),
        ("single", picture(1), _collage()),
        ("busy", picture(1), _mostly_white()),
    ],
)
def test_a_source_may_require_what_its_vocabulary_says(check: str, passing: bytes, failing: bytes) -> None:
    assert judge(passing, source("one", require=check)).problem == ""
    assert judge(failing, source("one", require=check)).problem == f"not {check}"
    assert judge(failing, source("one")).problem == ""
