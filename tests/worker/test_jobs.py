"""The wire format: what is understood, and what is refused by name."""

import base64

import pytest

from utils.errors import BadMessage, DeadlinePassed, PathRefused, TooManyBytes
from worker.jobs import ImageJobs, Rules, attempt_of, job_id_of, parse
from worker.stream import Entry

RULES = Rules(("embedded", "full"), max_bytes=1000, callbacks=True, artifacts=True)
FRESH = "99999999999999-0"


def entry(stream=2, entry_id=FRESH, deliveries=1, **fields):
    raw = {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in fields.items()}
    return Entry(stream, entry_id, raw, deliveries, sum(map(len, (*raw, *raw.values()))), len(raw))


@pytest.mark.parametrize("name", ["source", "url", "image_url"])
def test_a_url_may_have_three_names(name):
    job = parse(entry(**{name: "https://host.org/a.jpg?x=1"}), RULES)
    assert job.url == job.source == "https://host.org/a.jpg?x=1"


def test_bytes_travel_as_they_are_or_as_base64():
    assert parse(entry(image=b"\xff\xd8", filename="a.jpg"), RULES).raw == b"\xff\xd8"
    job = parse(entry(image_base64=base64.b64encode(b"\xff\xd8")), RULES)
    assert (job.raw, job.source) == (b"\xff\xd8", "image_base64")


def test_base64_may_stand_in_a_data_uri():
    job = parse(entry(image_base64=b"data:image/jpeg;charset=x;base64," + base64.b64encode(b"\xff\xd8")), RULES)
    assert job.raw == b"\xff\xd8"


@pytest.mark.parametrize(
    ("name", "shown"), [(b"caf\xe9.jpg", "caf\ufffd.jpg"), (b"a\x1b[2J.jpg", "a[2J.jpg"), (b"\1", "image")]
)
def test_a_file_name_of_any_encoding_is_no_reason_to_refuse_the_image(name, shown):
    assert parse(entry(image=b"\xff\xd8", filename=name), RULES).source == shown


def test_every_option_is_read():
    fields = {
        "profile": "full",
        "callback_url": "https://host.org/hook",
        "artifacts": "1",
        "deadline_ms": "5000",
        "stability": "1",
    }
    trace = "00-" + "0" * 31 + "1-" + "0" * 15 + "1-01"
    job = parse(entry(image="x", job_id="mine", traceparent=trace, unknown="is ignored", **fields), RULES)
    assert (job.job_id, job.profile, job.callback_url) == ("mine", "full", "https://host.org/hook")
    assert (job.artifacts, job.deadline_ms, job.traceparent) == (True, 99999999999999 + 5000, trace)
    assert job.stability


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "give one of"),
        ({"image": "x", "url": "https://host.org"}, "give one of"),
        ({"url": "ftp://host.org/a"}, "http"),
        ({"url": "/etc/passwd"}, "http"),
        ({"image": "x", "job_id": "two words"}, "job_id"),
        ({"image": "x", "job_id": ""}, "job_id"),
        ({"image": "x", "job_id": "x" * 201}, "job_id"),
        ({"image": "x", "profile": "huge"}, "profile"),
        ({"image": "x", "callback_url": "file:///etc/passwd"}, "callback_url"),
        ({"image": "x", "artifacts": "maybe"}, "artifacts"),
        ({"image": "x", "stability": "perhaps"}, "stability"),
        ({"image": "x", "deadline_ms": "-1"}, "deadline_ms"),
        ({"image": "x", "deadline_ms": "9" * 30}, "deadline_ms"),
        ({"image": "x", "deadline_ms": "²"}, "deadline_ms"),
        ({"image_base64": "not base64!"}, "image_base64"),
        ({"url": b"https://host.org/\xff"}, "UTF-8"),
        ({"url": "https://host.org/\x1b[2J"}, "control"),
        ({"url": "https://host.org/" + "a" * 9000}, "longer"),
        ({f"field{number}": "x" for number in range(70)}, "fields"),
    ],
)
def test_what_is_not_a_job_is_refused_by_name(fields, word):
    with pytest.raises(BadMessage, match=word):
        parse(entry(**fields), RULES)


def test_options_that_the_operator_did_not_allow_are_refused():
    closed = Rules(("embedded",), 1000)
    for fields in ({"callback_url": "https://host.org"}, {"artifacts": "1"}, {"profile": "full"}):
        with pytest.raises(BadMessage):
            parse(entry(image="x", **fields), closed)


def test_an_image_over_the_limit_is_refused_before_it_is_decoded():
    for fields in ({"image": b"x" * 1001}, {"image_base64": base64.b64encode(b"x" * 1001)}):
        with pytest.raises(TooManyBytes):
            parse(entry(**fields), RULES)


def test_a_path_job_is_refused_unless_its_folder_was_opened(tmp_path):
    inside = tmp_path / "open" / "a.jpg"
    inside.parent.mkdir()
    inside.write_bytes(b"x")
    (tmp_path / "open" / "link.jpg").symlink_to("/etc/passwd")
    rules = Rules(("embedded",), 1000, roots=((tmp_path / "open").resolve(),))
    assert parse(entry(path=str(inside)), rules).path == inside.resolve()
    assert parse(entry(source=str(inside)), rules).path == inside.resolve()
    for path in (
        "/etc/passwd",
        f"{tmp_path}/open/../b",
        f"{tmp_path}/open/link.jpg",
        f"{tmp_path}/opened",
        "a",
        "",
        "~",
    ):
        with pytest.raises(PathRefused):
            parse(entry(path=path), rules)
    with pytest.raises(PathRefused):
        parse(entry(path=str(inside)), RULES)


def test_a_job_id_is_the_producers_or_the_entrys():
    assert job_id_of(entry(job_id="mine")) == "mine"
    assert job_id_of(entry(job_id=b"\xff\n")) == FRESH
    assert job_id_of(entry(stream=1)) == f"{FRESH}-high"


def test_attempts_of_earlier_lives_count():
    assert attempt_of(entry(attempt="2", deliveries=3)) == 5
    assert attempt_of(entry(attempt="many")) == 1


def test_a_deadline_counts_from_the_first_xadd():
    job = entry(entry_id=FRESH, image="x", deadline_ms="1000", queued_ms="1700000000000")
    with pytest.raises(DeadlinePassed):
        ImageJobs(RULES).parse(job)


def test_an_unreadable_entry_still_gets_a_readable_answer():
    ending = ImageJobs(RULES).failed(entry(url=b"\xff\x00", callback_url="javascript:alert(1)"), BadMessage("no"))
    assert ending.status == "error"
    assert ending.callback_url == ""
    assert "\ufffd" in ending.body
