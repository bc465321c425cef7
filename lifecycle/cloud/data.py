"""A data set in S3: python -m lifecycle.cloud.data push|pull|verify FOLDER s3://BUCKET/PREFIX, pack TABLE FOLDER

push sends what is not there yet, pull fetches what differs, verify compares both ends with the manifest. S3 computes
the SHA-256 of what it gets; we compute ours. Large files go in parts, side by side. A command that was killed goes on
where it was. The manifest is written last: until then whoever pulls gets the version before. Nothing is deleted without
--delete; older versions can be pulled by --version as long as the bucket keeps them (the stack's does). pack writes
the images of a dataset.csv into tars first, which training reads from S3 as a stream.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from training.shards import pack
from utils.aws import coded
from utils.errors import BadSettings, CopyDiffers, DatasetMissing
from utils.exits import Exit, command, command_parser
from utils.persistence import sha256_file
from utils.places import S3, Bucket, Folder, place

T = TypeVar("T")
R = TypeVar("R")

MANIFESTS = ".manifests/"
PARTS = ".imgv-parts"  # beside a file that is being pulled
PART = 64 * 2**20  # bytes; S3 takes 10,000 parts of a file, so up to 640 GB


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a manifest."""

    size: int
    sha256: str  # hex, of the whole file
    checksum: str  # base64, as S3 computes it: of a file in parts, the hash of their hashes
    version: str = ""  # of the object; empty where the bucket keeps none


Files = dict[str, Entry]  # by name


@dataclass(frozen=True, slots=True)
class Options:
    jobs: int = 8
    delete: bool = False
    kms: str = ""  # key; empty: as the bucket says, which S3 always encrypts
    part: int = PART

    @property
    def encryption(self) -> dict[str, str]:
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms} if self.kms else {}


# --- manifests


def manifests(bucket: Bucket) -> list[str]:
    """Names of all versions, oldest first."""
    return [name.removeprefix(MANIFESTS).removesuffix(".json") for name, _ in bucket.names(MANIFESTS)]


def read_manifest(bucket: Bucket, version: str = "") -> Files:
    """
    Args:
        version: its name; empty: the newest.

    Raises:
        DatasetMissing: there is none.
    """
    versions = manifests(bucket)
    if not versions or (version and version not in versions):
        known = f"there are {', '.join(versions)}" if versions else "push one first"
        raise DatasetMissing(f"{bucket.address} holds no such version of a data set; {known}")
    said = json.loads(bucket.read(f"{MANIFESTS}{version or versions[-1]}.json"))
    return {_checked(name): Entry(**entry) for name, entry in said["files"].items()}


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise CopyDiffers(f"the manifest has {name!r}, which is no name below a folder; push the data set again")
    return name


def _write_manifest(bucket: Bucket, files: Files) -> str:
    """Of a new version; the files of the newest give no other one."""
    versions = manifests(bucket)
    if versions and read_manifest(bucket) == files:
        return versions[-1]
    listed = {name: asdict(entry) for name, entry in sorted(files.items())}
    made = datetime.now(UTC).isoformat(timespec="seconds")
    digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:8]
    number = int(versions[-1].partition("-")[0]) + 1 if versions else 1
    name = f"{number:06}-{digest}"
    bucket.write(f"{MANIFESTS}{name}.json", json.dumps({"made": made, "files": listed}, indent=1).encode())
    return name


# --- push


def push(folder: Path, bucket: Bucket, options: Options) -> str:
    """Send what is not there, and write a manifest of all.

    Returns:
        The version's name.

    Raises:
        DatasetMissing: nothing lies in the folder.
    """
    names = [name for name, _ in Folder(folder).names() if PARTS not in name]
    if not names:
        raise DatasetMissing(f"no file lies below {folder}; name the folder of the data set")
    known = read_manifest(bucket) if manifests(bucket) else {}
    there = {name: size for name, size in bucket.names() if not name.startswith(MANIFESTS)}
    sent: list[str] = []

    def send(name: str) -> Entry:
        entry = _entry(folder / name, options.part)
        before = known.get(name)
        if there.get(name) == entry.size:
            if before and before.sha256 == entry.sha256:
                return before
            version = _version_there(bucket, name, entry)
            if version is not None:
                return replace(entry, version=version)
        sent.append(name)
        return replace(entry, version=_send(folder / name, bucket, name, entry, options))

    local = dict(zip(names, _each(send, names, options.jobs, "pushing"), strict=True))
    gone = sorted(set(there) - set(local)) if options.delete else []
    version = _write_manifest(bucket, local if options.delete else {**known, **local})
    for name in gone:
        bucket.remove(name)
    said = f", {len(gone)} deleted" if options.delete else ""
    print(f"pushed {len(sent)} of {len(names)} files{said}; {bucket.address} is at version {version}")
    return version


