"""Download one image from a URL that a stranger chose.

Knows nothing of images, settings or queues: bytes come back, or one of five coded errors.

The guard is ssrfguard's: each name is looked up once, every answer is judged, and the socket is opened to an address
that was judged. Around it, here: what ssrfguard's table leaves open, names that never lead to the public Internet,
redirects, the size of what the server says and the time it takes to say it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import zlib
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from ipaddress import ip_network

import httpx
from ssrfguard import (
    DEFAULT_DENIED,
    AddressTable,
    Block,
    BlockedAddressError,
    BlockedURLError,
    Policy,
    Reach,
    Resolver,
    SSRFGuardError,
)
from ssrfguard.httpx import AsyncSafeTransport

from utils.errors import FetchFailed, FetchTimeout, TooManyBytes, UrlNotFound, UrlRefused

log = logging.getLogger(__name__)

# Longest prefix wins, so ssrfguard's own rows keep deciding what they cover.
_DENIED = AddressTable(
    (
        *DEFAULT_DENIED.blocks,
        # IPv6 as a list of what is allowed: IANA has allocated no global unicast outside 2000::/3 (RFC 4291 section
        # 2.4), and IPv4-translated ::ffff:0:a.b.c.d (RFC 7915) lies out there.
        Block(ip_network("::/0"), "Not global unicast", "RFC4291", Reach.DENIED),
        Block(ip_network("2000::/3"), "Global unicast", "RFC4291", Reach.PERMITTED),
        # A public address that, inside Azure, is the host: it hands out the machine's certificates and extensions.
        Block(ip_network("168.63.129.16/32"), "Azure WireServer", "", Reach.DENIED),
    )
)

# IANA special-use domain names and ICANN's reserved .internal: none is ever a public host, and
# metadata.google.internal is one of them. Refused by name, so that nobody is asked about them.
_SPECIAL_USE_NAMES = (
    "localhost",
    "local",
    "internal",
    "home.arpa",
    "onion",
    "alt",
    "example",
    "invalid",
    "test",
)

_HEADERS = {
    "User-Agent": "img-ml-verify",
    # Naming image formats would invite a CDN to re-encode; a forensic tool wants the file as it is stored.
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}

# 4xx that speak of this moment, not of this image (RFC 9110 section 15.5.9, RFC 8470, RFC 6585).
_PASSING_4XX = frozenset({408, 425, 429})

_SEND_THE_FILE = "download the image yourself and send the file"


async def fetch_async(
    url: str,
    *,
    max_bytes: int,
    seconds: float,
    connect_seconds: float,
    redirects: int,
    ports: frozenset[int],
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Download what an http or https URL leads to, connecting to public addresses only.

    Proxies and certificates named in the environment are ignored. The content type is ignored too: the decoder
    decides what is an image.

    Args:
        max_bytes: the largest body we take, counted after content decoding.
        seconds: for everything: name lookups, redirects, and the last byte.
        connect_seconds: for one attempt to connect.
        redirects: followed; every hop is judged like the first URL, and none goes from https to http.
        ports: the ports we connect to; at least one.
        headers: beside ours, or in place of them; they go to the first host only.

    Raises:
        UrlRefused: the URL, a redirect or an address behind it is not one we connect to.
        UrlNotFound: the server will not serve this image.
        TooManyBytes: the body is larger than ``max_bytes``.
        FetchTimeout: ``seconds`` or ``connect_seconds`` passed.
        FetchFailed: the name does not resolve, the connection broke, or the server is in trouble.
    """
    return await download(
        url,
        safe_transport(policy_for(ports)),
        max_bytes=max_bytes,
        seconds=seconds,
        connect_seconds=connect_seconds,
        redirects=redirects,
        headers=headers,
    )


async def post_async(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    seconds: float,
    connect_seconds: float,
    ports: frozenset[int],
) -> None:
    """POST to a URL that a stranger chose, under the same guard as ``fetch_async``.

    No redirect is followed and no answer is read: a receiver says 2xx, and nothing else counts.

    Args:
        seconds: for everything.

    Raises:
        UrlRefused: the URL or an address behind it is not one we connect to.
        UrlNotFound: the server refuses for good: a redirect, or 4xx.
        FetchTimeout, FetchFailed: as in ``fetch_async``.
    """
    await _post(url, body, headers, safe_transport(policy_for(ports)), seconds=seconds, connect_seconds=connect_seconds)


def policy_for(ports: frozenset[int]) -> Policy:
    return Policy(allowed_ports=ports, denied_networks=_DENIED)


@cache
def tls_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)  # reads the CA bundle: tens of milliseconds, so once


def safe_transport(policy: Policy, resolver: Resolver | None = None) -> AsyncSafeTransport:
    # A transport and not a client: a client would keep cookies between hops, read a redirect's body without a limit,
    # and log whole URLs, whose query may be a signature.
    return AsyncSafeTransport(policy=policy, resolver=resolver, verify=tls_context(), trust_env=False)


