"""Every attack runs against a real listener on loopback that counts its connections: refused means nobody called."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import socket
import socketserver
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingress import fetch as subject
from ingress.fetch import fetch_async
from utils.errors import FetchFailed, FetchTimeout, TooManyBytes, UrlNotFound, UrlRefused, VerifyError

SECRET = b"SECRET"
PUBLIC, OTHER_PUBLIC = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
LIMITS: dict[str, Any] = {"max_bytes": 100_000, "seconds": 5.0, "connect_seconds": 2.0, "redirects": 3}

Answer = Callable[[socket.socket], None]


def http(body: bytes = SECRET, status: str = "200 OK", **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


class Listener(socketserver.ThreadingTCPServer):
    """Says what it is told to, and remembers who asked."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self) -> None:
        self.hits = 0
        self.requests: list[bytes] = []
        self.answer: Answer = lambda peer: peer.sendall(http())
        super().__init__(("127.0.0.1", 0), None)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def says(self, *answers: bytes) -> None:
        left = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.answer = lambda peer: peer.sendall(next(left))

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.hits += 1
        request.settimeout(5)
        try:
            asked = b""
            while b"\r\n\r\n" not in asked and not asked.startswith(b"\x16"):  # a request, or a TLS record
                piece = request.recv(65536)
                if not piece:
                    return
                asked += piece
            self.requests.append(asked)
            self.answer(request)
        except OSError:  # the other side had enough
            pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        yield server
        server.shutdown()


@pytest.fixture
def victim() -> Iterator[Listener]:
    with Listener() as server:
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that a connection was tried to. Nothing leaves this machine."""
    look_up, connect, tried = socket.getaddrinfo, anyio.connect_tcp, list[str]()

    def numbers_only(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        assert flags & socket.AI_NUMERICHOST, f"{host} was looked up"
        return look_up(host, port, family, type, proto, flags)

    async def loopback_only(remote_host: Any, *args: Any, **kwargs: Any) -> Any:
        tried.append(str(remote_host))
        if not remote_host.is_loopback:
            raise ConnectionRefusedError
        return await connect(remote_host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", numbers_only)
    monkeypatch.setattr(anyio, "connect_tcp", loopback_only)
    return tried


class Resolver:
    """Answers each lookup with the next set of addresses, the last set for ever."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.answers = answers
        self.lookups = 0

    def __call__(self, host: str, port: int, *_: Any) -> list[Any]:
        addresses = self.answers[min(self.lookups, len(self.answers) - 1)]
        self.lookups += 1
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            if ip_address(address).version == 4
            else (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            for address in addresses
        ]


def download(url: str, *servers: Listener, resolver: Any = None, loopback: bool = True, **limits: Any) -> bytes:
    """``fetch`` with a resolver of ours and, unless told otherwise, 127.0.0.1 allowed: nothing else differs."""
    policy = subject.policy_for(frozenset({80, 443, *(server.port for server in servers)}))
    if loopback:
        policy = replace(policy, allowed_networks=(ip_network("127.0.0.1/32"),))
    transport = subject.safe_transport(policy, resolver or Resolver(("127.0.0.1",)))
    return asyncio.run(subject.download(url, transport, **(LIMITS | limits)))


