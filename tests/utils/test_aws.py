"""AWS's failures as ours, each with its next step; files below an address, in a folder and in S3 alike."""

from __future__ import annotations

import pytest

from tests.clouds import ACCOUNT, point_to, refusing
from utils import aws as door
from utils.errors import BadSettings, FileMissing, VerifyError
from utils.places import place

XML = "<Error><Code>{}</Code><Message>said by AWS</Message></Error>"


def a_bucket(name: str = "data") -> str:
    door.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return name


@pytest.mark.parametrize(
    ("code", "ours", "step"),
    [
        ("InvalidAccessKeyId", "cloud_credentials", "aws configure"),
        ("SignatureDoesNotMatch", "cloud_credentials", "aws configure"),
        ("ExpiredToken", "cloud_token_expired", "sign in again"),
        ("AccessDenied", "cloud_denied", "aws sts get-caller-identity"),
        ("NoSuchBucket", "bucket_missing", "check the name"),
        ("SlowDown", "cloud_failed", "said by AWS"),
    ],
)
def test_a_refusal_of_aws_has_one_code_and_names_the_next_step(monkeypatch, code, ours, step):
    with refusing(400, XML.format(code)) as url:
        point_to(monkeypatch, url)
        with pytest.raises(VerifyError) as caught, door.coded("s3://data"):
            door.client("s3").list_objects_v2(Bucket="data")
    assert caught.value.code == ours
    assert step in str(caught.value)
    assert str(caught.value).startswith("s3://data: ")


@pytest.mark.parametrize(
    ("code", "ours"),
    [("InsufficientInstanceCapacity", "no_capacity"), ("MaxSpotInstanceCountExceeded", "cloud_quota")],
)
def test_no_capacity_and_no_quota_say_that_nothing_was_started(monkeypatch, code, ours):
    with refusing(400, f"<Response><Errors>{XML.format(code)}</Errors></Response>") as url:
        point_to(monkeypatch, url)
        with pytest.raises(VerifyError, match="nothing was started") as caught, door.coded("ec2"):
            door.client("ec2").describe_instances()
    assert caught.value.code == ours


def test_no_credentials_at_all_are_told_before_anything_is_sent(monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(VerifyError, match="aws configure") as caught:
        door.account()
    assert caught.value.code == "cloud_credentials"


def test_a_server_that_does_not_answer_is_told(monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(VerifyError, match="AWS_ENDPOINT_URL") as caught:
        door.account()
    assert caught.value.code == "cloud_failed"


def test_a_page_of_something_in_between_is_told(monkeypatch):
    with refusing(500, "<!doctype html>\n<html lang=en><h1>Internal Server Error</h1>", "text/html") as url:
        point_to(monkeypatch, url)
        with pytest.raises(VerifyError, match="not AWS: check proxies and AWS_ENDPOINT_URL") as caught:
            door.account()
    assert caught.value.code == "cloud_failed"


def test_without_a_region_the_variable_is_named(monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(BadSettings, match="AWS_REGION"):
        door.client("ec2")


def test_a_missing_bucket_and_an_impossible_name_are_told(aws):
    for name in ("nobody-has-this", "No Name"):
        with pytest.raises(VerifyError, match="bucket") as caught:
            door.bucket_client(name)
        assert caught.value.code == "bucket_missing"


def test_a_bucket_of_another_account_gets_nothing(monkeypatch, aws):
    with refusing(403, "") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with pytest.raises(VerifyError, match=f"not a bucket of account {ACCOUNT}.*nothing was sent") as caught:
            place("s3://data/x").write("a", b"secret")
    assert caught.value.code == "bucket_foreign"


def test_every_call_names_the_account_that_the_bucket_must_belong_to(aws):
    s3 = door.bucket_client(a_bucket())
    sent = []
    s3.meta.events.register("before-send.s3", lambda request, **_: sent.append(request.headers))
    s3.put_object(Bucket="data", Key="a", Body=b"1")
    s3.get_object(Bucket="data", Key="a")
    s3.list_objects_v2(Bucket="data")
    assert [each["x-amz-expected-bucket-owner"].decode() for each in sent] == [ACCOUNT] * 3


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_files_are_written_listed_read_and_removed_alike(aws, tmp_path, where):
    files = place(tmp_path / "out" if where == "folder" else f"s3://{a_bucket()}/some/prefix/")
    assert list(files.names()) == []
    files.write("b/two.txt", b"0123456789")
    files.write("a.txt", b"1")
    assert list(files.names()) == [("a.txt", 1), ("b/two.txt", 10)]
    assert list(files.names("b/")) == [("b/two.txt", 10)]
    assert (files.read("b/two.txt"), files.read("b/two.txt", 3), files.read("b/two.txt", 3, 2)) == (
        *(b"0123456789", b"3456789", b"34"),
    )
    assert files.read("b/two.txt", 3, 0) == b""
    with files.open("b/two.txt") as stream:
        assert (stream.read(4), stream.read()) == (b"0123", b"456789")
    files.remove("a.txt")
    files.remove("a.txt")
    with pytest.raises(FileMissing, match=r"a\.txt"):
        files.read("a.txt")


def test_an_address_needs_a_bucket():
    with pytest.raises(BadSettings, match="s3://BUCKET/PREFIX"):
        place("s3://")


def test_wrong_credentials_and_a_right_that_is_lacking_are_told_by_a_server_that_checks_them(aws, monkeypatch):
    a_bucket()
    user = door.client("iam")
    user.create_user(UserName="reader")
    key = user.create_access_key(UserName="reader")["AccessKey"]
    settings = pytest.importorskip("moto").settings
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(VerifyError) as unknown:
        place("s3://data").write("a", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    with pytest.raises(VerifyError) as denied, door.coded("ec2"):
        door.client("ec2").describe_instances()
    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
    assert (unknown.value.code, denied.value.code) == ("cloud_credentials", "cloud_denied")
    assert list(place("s3://data").names()) == []