async def download(
    url: str,
    transport: AsyncSafeTransport,
    *,
    max_bytes: int,
    seconds: float,
    connect_seconds: float,
    redirects: int,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """``fetch_async`` through a given transport."""
    sent = _HEADERS | dict(headers or {})
    with _coded_errors():
        async with asyncio.timeout(seconds), transport:
            timeout = httpx.Timeout(seconds, connect=connect_seconds).as_dict()
            for _ in range(redirects + 1):
                _check_url(url, transport.policy)
                request = httpx.Request("GET", url, headers=sent, extensions={"timeout": timeout})
                async with aclosing(await transport.handle_async_request(request)) as response:
                    if not response.has_redirect_location:
                        return await _body(response, max_bytes)
                    url = next_url(request.url, response.headers["Location"])
                    if httpx.URL(url).host != request.url.host:
                        sent = _HEADERS  # a key is for the host that it was given for
        raise UrlRefused(f"the URL redirects more than {redirects} times; give the address it ends at")


async def _post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    transport: AsyncSafeTransport,
    *,
    seconds: float,
    connect_seconds: float,
) -> None:
    """``post_async`` through a given transport."""
    with _coded_errors():
        async with asyncio.timeout(seconds), transport:
            timeout = httpx.Timeout(seconds, connect=connect_seconds).as_dict()
            _check_url(url, transport.policy)
            request = httpx.Request(
                "POST", url, content=body, headers=_HEADERS | dict(headers), extensions={"timeout": timeout}
            )
            async with aclosing(await transport.handle_async_request(request)) as response:
                _check_status(response)


@contextmanager
def _coded_errors() -> Iterator[None]:
    """Whatever a transfer raises, as one of ours. Nothing said to the caller tells an address from another."""
    try:
        yield
    except BlockedAddressError as error:
        log.info("URL refused: %s", error)  # host and addresses: for the operator, never for the caller
        raise _url_refused() from None
    except (SSRFGuardError, httpx.InvalidURL, UnicodeError):  # UnicodeError: httpx meets xn-- that is not punycode
        raise _url_refused() from None  # what they say quotes the URL, which may hold a password
    except (TimeoutError, httpx.TimeoutException) as error:
        raise FetchTimeout(
            f"the download did not finish in time (IMGV_FETCH_SECONDS); try again later, or {_SEND_THE_FILE}"
        ) from error
    except (httpx.HTTPError, OSError, zlib.error) as error:
        raise FetchFailed(
            f"the host was not found or the transfer broke; check the URL and try again later, or {_SEND_THE_FILE}"
        ) from error


def _check_url(url: str, policy: Policy) -> None:
    """Judge what needs no lookup: ssrfguard's URL rules, and names that cannot be public hosts.

    Raises:
        SSRFGuardError: refused.
    """
    target = policy.check_url(url)
    if target.is_literal_address:
        return
    labels = target.host.rstrip(".").split(".")
    # A last label that starts with a digit is an address in disguise, 0x7f.1 or 127.0x1: no top-level domain does
    # (RFC 3696 section 2), while the C library's inet_aton reads hexadecimal, octal and short forms.
    if len(labels) < 2 or labels[-1][0].isdigit():
        raise BlockedURLError(url, f"host {target.host!r} is not a public name")
    if any(target.host.rstrip(".").endswith("." + name) for name in _SPECIAL_USE_NAMES):
        raise BlockedURLError(url, f"host {target.host!r} is a special-use name")


def next_url(current: httpx.URL, location: str) -> str:
    """Where a redirect leads; it is judged afresh before anything is sent there.

    Raises:
        UrlRefused: it gives up the encryption of the hop before.
        httpx.InvalidURL: it is not a URL.
    """
    following = current.join(location)
    if current.scheme == "https" and following.scheme == "http":
        raise UrlRefused(f"the URL redirects from https to http; {_SEND_THE_FILE}")
    return str(following)


async def _body(response: httpx.Response, max_bytes: int) -> bytes:
    """Read the answer, never taking more than ``max_bytes`` and one chunk."""
    _check_status(response)
    if int(response.headers.get("Content-Length", 0)) > max_bytes:
        raise _too_many_bytes(max_bytes)
    inflate = _inflate(response.headers.get("Content-Encoding", ""))
    body = bytearray()
    async for chunk in response.aiter_raw():
        if inflate is None:
            body += chunk
        elif inflate.eof:
            raise zlib.error("more data after the compressed stream")
        else:
            body += inflate.decompress(chunk, max_bytes + 1 - len(body))
        if max(len(body), response.num_bytes_downloaded) > max_bytes:
            raise _too_many_bytes(max_bytes)
    if inflate is not None and (inflate.unused_data or not inflate.eof):
        raise zlib.error("not one whole compressed stream")
    return bytes(body)


def _inflate(coding: str) -> zlib._Decompress | None:
    """A decompressor for the codings some servers apply unasked; None when there is nothing to undo.

    Not httpx's own: those inflate a network chunk in one go, 64 KiB to 64 MiB, and nest as often as the header says.

    Raises:
        UrlNotFound: another coding, or several.
    """
    match coding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
        case _:
            raise UrlNotFound(f"the server sends only an encoded copy, which was not asked for; {_SEND_THE_FILE}")


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    if status >= 500 or status in _PASSING_4XX:
        failed = FetchFailed(f"the server answered {status}; try again later")
        failed.retry_after = _seconds(response.headers.get("Retry-After", ""))
        raise failed
    raise UrlNotFound(f"the server answered {status}; check the URL, or {_SEND_THE_FILE}")


def _seconds(asked: str) -> float | None:
    """Of a Retry-After header, a number or a date (RFC 9110 section 10.2.3); None where it is neither."""
    try:
        if asked.isascii() and asked.isdigit():  # "²" is a digit too, and no number
            return float(asked)
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def _url_refused() -> UrlRefused:
    return UrlRefused(
        "the URL does not lead to a public http or https server on an allowed port (IMGV_FETCH_PORTS), "
        f"without a user name; {_SEND_THE_FILE}"
    )


def _too_many_bytes(max_bytes: int) -> TooManyBytes:
    return TooManyBytes(f"the file is larger than {max_bytes} bytes; send a smaller one or raise IMGV_MAX_BYTES")