def _entry(path: Path, part: int) -> Entry:
    """What S3 will say of a file, and its hash, in one reading."""
    whole = hashlib.sha256()
    parts: list[bytes] = []
    with path.open("rb") as file:
        while (data := file.read(part)) or not parts:
            whole.update(data)
            parts.append(hashlib.sha256(data).digest())
    checksum = parts[0] if len(parts) == 1 else hashlib.sha256(b"".join(parts)).digest()
    return Entry(path.stat().st_size, whole.hexdigest(), _base64(checksum))


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _version_there(bucket: Bucket, name: str, entry: Entry) -> str | None:
    """Of an object that is this very file; None: it is another one."""
    head = _head(bucket, name)
    return head.get("VersionId", "") if head and _checksum(head) == entry.checksum else None


def _checksum(head: Mapping[str, Any]) -> str:
    """As S3 stored it, without the number of parts behind it."""
    return str(head.get("ChecksumSHA256", "")).partition("-")[0]


def _head(bucket: Bucket, name: str, version: str = "") -> Mapping[str, Any] | None:
    one = {"VersionId": version} if version else {}
    with coded(f"{bucket.address}/{name}"):
        try:
            head: Mapping[str, Any] = bucket.client.head_object(
                Bucket=bucket.bucket, Key=bucket.key(name), ChecksumMode="ENABLED", **one
            )
        except bucket.client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
    return head


def _send(path: Path, bucket: Bucket, name: str, entry: Entry, options: Options) -> str:
    """
    Returns:
        The version that S3 gave it; empty where it keeps none.
    """
    where = {"Bucket": bucket.bucket, "Key": bucket.key(name)}
    with coded(f"{bucket.address}/{name}"):
        if entry.size <= options.part:
            answer = bucket.client.put_object(
                **where,
                Body=path.read_bytes(),
                ChecksumAlgorithm="SHA256",
                ChecksumSHA256=entry.checksum,
                **options.encryption,
            )
        else:
            answer = _send_parts(path, bucket.client, where, options)
    return str(answer.get("VersionId", ""))