ATTACKS = {
    "loopback": "http://127.0.0.1:{port}/",
    "loopback elsewhere": "http://127.0.0.53:{port}/",
    "decimal": "http://2130706433:{port}/",
    "hexadecimal": "http://0x7f000001:{port}/",
    "dotted hexadecimal": "http://0x7f.0x0.0x0.0x1:{port}/",
    "octal": "http://0177.0.0.1:{port}/",
    "octal in one": "http://017700000001:{port}/",
    "short": "http://127.1:{port}/",
    "short hexadecimal": "http://127.0x1:{port}/",
    "zero": "http://0:{port}/",
    "unspecified": "http://0.0.0.0:{port}/",
    "unspecified v6": "http://[::]:{port}/",
    "loopback v6": "http://[::1]:{port}/",
    "loopback v6 in full": "http://[0:0:0:0:0:0:0:1]:{port}/",
    "mapped": "http://[::ffff:127.0.0.1]:{port}/",
    "mapped in hexadecimal": "http://[::ffff:7f00:1]:{port}/",
    "compatible": "http://[::127.0.0.1]:{port}/",
    "translated": "http://[::ffff:0:127.0.0.1]:{port}/",
    "NAT64": "http://[64:ff9b::7f00:1]:{port}/",
    "NAT64, local prefix": "http://[64:ff9b:1::7f00:1]:{port}/",
    "6to4": "http://[2002:7f00:1::]:{port}/",
    "Teredo server": "http://[2001:0:7f00:1::1]:{port}/",
    "Teredo client": "http://[2001:0:808:808::80ff:fffe]:{port}/",
    "CGNAT": "http://100.64.0.1:{port}/",
    "private 10": "http://10.0.0.1:{port}/",
    "private 172": "http://172.16.0.1:{port}/",
    "private 192": "http://192.168.1.1:{port}/",
    "unique local": "http://[fc00::1]:{port}/",
    "link local": "http://[fe80::1]:{port}/",
    "link local with zone": "http://[fe80::1%25lo]:{port}/",
    "outside global unicast": "http://[4000::1]:{port}/",
    "multicast": "http://224.0.0.1:{port}/",
    "broadcast": "http://255.255.255.255:{port}/",
    "AWS metadata": "http://169.254.169.254/latest/meta-data/",
    "AWS metadata v6": "http://[fd00:ec2::254]/latest/meta-data/",
    "AWS metadata mapped": "http://[::ffff:169.254.169.254]/",
    "AWS metadata in decimal": "http://2852039166/",
    "ECS metadata": "http://169.254.170.2/v2/credentials",
    "Alibaba metadata": "http://100.100.100.200/",
    "Oracle metadata": "http://192.0.0.192/",
    "Azure WireServer": "http://168.63.129.16/",
    "Azure WireServer by NAT64": "http://[64:ff9b::168.63.129.16]/",
    "Google metadata name": "http://metadata.google.internal/computeMetadata/v1/",
    "metadata name": "http://metadata/",
    "localhost": "http://localhost:{port}/",
    "localhost, absolute": "http://localhost.:{port}/",
    "localhost, below": "http://photos.localhost:{port}/",
    "multicast DNS name": "http://printer.local:{port}/",
    "user name": "http://user@127.0.0.1:{port}/",
    "host as user name": "http://www.wikipedia.org@127.0.0.1:{port}/",
    "password": "https://user:word@www.wikipedia.org/",
    "empty user name": "https://@www.wikipedia.org/",
    "backslash": "http://www.wikipedia.org\\@127.0.0.1:{port}/",
    "two at signs": "http://www.wikipedia.org@x@127.0.0.1:{port}/",
    "fragment after host": "http://127.0.0.1:{port}#.wikipedia.org/",
    "query after host": "http://127.0.0.1:{port}?.wikipedia.org/",
    "fragment before host": "http://x#@127.0.0.1:{port}/",
    "circled digits": "http://①②⑦.⓪.⓪.①:{port}/",
    "circled letters": "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "full-width digits": "http://127.0.0.1:{port}/",
    "ideographic stops": "http://127。0。0。1:{port}/",
    "percent encoded": "http://%31%32%37.0.0.1:{port}/",
    "tab in scheme": "ht\ttp://127.0.0.1:{port}/",
    "line break": "http://127.0.0.1:{port}/\r\nHost: x",
    "space": "http://127.0.0.1:{port} /",
    "NUL": "http://127.0.0.1\x00.wikipedia.org:{port}/",
    "no scheme": "//127.0.0.1:{port}/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:{port}/_GET",
    "ftp": "ftp://127.0.0.1:{port}/",
    "data": "data:image/png;base64,AAAA",
    "unix socket": "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "port 22": "http://93.184.215.14:22/",
    "port 0": "http://93.184.215.14:0/",
    "port too large": "http://93.184.215.14:99999/",
    "port of no digits": "http://93.184.215.14:8e1/",
    "no host": "http:///x.jpg",
    "empty": "",
    "very long": "http://www.wikipedia.org/" + "a" * 100_000,
    "very long host": "http://" + "a." * 5000 + "org/",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_is_refused_and_nobody_is_called(attack: str, listener: Listener, attempts: list[str]) -> None:
    with pytest.raises(UrlRefused) as refused:
        url = attack.replace("{port}", str(listener.port))
        asyncio.run(fetch_async(url, ports=frozenset({80, 443, listener.port}), **LIMITS))
    assert (listener.hits, attempts) == (0, [])
    assert "127" not in refused.value.message
    assert "word" not in refused.value.message


@pytest.mark.parametrize(
    "answers",
    [
        ("127.0.0.1",),
        ("10.0.0.1",),
        ("100.64.0.1",),
        ("169.254.169.254",),
        ("168.63.129.16",),
        ("0.0.0.0",),
        ("224.0.0.1",),
        ("::1",),
        ("::ffff:127.0.0.1",),
        ("64:ff9b::7f00:1",),
        ("2002:7f00:1::",),
        ("2001:0:7f00:1::1",),
        ("fe80::1%lo",),
        (PUBLIC, "127.0.0.1"),
        ("127.0.0.1", PUBLIC),
        (PUBLIC, OTHER_PUBLIC, "100.64.0.1"),
        (OTHER_PUBLIC, "::ffff:10.0.0.1", PUBLIC),
    ],
    ids=" ".join,
)
def test_a_name_is_refused_when_any_of_its_answers_is_not_public(
    answers: tuple[str, ...], listener: Listener, attempts: list[str]
) -> None:
    resolver = Resolver(answers)
    with pytest.raises(UrlRefused) as refused:
        download(f"http://photos.example.com:{listener.port}/", listener, resolver=resolver, loopback=False)
    assert (resolver.lookups, listener.hits, attempts) == (1, 0, [])
    assert not any(address in refused.value.message for address in answers)


def test_a_name_is_looked_up_once_and_the_judged_address_is_called(listener: Listener, attempts: list[str]) -> None:
    rebinding = Resolver((PUBLIC,), ("127.0.0.1",))
    with pytest.raises(FetchFailed):
        download(f"http://photos.example.com:{listener.port}/", listener, resolver=rebinding, loopback=False)
    assert (attempts, rebinding.lookups, listener.hits) == ([PUBLIC], 1, 0)


def test_a_name_that_turns_private_between_two_hops_is_refused(
    listener: Listener, victim: Listener, attempts: list[str]
) -> None:
    listener.says(http(status="302 Found", Location=f"http://photos.example.com:{victim.port}/"))
    rebinding = Resolver(("127.0.0.1",), ("::ffff:127.0.0.1",))
    with pytest.raises(UrlRefused):
        download(f"http://photos.example.com:{listener.port}/", listener, victim, resolver=rebinding)
    assert (listener.hits, victim.hits, attempts, rebinding.lookups) == (1, 0, ["127.0.0.1"], 2)


@pytest.mark.parametrize(
    "location",
    [
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::1]:{port}/",
        "http://[64:ff9b::7f00:1]:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://localhost:{port}/",
        "http://user@127.0.0.1:{port}/",
        "//user@127.0.0.1:{port}/",
        "http://169.254.169.254/",
        "http://metadata.google.internal/",
        "http://127.0.0.1:22/",
        "http://[",
        "http://\u2488\u2488/",
        "http://xn--a.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "ws://127.0.0.1:{port}/",
        "javascript:alert(1)",
    ],
)
def test_a_redirect_is_judged_like_a_first_url(
    location: str, listener: Listener, victim: Listener, attempts: list[str]
) -> None:
    listener.answer = lambda peer: peer.sendall(
        http(status="302 Found", Location="@").replace(b"@", location.replace("{port}", str(victim.port)).encode())
    )
    with pytest.raises(UrlRefused):
        download(f"http://photos.example.com:{listener.port}/", listener, victim)
    assert (listener.hits, victim.hits, attempts) == (1, 0, ["127.0.0.1"])


