"""The catalogue of sources keeps its rules: what it says, how it is split, and what it may not hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from training import splits
from training.build_dataset import CAP, CHECKS
from training.sources import (
    CATALOGUE,
    HASH_DIGITS,
    SPLITS,
    Source,
    read_catalogue,
    read_file,
    read_hashes,
    vocabulary,
    write_file,
    write_hashes,
)
from training.splits import SHARES, draw
from utils.errors import TableError
from utils.exits import Exit

ROOT = Path(__file__).parents[2]
# Facts about images that others judge by must not get into training; whoever keeps such a list names its checker here.
RESERVED = Path(os.environ.get("IMGV_RESERVED_CHECK", ROOT.parent / "shared" / "data" / "more" / "allowed.py"))
HASHES_MB = 2

SOURCE = Source(
    id="a-source",
    address="github:somebody/pictures",
    version="0" * 40,
    include="^images/",
    exclude="",
    require="",
    history="",
    label="ai",
    family="flux",
    generator="FLUX.1 dev",
    kind="photo",
    content="photo",
    subject="people",
    group="somebody",
    evidence="README",
    grade="stated",
    licence="none stated",
    images="3",
    split="train",
    notes="",
)


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_catalogue()


# --- what is committed


def test_every_row_keeps_the_rules_and_every_id_is_given_once(sources: list[Source]) -> None:
    assert len({source.id for source in sources}) == len(sources)  # reading checks every row, see below


def test_every_source_has_a_split_and_no_group_has_two(sources: list[Source]) -> None:
    assert {source.split for source in sources} == set(SPLITS)
    drawn = defaultdict(set)
    for source in sources:
        drawn[source.group].add(source.split)
    assert [group for group, found in drawn.items() if len(found) > 1] == []


def test_one_repository_is_in_one_split(sources: list[Source]) -> None:
    drawn = defaultdict(set)
    for source in sources:
        drawn[source.address.lower()].add(source.split)
    assert [address for address, found in drawn.items() if len(found) > 1] == []


def test_every_split_has_its_share_of_each_label_within_a_twentieth(sources: list[Source]) -> None:
    for label in ("real", "ai"):
        counts = Counter(source.split for source in sources if source.label == label)
        for split, share in SHARES.items():
            assert counts[split] / counts.total() == pytest.approx(share, abs=0.05), (label, split)


@pytest.mark.parametrize("split", SPLITS)
def test_both_labels_have_photographs_and_art_in_every_split(sources: list[Source], split: str) -> None:
    counts = Counter((source.label, source.content) for source in sources if source.split == split)
    assert min(counts[label, content] for label in ("real", "ai") for content in ("photo", "art")) >= 3


def test_neither_label_is_more_than_twice_the_other_in_photographs(sources: list[Source]) -> None:
    counts = Counter(source.label for source in sources if source.content == "photo")
    assert max(counts.values()) <= 2 * min(counts.values())


def test_only_a_real_source_may_be_known_by_its_look_or_date_without_a_note(sources: list[Source]) -> None:
    assert [source.id for source in sources if source.label == "ai" and source.grade == "dated"] == []
    assert [each.id for each in sources if each.label == "ai" and each.grade == "evident" and not each.notes] == []


def test_the_hashes_agree_with_the_counts(sources: list[Source]) -> None:
    hashes = read_hashes()
    assert {source.id: int(source.images) for source in sources} == {name: len(each) for name, each in hashes.items()}
    everything = [each for found in hashes.values() for each in found]
    assert len(set(everything)) == len(everything)
    assert {len(each) for each in everything} == {HASH_DIGITS}
    assert max(len(each) for each in hashes.values()) <= CAP


def test_the_hash_files_are_compact() -> None:
    assert sum(path.stat().st_size for path in (CATALOGUE / "hashes").iterdir()) < HASHES_MB * 1e6


def test_every_check_that_a_source_may_require_exists() -> None:
    assert set(vocabulary()["require"]) == set(CHECKS)


def test_no_source_is_reserved_for_judging(sources: list[Source]) -> None:
    if not RESERVED.is_file():
        pytest.skip("the list of reserved repositories is not at hand: IMGV_RESERVED_CHECK names its checker")
    names = sorted({source.name for source in sources if source.place == "github"})
    done = subprocess.run([sys.executable, RESERVED, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- what a row may not say


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "fake"}, "label is 'fake', not one of real, ai"),
        ({"family": "fluks"}, "family is 'fluks'"),
        ({"label": "real"}, "family is 'flux', not one of "),
        ({"kind": ""}, "kind is ''"),
        ({"require": "camera sharp"}, "require is 'sharp'"),
        ({"address": "gitlab:a/b"}, "place of the address is 'gitlab'"),
        ({"split": "test"}, "split is 'test'"),
        ({"licence": ""}, "licence is empty"),
        ({"evidence": ""}, "evidence is empty"),
        ({"grade": "sure"}, "grade is 'sure'"),
        ({"include": "("}, "no regular expression"),
        ({"id": "A source"}, "the id must be"),
        ({"images": "many"}, "images is no number"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_name(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    write_file(tmp_path / "ai.csv", [replace(SOURCE, **changes)])
    with pytest.raises(TableError) as refused:
        read_catalogue(tmp_path)
    assert "ai.csv, line 2" in str(refused.value)
    assert message in str(refused.value)


def test_an_id_may_be_given_once(tmp_path: Path) -> None:
    write_file(tmp_path / "a.csv", [SOURCE])
    write_file(tmp_path / "b.csv", [SOURCE])
    with pytest.raises(TableError, match="a-source are given more than once"):
        read_catalogue(tmp_path)


def test_another_header_and_a_short_row_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ai.csv"
    path.write_text("id,label\n")
    with pytest.raises(TableError, match="the columns must be id,address"):
        read_file(path)
    write_file(path, [SOURCE])
    path.write_text(path.read_text() + "only,two\n")
    with pytest.raises(TableError, match="line 3: another number of cells"):
        read_file(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_file(tmp_path / "ai.csv", [SOURCE])
    assert read_catalogue(tmp_path) == [SOURCE]
    write_hashes(tmp_path / "hashes" / "ai.txt", {"b": ["2" * 64, "1" * 64], "a": []})
    assert read_hashes(tmp_path) == {"a": (), "b": ("1" * HASH_DIGITS, "2" * HASH_DIGITS)}


# --- splits


def many(count: int, **changes: str) -> list[Source]:
    return [
        replace(SOURCE, id=f"s{i}-{changes['label']}", group=f"g{i}-{changes['label']}", split="", **changes)
        for i in range(count)
    ]


def test_splits_are_drawn_in_their_shares_within_every_stratum() -> None:
    sources = many(60, label="real", family="") + many(40, label="ai")
    drawn = draw(sources)
    for label in ("real", "ai"):
        counts = Counter(drawn[source.group] for source in sources if source.label == label)
        for split, share in SHARES.items():
            assert counts[split] == pytest.approx(share * counts.total(), abs=1)


def test_a_drawn_split_is_kept_and_new_sources_fill_what_is_missing() -> None:
    sources = [replace(source, split="train") for source in many(10, label="ai")]
    more = [replace(source, id=f"n-{source.id}", group=f"n-{source.group}") for source in many(10, label="ai")]
    drawn = draw(sources + more)
    assert {drawn[source.group] for source in sources} == {"train"}
    assert Counter(drawn[source.group] for source in more) == {"val": 6, "fusion": 4}


def test_a_group_goes_to_one_split_and_may_not_be_in_two() -> None:
    pair = [replace(SOURCE, split=""), replace(SOURCE, id="b", label="real", family="", split="")]
    assert len(draw(pair)) == 1
    with pytest.raises(TableError, match="the group somebody is in fusion and val"):
        draw([replace(SOURCE, split="val"), replace(SOURCE, id="b", split="fusion")])


def test_the_command_writes_the_splits_into_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_file(tmp_path / "ai.csv", many(10, label="ai"))
    assert splits.main(["--catalogue", str(tmp_path)]) == 0
    assert Counter(source.split for source in read_catalogue(tmp_path)) == {"train": 5, "val": 3, "fusion": 2}
    assert "5 groups in train" in capsys.readouterr().out
    assert splits.main(["--catalogue", str(tmp_path / "absent")]) == Exit.FAILED
