"""A stream entry as a job. Knows the wire format, and opens nothing: neither files nor connections.

    source | url | image_url    an http(s) URL; `source` and `path` also name a file below an opened folder
    image | image_base64        the file itself, with `filename` for the verdict
    job_id profile callback_url artifacts stability deadline_ms traceparent caller      all optional

The priority is the stream that a job is added to. Unknown fields are ignored, so that producers may add their own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ingress.sources import from_base64, is_url, too_many_bytes
from utils.errors import BadMessage, DeadlinePassed, PathRefused, VerifyError
from utils.verdict_json import dump, error_dict
from worker.stream import PRIORITIES, Ending, Entry

MOST_FIELDS = 64  # of one entry, repeated ones included
_JOB_ID = re.compile(rb"[\x21-\x7e]{1,200}")  # part of a key and of an HTTP header: printable ASCII, no space
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*")  # W3C Trace Context, level 1
_LONGEST_TEXT = 8192  # bytes of a URL or a path; what browsers and servers accept
_LONGEST_DEADLINE_MS = 30 * 86_400_000
_IMAGE_FIELDS = frozenset((b"source", b"url", b"image_url", b"path", b"image", b"image_base64"))
_TRUE, _FALSE = (b"1", b"true", b"yes"), (b"", b"0", b"false", b"no")

# Fields that a retry adds. A producer that sets them only shortens its own job's life.
ATTEMPT, QUEUED_MS = "attempt", "queued_ms"
UNREADABLE = b"unreadable"  # what lua/promote.lua found wrong with an entry that it brings back


@dataclass(frozen=True, slots=True)
class Rules:
    """What jobs may ask of this worker."""

    profiles: tuple[str, ...]  # the first is the default
    max_bytes: int
    roots: tuple[Path, ...] = ()  # resolved
    callbacks: bool = False
    artifacts: bool = False


class Job(NamedTuple):
    """One image to judge. Exactly one of ``url``, ``path`` and ``raw`` is there."""

    entry: Entry
    job_id: str
    source: str  # for people
    profile: str
    url: str | None = None
    path: Path | None = None
    root: Path | None = None  # the opened folder that holds ``path``
    raw: bytes | None = None
    callback_url: str = ""
    artifacts: bool = False
    stability: bool = False
    deadline_ms: int | None = None  # by the server's clock
    traceparent: str = ""
    caller: str = ""


class ImageJobs:
    """Jobs that ask for a verdict; see worker.loop.Kind."""

    buries_input_errors = False

    def __init__(self, rules: Rules) -> None:
        self._rules = self._given = rules

    def prefer(self, profile: str | None) -> None:
        """Let this be the profile of jobs that name none; None, or one that does not run here: the first again."""
        known = self._given.profiles
        first = profile if profile in known else known[0]
        self._rules = replace(self._given, profiles=tuple(dict.fromkeys((first, *known))))

    def parse(self, entry: Entry) -> Job:
        job = parse(entry, self._rules)
        check_deadline(job)
        return job

    def done(self, job: Job, outcome: str | bytes) -> Ending:
        return Ending(job.entry, job.job_id, "ok", outcome, job.callback_url, job.traceparent)

    def failed(self, entry: Entry, error: VerifyError) -> Ending:
        job_id = job_id_of(entry)
        body = dump(error_dict(_shown(entry), error, job_id))
        url = entry.fields.get(b"callback_url", b"")[:_LONGEST_TEXT].decode("utf-8", "replace")
        usable = self._rules.callbacks and is_url(url) and url.isprintable()
        return Ending(entry, job_id, "error", body, url if usable else "", traceparent_of(entry))


def check_deadline(job: Job) -> None:
    """
    Raises:
        DeadlinePassed: nobody waits for the answer any more. Server and worker are assumed to agree on the time.
    """
    if job.deadline_ms is not None and time.time() * 1000 > job.deadline_ms:
        raise DeadlinePassed("the job's deadline_ms passed before it was judged; allow more time or add workers")


def check_size(entry: Entry) -> None:
    """
    Raises:
        BadMessage: more than ``MOST_FIELDS`` fields.
    """
    count = max(entry.pairs, len(entry.fields))
    if count > MOST_FIELDS:
        raise BadMessage(f"{count} fields; a message has at most {MOST_FIELDS}")


def _shown(entry: Entry) -> str:
    """A name for the answer when the entry may be unreadable."""
    for name in (b"source", b"url", b"image_url", b"path", b"filename"):
        if name in entry.fields:
            return entry.fields[name][:500].decode("utf-8", "replace")
    return ""


def job_id_of(entry: Entry) -> str:
    """The producer's, when it is usable; else the entry's id, with the priority where ids could meet."""
    given = entry.fields.get(b"job_id")
    if given is not None and _JOB_ID.fullmatch(given):
        return given.decode()
    priority = PRIORITIES[entry.stream - 1]
    return entry.id if priority == "normal" else f"{entry.id}-{priority}"


def attempt_of(entry: Entry) -> int:
    """Which attempt this delivery is: those of earlier lives, which a retry wrote down, and the server's count."""
    return _number(entry.fields, ATTEMPT, 1_000_000) + entry.deliveries


def queued_ms_of(entry: Entry) -> int:
    return _number(entry.fields, QUEUED_MS, 1 << 53) or int(entry.id.partition("-")[0])


def traceparent_of(entry: Entry) -> str:
    given = entry.fields.get(b"traceparent", b"")
    return given.decode("ascii", "replace") if len(given) < 256 and _TRACEPARENT.fullmatch(given) else ""