def test_a_redirect_never_gives_up_encryption() -> None:
    with pytest.raises(UrlRefused, match="https to http"):
        subject.next_url(httpx.URL("https://photos.example.com/a"), "http://photos.example.com/a")
    assert subject.next_url(httpx.URL("http://a.example.com/x/y"), "https://b.example.com/") == "https://b.example.com/"
    assert subject.next_url(httpx.URL("https://a.example.com/x/y"), "z") == "https://a.example.com/x/z"


def test_redirects_are_followed_as_often_as_allowed(listener: Listener) -> None:
    hop = http(status="302 Found", Location="/next")
    url = f"http://photos.example.com:{listener.port}/"
    listener.says(hop, hop, hop, http(b"an image"))
    assert download(url, listener) == b"an image"
    listener.says(hop)
    for redirects in (0, 1, 3):
        before = listener.hits
        with pytest.raises(UrlRefused, match=f"more than {redirects} times"):
            download(url, listener, redirects=redirects)
        assert listener.hits - before == redirects + 1


def test_a_hop_carries_no_cookie_and_no_more_than_it_must(listener: Listener) -> None:
    listener.says(http(status="302 Found", Location="/b#f", Set_Cookie="id=1; Path=/"), http())
    assert download(f"http://photos.example.com:{listener.port}/a?q=1#fragment", listener) == SECRET
    first, second = (request.decode().split("\r\n") for request in listener.requests)
    assert (first[0], second[0]) == ("GET /a?q=1 HTTP/1.1", "GET /b HTTP/1.1")
    assert {f"Host: photos.example.com:{listener.port}", "Accept-Encoding: identity"} < set(first)
    assert {line.partition(":")[0] for line in (*first[1:], *second[1:]) if line} == {
        "Host",
        "User-Agent",
        "Accept",
        "Accept-Encoding",
    }


