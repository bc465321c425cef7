"""Connections whose request does not begin hold nothing for long."""

import asyncio
import contextlib
import time

import pytest

from utils.errors import BadSettings
from worker import http
from worker.metrics import serve


async def page():
    return 200, "ok\n"


async def slow_page():
    await asyncio.sleep(0.8)
    return 200, "late\n"


def on_server(scenario):
    """``scenario(port)`` against the worker's pages."""

    async def main():
        probe = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = probe.sockets[0].getsockname()[1]
        probe.close()
        await probe.wait_closed()
        async with serve(f"127.0.0.1:{port}", {"/healthz": page, "/slow": slow_page}):
            return await scenario(port)

    return asyncio.run(main())


async def said(reader, seconds=5.0):
    """All that comes until the server closes."""
    async with asyncio.timeout(seconds):
        return await reader.read()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HT",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n|GET /healthz HTTP/1.1\r\n",
    ],
)
def test_a_request_that_does_not_begin_in_time_is_given_up(monkeypatch, sent):
    """Nothing at all, half a line, half a head; and the second request of a connection."""
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)

    async def scenario(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.monotonic()
        with contextlib.closing(writer):
            for part in sent.split(b"|"):
                writer.write(part)
                await asyncio.sleep(0.2)
            await said(reader)
        return time.monotonic() - began

    assert on_server(scenario) < 4


def test_a_request_that_is_at_work_is_not_given_up(monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)

    async def scenario(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await said(reader)
        writer.close()
        return answer

    assert on_server(scenario).endswith(b"late\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"200"),
        (b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b"405"),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"400"),
    ],
)
def test_the_pages_answer_what_is_no_scrape(request_, status):
    async def scenario(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        with contextlib.closing(writer):
            return await said(reader)

    assert on_server(scenario).split()[1] == status


def test_an_address_that_is_taken_is_a_setting_to_mend():
    async def scenario(port):
        with pytest.raises(BadSettings, match="IMGV_QUEUE_METRICS"):
            async with serve(f"127.0.0.1:{port}", {}):
                pass

    on_server(scenario)
