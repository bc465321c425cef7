"""The reader of XMP packets: as every reader takes the good ones, and what can be had of the others."""

import time
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingress import xmp

EXT = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
DC = "{http://purl.org/dc/elements/1.1/}"
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
BODY = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" Iptc4xmpExt:DigitalSourceType="{TERM}">'
    "{}</rdf:Description></rdf:RDF></x:xmpmeta>"
).replace("{}", "%s")
PACKET = f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{BODY}<?xpacket end="w"?>'


def found(packet: bytes) -> dict[str, str]:
    return dict(xmp.properties(packet)[0])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be"])
def test_every_encoding_of_unicode_is_read(encoding):
    text = PACKET % "<photoshop:City>Zürich 東京</photoshop:City>"
    properties, is_whole = xmp.properties(text.encode(encoding))
    assert dict(properties) == {
        EXT + "DigitalSourceType": TERM,
        "{http://ns.adobe.com/photoshop/1.0/}City": "Zürich 東京",
    }
    assert is_whole


@pytest.mark.parametrize(
    "packet",
    [
        PACKET % "<photoshop:City>Dolce & Gabbana</photoshop:City>",
        PACKET % "<photoshop:City>page&#12;break &nbsp; &unknown;</photoshop:City>",
        PACKET % "<photoshop:City>a\x00b\x01c</photoshop:City>",
        PACKET % "<photoshop:City>a < b</photoshop:City>",
        PACKET % "<photoshop:City>cat <lora:detail:0.8> dog</photoshop:City>",
        PACKET % "<photoshop:City>never closed",
        PACKET % "</photoshop:Never></rdf:li>",
        PACKET % '<photoshop:City xml:lang="x" a=b c="1 > 0"/>',
        (PACKET % "").replace("rdf:about", 'dc:format="image/jpeg" rdf:about'),
        (PACKET % "").replace(' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"', ""),
        (PACKET % "").replace("iptc.org/std/Iptc4xmpExt/2008-02-29/", "iptc.org/std/Iptc4xmpExt/2008-02-29"),
        (PACKET % "").replace("xmpmeta", "xapmeta"),
        (PACKET % "").replace("<x:xmpmeta", '<foo:bar xmlns:foo="urn:foo"><x:xmpmeta'),
        (PACKET % "").replace('xmlns:x="adobe:ns:meta/"', ""),
        PACKET % "" + PACKET % "",
        (PACKET % "")[: (PACKET % "").index("</rdf:Description")],
        "\n\n junk " + BODY % "",
        '<?xml version="1.1" encoding="ISO-8859-1"?><!DOCTYPE a [<!ENTITY b "c">]>' + BODY % "",
    ],
)
def test_what_a_strict_reader_refuses_is_still_read(packet):
    assert found(packet.encode())[EXT + "DigitalSourceType"] == TERM


def test_a_byte_of_another_encoding_is_read_as_latin_1():
    packet = (PACKET % "<photoshop:City>Z#rich</photoshop:City>").encode().replace(b"#", b"\xfc")
    assert found(packet)["{http://ns.adobe.com/photoshop/1.0/}City"] == "Zürich"


def test_text_that_nobody_escaped_stays_text():
    packet = PACKET % "<photoshop:City>cat <lora:detail:0.8> dog</photoshop:City>"
    assert found(packet.encode())["{http://ns.adobe.com/photoshop/1.0/}City"] == "cat <lora:detail:0.8> dog"


@pytest.mark.parametrize(
    ("packet", "is_whole"), [(PACKET % "", True), (BODY[:200], False), ("<not closed", False), ("", True)]
)
def test_a_packet_that_is_cut_off_is_said_to_be(packet, is_whole):
    assert xmp.properties(packet.encode())[1] == is_whole


@pytest.mark.parametrize(
    "packet",
    [
        b'<a "' * 200_000, b"<rdf:RDF " + b" " * 800_000, b"<a '\"" * 150_000, b"<dc:a>" * 120_000,
        b"<dc:a " + b"b" * 800_000 + b">", b"<!DOCTYPE [" * 70_000, b"<dc:a>" + b"&" * 800_000,
        b"<dc:a " + b'="' * 400_000, b"<rdf:RDF>" + b"<a:b xmlns:a='u:1'/>" * 40_000,
        b"<dc:a>" * 250 + b"</dc:b>" * 100_000, b"<!--" * 200_000,
    ],
)  # fmt: skip
@pytest.mark.no_cover  # tracing takes eight times as long
def test_the_time_is_linear_whatever_a_packet_is_built_of(packet):
    started = time.process_time()
    xmp.properties(packet)
    assert time.process_time() - started < 2  # 0.8 MB take some 0.3 s at worst


NAMES = st.sampled_from([EXT + "DigitalSourceType", DC + "title", DC + "format"])
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f\ufeff"), max_size=20)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine draws slowly
@given(attributes=st.dictionaries(NAMES, VALUES, max_size=3), elements=st.lists(st.tuples(NAMES, VALUES), max_size=4))
def test_a_well_formed_packet_gives_what_was_put_into_it(attributes, elements):
    root = ElementTree.Element(f"{{{xmp.RDF}}}RDF")
    description = ElementTree.SubElement(root, f"{{{xmp.RDF}}}Description", attributes)
    for name, value in elements:
        ElementTree.SubElement(description, name).text = value
    properties, is_whole = xmp.properties(ElementTree.tostring(root, encoding="utf-8"))
    written = [*attributes.items(), *((name, value.strip()) for name, value in elements if value.strip())]
    assert is_whole
    assert sorted((name, " ".join(value.split())) for name, value in properties) == sorted(
        (name, " ".join(value.split())) for name, value in written
    )