def test_the_body_of_a_redirect_is_not_read(listener: Listener) -> None:
    sent = 0

    def endless(peer: socket.socket) -> None:
        nonlocal sent
        if b"GET /next" in listener.requests[-1]:
            return peer.sendall(http())
        peer.sendall(http(b"", "302 Found", Location="/next", Content_Length=str(10**12)))
        while True:
            sent += peer.send(bytes(65536))

    listener.answer = endless
    assert download(f"http://photos.example.com:{listener.port}/", listener) == SECRET
    assert sent < 20_000_000  # what the kernel's socket buffers swallow


def test_proxies_of_the_environment_are_ignored(
    listener: Listener, victim: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{victim.port}")
    assert download(f"http://photos.example.com:{listener.port}/", listener) == SECRET
    with pytest.raises(UrlRefused):
        asyncio.run(fetch_async(f"http://127.0.0.1:{listener.port}/", ports=frozenset({listener.port}), **LIMITS))
    assert (listener.hits, victim.hits) == (1, 0)


def test_certificates_are_verified() -> None:
    assert subject.tls_context().verify_mode is ssl.CERT_REQUIRED
    assert subject.tls_context().check_hostname


def test_a_body_up_to_the_limit_is_taken_and_one_byte_more_is_not(listener: Listener) -> None:
    url = f"http://photos.example.com:{listener.port}/"
    for framing in ({}, {"Content_Length": ""}):  # declared, and ended by closing
        listener.says(http(bytes(1000), **framing))
        assert download(url, listener, max_bytes=1000) == bytes(1000)
        with pytest.raises(TooManyBytes, match="999 bytes"):
            download(url, listener, max_bytes=999)


def test_an_empty_body_and_any_content_type_are_just_bytes(listener: Listener) -> None:
    listener.says(http(b"", "204 No Content"), http(b"<html>", Content_Type="text/html"))
    url = f"http://photos.example.com:{listener.port}/"
    assert (download(url, listener), download(url, listener)) == (b"", b"<html>")


def test_a_declared_length_over_the_limit_is_refused_before_the_body(listener: Listener) -> None:
    def head_only(peer: socket.socket) -> None:
        peer.sendall(http(b"", Content_Length=str(10**12)))
        peer.recv(1)  # until the other side hangs up

    listener.answer = head_only
    with pytest.raises(TooManyBytes):
        download(f"http://photos.example.com:{listener.port}/", listener)


@pytest.mark.parametrize("length", ["-5", "five", "5, 6", "1e3", "٣", "9" * 5000])
def test_a_senseless_declared_length_is_a_failed_transfer(length: str, listener: Listener) -> None:
    listener.answer = lambda peer: peer.sendall(http(Content_Length="@").replace(b"@", length.encode()))
    with pytest.raises(FetchFailed):
        download(f"http://photos.example.com:{listener.port}/", listener)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_endless_body_stops_at_the_limit(chunked: bool, listener: Listener) -> None:
    sent = 0

    def endless(peer: socket.socket) -> None:
        nonlocal sent
        peer.sendall(http(b"", Content_Length="", Transfer_Encoding="chunked" if chunked else ""))
        piece = b"10000\r\n" + bytes(65536) + b"\r\n" if chunked else bytes(65536)
        while True:
            sent += peer.send(piece)

    listener.answer = endless
    with pytest.raises(TooManyBytes):
        download(f"http://photos.example.com:{listener.port}/", listener)
    assert sent < 20_000_000  # what the kernel's socket buffers swallow


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate", "identity"])
def test_a_coding_that_was_not_asked_for_is_undone(coding: str, listener: Listener) -> None:
    body = {"deflate": zlib.compress, "identity": bytes}.get(coding, gzip.compress)(SECRET * 100)
    listener.says(http(body, Content_Encoding=coding))
    assert download(f"http://photos.example.com:{listener.port}/", listener) == SECRET * 100


def test_a_compressed_bomb_is_refused_without_being_inflated(listener: Listener) -> None:
    bomb = gzip.compress(bytes(80_000_000))
    assert len(bomb) < 100_000
    listener.says(http(bomb, Content_Encoding="gzip"))
    tracemalloc.start()
    try:
        with pytest.raises(TooManyBytes):
            download(f"http://photos.example.com:{listener.port}/", listener)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_compressed_stream_that_inflates_to_nothing_still_counts(listener: Listener) -> None:
    empty_blocks = zlib.compressobj(wbits=31).flush(zlib.Z_FULL_FLUSH) + b"\x00\x00\x00\xff\xff" * 30_000
    listener.says(http(empty_blocks, Content_Length="", Content_Encoding="gzip"))
    with pytest.raises(TooManyBytes):
        download(f"http://photos.example.com:{listener.port}/", listener)


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "zstd", "compress", "x" * 1000])
def test_other_codings_are_not_accepted(coding: str, listener: Listener) -> None:
    listener.says(http(Content_Encoding=coding))
    with pytest.raises(UrlNotFound):
        download(f"http://photos.example.com:{listener.port}/", listener)