def log_fields(entry: Entry) -> dict[str, str]:
    """What a log record about an entry carries."""
    trace = traceparent_of(entry)
    return {"job_id": job_id_of(entry)} | ({"trace_id": trace.split("-")[1]} if trace else {})


def parse(entry: Entry, rules: Rules) -> Job:
    """
    Raises:
        BadMessage: not a job; the text names the field.
        PathRefused: a file that jobs may not name.
        TooManyBytes: the image in the entry is too large.
    """
    check_size(entry)
    fields, job_id = entry.fields, job_id_of(entry)
    if b"job_id" in fields and fields[b"job_id"] != job_id.encode():
        raise BadMessage("job_id: give 1 to 200 printable ASCII characters without spaces")
    source, url, path, raw = _image(fields, rules)
    return Job(
        entry,
        job_id,
        source,
        _profile(fields, rules) if b"profile" in fields else rules.profiles[0],
        url,
        path,
        next((root for root in rules.roots if path and path.is_relative_to(root)), None),
        raw,
        _callback_url(fields, rules) if b"callback_url" in fields else "",
        _artifacts(fields, rules) if b"artifacts" in fields else False,
        _yes(fields, "stability") if b"stability" in fields else False,
        queued_ms_of(entry) + _deadline(fields) if b"deadline_ms" in fields else None,
        traceparent_of(entry) if b"traceparent" in fields else "",
        _text(fields, "caller"),
    )


def _image(fields: Mapping[bytes, bytes], rules: Rules) -> tuple[str, str | None, Path | None, bytes | None]:
    """Source, URL, path and bytes; one of the last three."""
    named = _IMAGE_FIELDS & fields.keys()
    if len(named) != 1:
        got = b", ".join(sorted(named)).decode() or "none"
        raise BadMessage(f"give one of source, url, image_url, path, image, image_base64; got {got}")
    name = next(iter(named)).decode()
    if name in ("image", "image_base64"):
        raw = fields[name.encode()]
        if name == "image_base64":
            raw = _decoded(raw, rules.max_bytes)
        if len(raw) > rules.max_bytes:
            raise too_many_bytes(rules.max_bytes)
        return _file_name(fields) or name, None, None, raw
    source = _text(fields, name)
    if name != "path" and is_url(source):
        return source, source, None, None
    if name in ("url", "image_url"):
        raise BadMessage(f"{name}: not an http or https URL")
    return source, None, _below_roots(source, rules.roots), None


def _file_name(fields: Mapping[bytes, bytes]) -> str:
    """A name for people. Systems name files in bytes of any encoding, which is no reason to refuse the image."""
    text = fields.get(b"filename", b"")[:_LONGEST_TEXT].decode("utf-8", "replace")
    return "".join(character for character in text if character.isprintable())


def _profile(fields: Mapping[bytes, bytes], rules: Rules) -> str:
    profile = _text(fields, "profile") or rules.profiles[0]
    if profile not in rules.profiles:
        raise BadMessage(f"profile {profile!r} does not run here; this worker has {', '.join(rules.profiles)}")
    return profile


def _decoded(encoded: bytes, max_bytes: int) -> bytes:
    try:
        return from_base64(encoded, max_bytes)
    except ValueError as error:
        raise BadMessage("image_base64: not base64 (RFC 4648, without line breaks)") from error


def _below_roots(source: str, roots: tuple[Path, ...]) -> Path:
    """The file behind all links. The same answer for every refusal, so that nobody can ask which files exist."""
    refused = PathRefused("the path is not below a folder opened to jobs (IMGV_QUEUE_PATHS); send the file's bytes")
    if not roots:
        raise refused
    try:
        resolved = Path(source).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise refused from error
    if not any(resolved.is_relative_to(root) for root in roots):
        raise refused
    return resolved


def _callback_url(fields: Mapping[bytes, bytes], rules: Rules) -> str:
    url = _text(fields, "callback_url")
    if url and not is_url(url):
        raise BadMessage("callback_url: not an http or https URL")
    if url and not rules.callbacks:
        raise BadMessage("callback_url: this worker sends no callbacks; set IMGV_CALLBACK_SECRET")
    return url


def _artifacts(fields: Mapping[bytes, bytes], rules: Rules) -> bool:
    wanted = _yes(fields, "artifacts")
    if wanted and not rules.artifacts:
        raise BadMessage("artifacts: this worker keeps none; set IMGV_QUEUE_ARTIFACTS_DIR")
    return wanted


def _yes(fields: Mapping[bytes, bytes], name: str) -> bool:
    given = fields[name.encode()].lower()
    if given not in _TRUE and given not in _FALSE:
        raise BadMessage(f"{name}: give 1 or 0")
    return given in _TRUE


def _deadline(fields: Mapping[bytes, bytes]) -> int:
    milliseconds = _number(fields, "deadline_ms", _LONGEST_DEADLINE_MS)
    if not milliseconds:
        raise BadMessage(f"deadline_ms: give milliseconds from the XADD on, 1 to {_LONGEST_DEADLINE_MS}")
    return milliseconds


def _text(fields: Mapping[bytes, bytes], name: str) -> str:
    value = fields.get(name.encode(), b"")
    if len(value) > _LONGEST_TEXT:
        raise BadMessage(f"{name}: longer than {_LONGEST_TEXT} bytes")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise BadMessage(f"{name}: not UTF-8") from error
    if not text.isprintable():
        raise BadMessage(f"{name}: holds control characters")
    return text


def _number(fields: Mapping[bytes, bytes], name: str, most: int) -> int:
    """A whole number in 0..most, else 0."""
    value = fields.get(name.encode(), b"")
    return int(value) if value.isdigit() and len(value) < 20 and int(value) <= most else 0