def _send_parts(path: Path, s3: Any, where: Mapping[str, str], options: Options) -> Mapping[str, Any]:
    """In parts, of which a killed push left some."""
    upload = _begun(s3, where)
    if upload is None:
        upload = s3.create_multipart_upload(**where, ChecksumAlgorithm="SHA256", **options.encryption)["UploadId"]
    pages = s3.get_paginator("list_parts").paginate(**where, UploadId=upload)
    there = {each["PartNumber"]: each for page in pages for each in page.get("Parts", ())}

    def send(number: int) -> Mapping[str, object]:
        with path.open("rb") as file:
            file.seek((number - 1) * options.part)
            data = file.read(options.part)
        checksum = _base64(hashlib.sha256(data).digest())
        known = there.get(number)
        if not known or known.get("ChecksumSHA256", checksum) != checksum or known.get("Size", 0) != len(data):
            known = s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=checksum)
        return {"PartNumber": number, "ETag": known["ETag"], "ChecksumSHA256": checksum}

    numbers = range(1, -(-path.stat().st_size // options.part) + 1)
    with ThreadPoolExecutor(options.jobs) as pool:
        parts = list(pool.map(send, numbers))
    answer: Mapping[str, Any] = s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    return answer


def _begun(s3: Any, where: Mapping[str, str]) -> str | None:
    """The newest upload of this object that was not completed."""
    pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=where["Bucket"], Prefix=where["Key"])
    uploads = [each for page in pages for each in page.get("Uploads", ()) if each["Key"] == where["Key"]]
    return max(uploads, key=lambda each: each["Initiated"])["UploadId"] if uploads else None


# --- pull


def pull(bucket: Bucket, folder: Path, options: Options, version: str = "") -> None:
    """Fetch what differs from the manifest.

    Raises:
        CopyDiffers: what S3 has is not what the manifest says; that file was not written.
    """
    files = read_manifest(bucket, version)
    fetched: list[str] = []

    def fetch(item: tuple[str, Entry]) -> None:
        name, entry = item
        path = folder / name
        if not (path.is_file() and path.stat().st_size == entry.size and sha256_file(path) == entry.sha256):
            _fetch(bucket, name, entry, path, options)
            fetched.append(name)

    list(_each(fetch, files.items(), options.jobs, "pulling"))
    gone = [name for name, _ in Folder(folder).names() if name not in files] if options.delete else []
    for name in gone:
        (folder / name).unlink()
    said = f", {len(gone)} deleted" if options.delete else ""
    print(f"pulled {len(fetched)} of {len(files)} files{said} into {folder}")


def _fetch(bucket: Bucket, name: str, entry: Entry, path: Path, options: Options) -> None:
    """By parts, side by side; those of a killed pull are kept."""
    scratch = path.with_name(f"{path.name}{PARTS}")
    scratch.mkdir(parents=True, exist_ok=True)
    one = {"VersionId": entry.version} if entry.version else {}

    def fetch(number: int) -> Path:
        start = number * options.part
        size = min(options.part, entry.size - start)
        part = scratch / f"{entry.sha256[:12]}-{options.part}-{number}"
        if size > 0 and not (part.exists() and part.stat().st_size == size):
            with coded(f"{bucket.address}/{name}"):
                answer = bucket.client.get_object(
                    Bucket=bucket.bucket, Key=bucket.key(name), Range=f"bytes={start}-{start + size - 1}", **one
                )
                Folder(scratch).write(part.name, answer["Body"].read())
        return part

    with ThreadPoolExecutor(options.jobs) as pool:
        parts = list(pool.map(fetch, range(-(-entry.size // options.part))))
    whole = scratch / "whole"
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as read:
                shutil.copyfileobj(read, file)
    matches = sha256_file(whole) == entry.sha256
    if matches:
        whole.replace(path)
    shutil.rmtree(scratch)
    if not matches:
        raise CopyDiffers(f"{bucket.address}/{name} is not the file of the manifest; push it again")


# --- verify


def verify(folder: Path, bucket: Bucket, options: Options, version: str = "") -> None:
    """Compare both ends with the manifest.

    Raises:
        CopyDiffers: names what differs.
    """
    files = read_manifest(bucket, version)

    def compare(item: tuple[str, Entry]) -> str:
        name, entry = item
        head = _head(bucket, name, entry.version)
        if head is None or _checksum(head) != entry.checksum or head["ContentLength"] != entry.size:
            return f"{name} in S3"
        if not (folder / name).is_file() or sha256_file(folder / name) != entry.sha256:
            return f"{name} in {folder}"
        return ""

    wrong = [said for said in _each(compare, files.items(), options.jobs, "verifying") if said]
    if wrong:
        shown = f"{', '.join(wrong[:5])}{', …' if len(wrong) > 5 else ''}"
        raise CopyDiffers(
            f"{len(wrong)} of {len(files)} files are not those of the manifest: {shown}; push or pull again"
        )
    print(f"{len(files)} files are the same in {folder} and {bucket.address}")


def _each(do: Callable[[T], R], items: Iterable[T], jobs: int, what: str) -> list[R]:
    """Side by side, in order. The first failure ends it; what was begun is let end."""
    things = list(items)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(do, each) for each in things]
        try:
            return [
                each.result()
                for each in track(futures, what, console=Console(stderr=True), disable=not sys.stderr.isatty())
            ]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    if arguments.command == "pack":
        shards = pack(arguments.table, arguments.folder, arguments.mebibytes * 2**20)
        print(f"packed {arguments.table} into {shards} tars in {arguments.folder}; next: push that")
        return Exit.DONE
    found = place(arguments.address)
    if not isinstance(found, Bucket):
        raise BadSettings(f"{arguments.address}: give an address {S3}BUCKET/PREFIX")
    options = Options(arguments.jobs, getattr(arguments, "delete", False), getattr(arguments, "kms", ""))
    match arguments.command:
        case "push":
            push(arguments.folder, found, options)
        case "pull":
            pull(found, arguments.folder, options, arguments.version)
        case "verify":
            verify(arguments.folder, found, options, arguments.version)
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.cloud.data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="images of a table into tars, to be pushed")
    packing.add_argument("table", type=Path, help="dataset.csv, its images below its folder")
    packing.add_argument("folder", type=Path, help="for the tars and the table with their places")
    packing.add_argument("--mebibytes", type=int, default=256, help="of a tar, about (default: %(default)s)")
    helps = {"push": "folder to S3", "pull": "S3 to folder", "verify": "compare both with the manifest"}
    for name, said in helps.items():
        each = commands.add_parser(name, help=said)
        each.add_argument("folder", type=Path)
        each.add_argument("address", help=f"{S3}BUCKET/PREFIX")
        each.add_argument("--jobs", type=int, default=8, help="transfers side by side (default: %(default)s)")
        if name == "push":
            each.add_argument(
                "--kms", default="", metavar="KEY", help="encrypt with this key (default: as the bucket says)"
            )
        else:
            each.add_argument("--version", default="", help="of the manifest (default: the newest)")
        if name != "verify":
            each.add_argument("--delete", action="store_true", help="delete at the other end what is not here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