@pytest.mark.parametrize(
    "body", [gzip.compress(SECRET)[:-3], SECRET, b"", gzip.compress(SECRET) + b"more", gzip.compress(SECRET) * 2]
)
def test_anything_but_one_whole_compressed_stream_is_a_failed_transfer(body: bytes, listener: Listener) -> None:
    listener.says(http(body, Content_Encoding="gzip"))
    with pytest.raises(FetchFailed):
        download(f"http://photos.example.com:{listener.port}/", listener)


def test_what_follows_a_compressed_stream_is_not_collected(listener: Listener) -> None:
    def and_more(peer: socket.socket) -> None:
        peer.sendall(http(gzip.compress(SECRET), Content_Length="", Content_Encoding="gzip"))
        time.sleep(0.1)
        peer.sendall(bytes(LIMITS["max_bytes"] + 1))

    listener.answer = and_more
    with pytest.raises(FetchFailed):
        download(f"http://photos.example.com:{listener.port}/", listener)


def drip(pieces: Iterator[bytes]) -> Answer:
    def answer(peer: socket.socket) -> None:
        for piece in pieces:
            peer.sendall(piece)
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "pieces",
    [
        itertools.chain([http(b"", Content_Length="90000")], itertools.repeat(b"x")),
        itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], itertools.repeat(b"x")),
        itertools.chain([b"HTTP/1.1 100 Continue\r\n\r\n"], itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
    ],
    ids=["body", "headers", "interim answers"],
)
def test_a_server_that_drips_is_cut_off(pieces: Iterator[bytes], listener: Listener) -> None:
    listener.answer = drip(pieces)
    start = time.monotonic()
    with pytest.raises(FetchTimeout):
        download(f"http://photos.example.com:{listener.port}/", listener, seconds=0.4)
    assert time.monotonic() - start < 3


def test_slow_redirects_share_one_deadline(listener: Listener) -> None:
    def slow(peer: socket.socket) -> None:
        time.sleep(0.2)
        peer.sendall(http(status="302 Found", Location="/next"))

    listener.answer = slow
    with pytest.raises(FetchTimeout):
        download(f"http://photos.example.com:{listener.port}/", listener, seconds=0.5, redirects=100)


def test_a_name_server_that_never_answers_is_not_waited_for(listener: Listener) -> None:
    released = threading.Event()
    start = time.monotonic()
    try:
        with pytest.raises(FetchTimeout):
            download("http://photos.example.com/", resolver=lambda *_: released.wait(10) and [], seconds=0.3)
        assert time.monotonic() - start < 3
    finally:
        released.set()


