"""The properties of an XMP packet, also of one that is no well-formed XML, as every other reader takes them too.

A scanner of tags of our own: writers forget to escape an ampersand or to bind a prefix, put control characters or bytes
of another encoding inside, or cut the end off, and a strict parser then gives nothing. It expands no entity, reads no
DTD, fetches nothing, and takes time linear in the packet. Does not know what a property means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

RDF: Final = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META: Final = "adobe:ns:meta/"  # x:xmpmeta, and x:xapmeta of the first writers
_MAX_DEPTH: Final = 8  # of properties inside properties; deeper than any schema
_MAX_NESTING: Final = 256  # of elements
_MAX_PREFIXES: Final = 256  # bound at one place; Photoshop binds some 20

# What a prefix means when its binding is missing, and how the name is spelled when it is there.
NAMESPACES: Final[Mapping[str, str]] = {
    "rdf": RDF,
    "x": _META,
    "dc": "http://purl.org/dc/elements/1.1/",
    "dcterms": "http://purl.org/dc/terms/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "TC260": "http://www.tc260.org.cn/ns/AIGC/1.0/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
}
_UNBOUND: Final = {**NAMESPACES, "iptcExt": NAMESPACES["Iptc4xmpExt"], "xap": NAMESPACES["xmp"]}

_SPACE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufeff\ufffe]")  # no characters of XML, except as a mark
# Comments, instructions, text as it is, declarations, tags. What is opened and not closed reaches to the end, so that
# no second look is needed; a possessive "*+" never goes back. A ">" or "<" may stand in a quoted value.
_TAG: Final = re.compile(
    r"<(?:!--.*?(?:-->|\Z)|\?.*?(?:\?>|\Z)|!\[CDATA\[(?P<text>.*?)(?:\]\]>|\Z)"
    r"|!DOCTYPE[^\[>]*+(?:\[.*?(?:\]\s{0,64}>|\Z)|>)"
    r"|(?P<close>/?)(?P<name>[A-Za-z_][^\s/>=<\"']{0,255})"
    r"(?P<attributes>(?:\"[^\"]*\"(?=[\s/>?])|'[^']*'(?=[\s/>?])|[^<>])*+)>)",
    re.DOTALL,
)
_ATTRIBUTE: Final = re.compile(
    r"(?<![^\s\"'])([^\s=/\"'<>]{1,256})\s{0,64}=\s{0,64}(?:\"([^\"]*)\"(?=[\s/>?]|\Z)|'([^']*)'(?=[\s/>?]|\Z)|([^\s\"'>]{1,1024}))"
)
_REFERENCE: Final = re.compile(r"&(?:#(\d{1,7})|#x([0-9a-fA-F]{1,6})|(amp|lt|gt|quot|apos));")
_ENTITIES: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_ESCAPED_BYTE: Final = re.compile("[\udc80-\udcff]")


def is_packet(data: bytes) -> bool:
    """Whether this is an XMP packet, whatever the place it stands in is called."""
    head = data[:1024].replace(b"\0", b"")
    return head.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<") and any(
        mark in head for mark in (b"<?xpacket", b":xmpmeta", b":xapmeta", b"<rdf:RDF", b"<rdf:Description")
    )


def decode(packet: bytes) -> str:
    """UTF-8, -16 or -32 as the first tag shows it; a byte that is no UTF-8 counts as Latin-1."""
    first = packet.find(b"<")
    for width, encodings in ((4, ("utf-32-le", "utf-32-be")), (2, ("utf-16-le", "utf-16-be"))):
        start = first // width * width
        for encoding in encodings:
            if first >= 0 and packet.startswith("<".encode(encoding), start):
                return packet[start:].decode(encoding, "replace")
    text = packet.decode("utf-8", "surrogateescape")
    return _ESCAPED_BYTE.sub(lambda match: chr(ord(match[0]) - 0xDC00), text)


@dataclass(slots=True)
class _Open:
    """An element whose end is still to come."""

    name: str  # as written
    path: tuple[str, ...]  # of properties, this one included
    prefixes: Mapping[str, str]
    text: list[str] = field(default_factory=list)


def properties(packet: bytes) -> tuple[list[tuple[str, str]], bool]:
    """Name and value of every property, and whether the packet is there to its end.

    A property of the image is named "{namespace}name"; one inside a structure (an ingredient, an edit in the history)
    is named by its whole path, so that nothing said about another file is taken for this one.
    """
    text = _SPACE.sub("", decode(packet))
    found: list[tuple[str, str]] = []
    stack = [_Open("", (), {})]
    position, elements = 0, 0
    for match in _TAG.finditer(text):
        stack[-1].text.append(_unescape(text[position : match.start()]))
        position = match.end()
        if match["text"]:
            stack[-1].text.append(match["text"])
        if match["name"] is None:
            continue
        if match["close"]:
            _close(match["name"], stack, found)
        elif len(stack) < _MAX_NESTING:
            opened = _element(match["name"], match["attributes"], stack[-1], found)
            if opened is None:  # no tag but text that nobody escaped, as "<lora:x:0.8>" in a prompt
                stack[-1].text.append(match[0])
                continue
            elements += 1
            stack.append(opened)
            if match["attributes"].endswith("/"):
                _close(match["name"], stack, found)
    is_whole = len(stack) == 1 and (elements > 0 or not text.strip())
    while len(stack) > 1:
        _close(stack[-1].name, stack, found)
    return found, is_whole


def _element(name: str, attributes: str, parent: _Open, found: list[tuple[str, str]]) -> _Open | None:
    """A new element, whose attributes are properties too; None when its prefix is bound nowhere."""
    values = list(_attributes(attributes))
    prefixes = parent.prefixes
    bindings = {key[6:]: _canonical(value) for key, value in values if key == "xmlns" or key.startswith("xmlns:")}
    if bindings and len(bindings) + len(prefixes) <= _MAX_PREFIXES:
        prefixes = {**prefixes, **bindings}
    namespace, local = _resolve(name, prefixes)
    if namespace is None:
        return None
    path = parent.path
    if (namespace, local) == (RDF, "RDF"):
        path = ()  # whatever the packet is wrapped in
    elif namespace not in ("", RDF, _META):
        path = (*path, f"{{{namespace}}}{local}")
    if len(path) <= _MAX_DEPTH:
        for key, value in values:
            namespace, local = _resolve(key, prefixes) if ":" in key else (None, "")
            if namespace == RDF and local == "resource" and path:
                found.append(("/".join(path), value))
            elif namespace and namespace not in (RDF, _META) and not key.startswith(("xmlns:", "xml:")):
                found.append(("/".join((*path, f"{{{namespace}}}{local}")), value))
    return _Open(name, path, prefixes)


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    for match in _ATTRIBUTE.finditer(text):
        value = next(group for group in (match[2], match[3], match[4]) if group is not None)
        yield match[1], _unescape(value)


def _resolve(name: str, prefixes: Mapping[str, str]) -> tuple[str | None, str]:
    """Namespace and local name; "" for no namespace, None for a prefix that is bound nowhere."""
    prefix, _, local = name.rpartition(":")
    if prefix == "rdf":
        return RDF, local
    return prefixes.get(prefix, _UNBOUND.get(prefix, None if prefix else "")), local


def _canonical(namespace: str) -> str:
    """The known spelling of a namespace that differs in its scheme, its case or its end."""
    return _SPELLINGS.get(_spelling(namespace), namespace.strip())


def _spelling(namespace: str) -> str:
    return namespace.strip().lower().removeprefix("https://").removeprefix("http://").rstrip("/#")


_SPELLINGS: Final = {_spelling(each): each for each in NAMESPACES.values()}


def _close(name: str, stack: list[_Open], found: list[tuple[str, str]]) -> None:
    """End the nearest element of this name, and those inside it that have no end; nothing when there is none."""
    depth = next((index for index in range(len(stack) - 1, 0, -1) if stack[index].name == name), 0)
    while depth and len(stack) > depth:
        element = stack.pop()
        value = "".join(element.text).strip()
        if value and element.path and len(element.path) <= _MAX_DEPTH:
            found.append(("/".join(element.path), value))


def _unescape(text: str) -> str:
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(reference: re.Match[str]) -> str:
    decimal, hexadecimal, name = reference.groups()
    if name:
        return _ENTITIES[name]
    code = int(decimal or hexadecimal, 10 if decimal else 16)
    return chr(code) if (code >= 32 and code < 0xD800) or 0xE000 <= code <= 0x10FFFF else " "