def test_a_host_that_swallows_packets_is_given_up_after_the_connect_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(anyio, "connect_tcp", silence)
    start = time.monotonic()
    with pytest.raises(FetchTimeout):
        download("http://photos.example.com/", resolver=Resolver((PUBLIC,)), loopback=False, connect_seconds=0.2)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, UrlNotFound) for status in (300, 304, 400, 401, 403, 404, 410, 418, 451, 499)),
        *((status, FetchFailed) for status in (408, 425, 429, 500, 502, 503, 504, 599)),
    ],
)
def test_an_answer_is_sorted_by_whether_it_may_change(
    status: int, error: type[VerifyError], listener: Listener
) -> None:
    listener.says(http(status=f"{status} Whatever"))
    with pytest.raises(error, match=str(status)) as raised:
        download(f"http://photos.example.com:{listener.port}/", listener)
    assert SECRET.decode() not in raised.value.message


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        *((b"7", 7), (b"Mon, 01 Jan 2001 00:00:00 GMT", 0), (b"9" * 400, float("inf"))),
        *((each, None) for each in (b"", b"-1", b"soon", b"7 s", "²".encode("latin-1"), "²".encode())),
        *((b"Mon, 01 Jan %s 00:00:00 GMT" % year, None) for year in (b"10000", b"9" * 40)),
        (b"Mon, 01 Jan 2026 00:00:00", None),
    ],
)
def test_a_retry_after_is_a_number_or_a_date_and_anything_else_is_none(
    asked: bytes, seconds: float | None, listener: Listener
) -> None:
    listener.says(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: %s\r\n\r\n" % asked)
    with pytest.raises(FetchFailed, match="503") as raised:
        download(f"http://photos.example.com:{listener.port}/", listener)
    assert raised.value.retry_after == seconds


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        http(b"half", Content_Length="100"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "not HTTP", "half a body", "bad chunk", "huge header"],
)
def test_a_broken_answer_is_a_failed_transfer(answer: bytes, listener: Listener) -> None:
    listener.says(answer)
    with pytest.raises(FetchFailed) as raised:
        download(f"http://photos.example.com:{listener.port}/", listener)
    assert "127.0.0.1" not in raised.value.message
    assert "SSH" not in raised.value.message


def test_a_closed_port_and_an_unknown_name_read_the_same() -> None:
    with Listener() as gone:
        gone.shutdown()
    with pytest.raises(FetchFailed) as closed:
        download(f"http://photos.example.com:{gone.port}/", gone)

    def unknown(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(FetchFailed) as unresolved:
        download("http://photos.example.com/", resolver=unknown)
    assert closed.value.message == unresolved.value.message


def test_a_tls_handshake_with_something_else_is_a_failed_transfer(listener: Listener) -> None:
    with pytest.raises(FetchFailed):
        download(f"https://photos.example.com:{listener.port}/", listener, seconds=2.0)


def test_a_refusal_is_logged_for_the_operator_without_the_url(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="ingress.fetch"), pytest.raises(UrlRefused):
        download("http://photos.example.com/a?signature=word", resolver=Resolver(("10.0.0.1",)))
    assert "10.0.0.1" in caplog.text
    assert "word" not in caplog.text


def test_fetch_async_runs_inside_an_event_loop(listener: Listener) -> None:
    async def both() -> list[Any]:
        url = f"http://127.0.0.1:{listener.port}/"
        calls = (fetch_async(url, ports=frozenset({listener.port}), **LIMITS) for _ in range(2))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(both())] == [UrlRefused, UrlRefused]
    assert listener.hits == 0


HOSTS = st.one_of(
    st.text(max_size=40),
    st.text("0123456789.xabcdef:[]%@#?/\\-_ⓐ①。", max_size=30),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=60), st.builds("{}://{}{}".format, st.sampled_from(["http", "https"]), HOSTS, HOSTS)))
@example("http://xn--a.com/")
@example("http://\ud800.com/")
@example("http://a.com/\ud800")
@example("http://" + "a" * 64 + ".com/")
@example("http://ß.com/")
def test_any_text_is_answered_with_a_coded_error(text: str) -> None:
    with pytest.raises((UrlRefused, FetchFailed)):
        download(text, resolver=Resolver(("127.0.0.1",)), loopback=False)
