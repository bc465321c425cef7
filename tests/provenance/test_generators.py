"""The table of signatures: every row hits what its generator writes, and none of the known traps."""

import json
import time

import pytest

from provenance import generators
from provenance.generators import Shelf, c2pa_product, find, find_editor, find_tc260, source_type, table
from utils.contracts import Field, Metadata

UUID = "2b6e053b-9a65-4ca9-9e13-b6f4465164d4"
A1111 = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: x"
CREATOR_TOOL = "{http://ns.adobe.com/xap/1.0/}CreatorTool"
CREDIT = "{http://ns.adobe.com/photoshop/1.0/}Credit"
SIGNATURE = "Signature: " + "Ab3+" * 30 + "=="


def carrying(*fields: tuple[str, str, str]) -> Metadata:
    return Metadata(tuple(Field(*field) for field in fields))


EXAMPLES = [(row, example) for row in table().signature for example in row.examples]


@pytest.mark.parametrize(("row", "example"), EXAMPLES, ids=[row.generator for row, _ in EXAMPLES])
def test_every_signature_is_found_in_its_examples(row, example):
    fields = carrying(*((*place, text) for place, text in example))
    decisive = row.find(Shelf(fields.fields))
    assert decisive is not None
    hits = {hit.source: hit for hit in find(fields)}
    assert (hits[decisive.source].generator, hits[decisive.source].kind) == (row.generator, row.kind)
    assert all(len(hit.text) <= 200 for hit in hits.values())


@pytest.mark.parametrize("row", table().c2pa_name, ids=lambda row: row.product)
def test_every_c2pa_name_is_known_as_its_product(row):
    for name in row.examples:
        assert c2pa_product(["somebody else", name]) is row


@pytest.mark.parametrize("program", table().generating_programs)
def test_a_generating_program_is_known_by_the_field_of_a_programs_name(program):
    (hit,) = find(carrying(("png_text", "Software", program + " 2.1")))
    assert (hit.generator, hit.kind) == (program + " 2.1", "generated")
    assert find(carrying(("png_text", "Title", program))) == ()


def test_the_table_names_no_trace_twice():
    rows = table().signature
    assert len({row.conditions for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('kind = "generated"', 'kind = "painted"'),
        ('evidence = "source"', 'evidence = "hearsay"'),
        ('"exif:UserComment"', '"exiv:UserComment"'),
        ('where = ["software"]', 'where = ["softwares"]'),
        ("known_from = 2026", "known_form = 2026"),
        ("patterns = ['", "patterns = ['("),
        ("examples = [\n", "examples = []\nothers = [\n"),
    ],
)
def test_a_mistake_in_the_table_is_refused(old, new, tmp_path, monkeypatch):
    text = generators.TABLE.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "signatures.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    monkeypatch.setattr(generators, "TABLE", tmp_path / "signatures.toml")
    with pytest.raises(ValueError):
        table.__wrapped__()


def test_thousands_of_fields_are_gone_through_once_for_each_name():
    fields = carrying(
        *(("png_text", f"note{number}", "x" * 20) for number in range(8000)), ("png_text", "Parameters", A1111)
    )
    began = time.process_time()
    (hit,) = find(fields)
    assert hit.generator == "Stable Diffusion (A1111 record)"
    assert time.process_time() - began < 2


def test_fields_in_several_places_come_in_the_order_of_the_file():
    fields = [Field("exif", "Software", "a"), Field("png_text", "x", "b"), Field("exif", "software", "c")]
    places = [("png_text", "*"), ("exif", "software"), ("exif", "*")]
    assert list(Shelf(fields).at(places)) == fields
    assert list(Shelf(fields).at(places[1:2])) == [fields[0], fields[2]]
    assert list(Shelf(fields).at([("xmp", "*")])) == []


TRAPS = {
    "the Spanish word imagen": [("png_text", "Description", "Una imagen de un gato, imagen 3")],
    "a generator's name in a caption": [("exif", "ImageDescription", "A firefly over the flux of a midjourney in May")],
    "a generator's name in a title": [("png_text", "Title", "Stable Diffusion explained")],
    "a description with no job": [
        ("png_text", "Description", "a cat --v 5.2 --ar 4:3"),
        ("png_text", "Author", "anna"),
    ],
    "a job number that is no Midjourney record": [("png_text", "Description", f"Scan. Job ID: {UUID}")],
    "parameters of an instrument": [("png_text", "parameters", "exposure=20 ms\nSteps: 20\ngain: 3")],
    "steps of a recipe": [("exif", "UserComment", "Steps: 3, Seed: sunflower")],
    "a comment of GIMP": [("png_text", "Comment", "Created with GIMP"), ("png_text", "Software", "GIMP 2.10")],
    "Lightroom's denoise": [("xmp", CREATOR_TOOL, "Adobe Photoshop Lightroom Classic 14.0 (AI Denoise)")],
    "a photographer's credit": [("iptc", "2:110", "Photo made with Google AI conference badge")],
    "a shell prompt": [("png_text", "prompt", "user@host:~$")],
    "a prompt without a graph": [("png_text", "prompt", '{"question": "what is the class?"}')],
    "a workflow of another tool": [("png_text", "workflow", '{"nodes": [], "edges": []}')],
    "a signature that is no Grok": [("exif", "ImageDescription", "Signature: Anna"), ("exif", "Artist", "Anna")],
    "a Grok description without its id": [("exif", "ImageDescription", SIGNATURE), ("exif", "Artist", "Anna")],
    "Apple's maker note": [("exif", "MakerNote", "Apple iOS\0\0\1MM")],
    "a maker note with the word": [("exif", "MakerNote", "xx fooocus")],
    "a camera's firmware": [("exif", "Software", "Ver.1.00"), ("exif", "Make", "NIKON CORPORATION")],
    "a hosting job": [("png_text", "hf-job-id", UUID)],
    "a seed catalogue": [("png_text", "seed", "42")],
    "a product record": [("exif", "UserComment", '{"product": "lamp", "aigc_type": "0"}')],
    "a photograph processed by Canon's Firefly Studio": [("exif", "Software", "Canon Adobe Firefly Lens Profile")],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_no_hit(trap):
    assert find(carrying(*TRAPS[trap])) == ()


@pytest.mark.parametrize(("kind", "counts"), [("4", True), ('\\"4\\"', True), ("0", False), ("-1", True), ("x", False)])
def test_samsungs_record_counts_only_when_a_generative_tool_was_used(kind, counts):
    hits = find(carrying(("trailer", "PhotoEditor_Re_Edit_Data", f'{{"originalPath":"x","genAIType":{kind}}}SEFT')))
    assert [(hit.generator, hit.kind, hit.source) for hit in hits] == [
        ("Samsung Galaxy AI", "edited_with_ai", "trailer")
    ] * counts


def test_one_hit_for_each_source_the_most_specific_first():
    fields = ("png_text", "parameters", A1111), ("png_text", "fooocus_scheme", "a1111"), ("exif", "UserComment", A1111)
    assert [(hit.generator, hit.source) for hit in find(carrying(*fields))] == [
        ("Fooocus", "png_text"),
        ("Stable Diffusion (A1111 record)", "exif"),
    ]


def test_prompts_come_back_capped_and_free_of_controls():
    (hit,) = find(carrying(("png_text", "parameters", "\x1b[31m\u202e" + "x" * 9000 + A1111)))
    assert len(hit.text) == 200
    assert hit.text.isprintable()


@pytest.mark.parametrize(
    "name", ["Adobe Photoshop 22.4 (Windows)", "GIMP 2.8.14", "Snapseed 2.0", "Picasa", "Lightroom"]
)
def test_an_editor_is_known_by_its_own_field(name):
    assert find_editor(carrying(("exif", "Software", name))).generator == name
    assert find_editor(carrying(("exif", "ImageDescription", name))) is None


@pytest.mark.parametrize("firmware", ["HDR+ 1.0.3", "Ver.1.00", "18.6.1", "Google", "COOLPIX S4300V1.0", "Canvas 5"])
def test_a_cameras_firmware_is_no_editor(firmware):
    assert find_editor(carrying(("exif", "Software", firmware))) is None


@pytest.mark.parametrize(
    ("value", "term"),
    [
        ("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia", "trainedAlgorithmicMedia"),
        ("https://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia", "algorithmicMedia"),
        ("http://c2pa.org/digitalsourcetype/trainedAlgorithmicData", "trainedAlgorithmicData"),
        (" trainedAlgorithmicMedia ", "trainedAlgorithmicMedia"),
        ("http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia/", "trainedAlgorithmicMedia"),
        ("http://www.cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia", "trainedAlgorithmicMedia"),
        ("HTTP://CV.IPTC.ORG/NEWSCODES/DIGITALSOURCETYPE/TRAINEDALGORITHMICMEDIA", "trainedAlgorithmicMedia"),
        ("cv.iptc.org/newscodes/digitalsourcetype/digitalcapture", "digitalCapture"),
        ("digsrctype:compositeSynthetic", "compositeSynthetic"),
        ("http://example.com/trainedAlgorithmicMedia", None),
        ("not trainedAlgorithmicMedia", None),
    ],
)
def test_a_source_type_is_read_whole(value, term):
    assert source_type(value) == term


@pytest.mark.parametrize(
    "term", ["algorithmicMedia", "algorithmicallyEnhanced", "screenCapture", "composite", "TRAINEDALGORITHMICMEDIA"]
)
def test_source_types_that_do_not_mean_ai_have_no_ai_kind(term):
    assert generators.SOURCE_TYPE_KINDS.get(term) not in ("generated", "edited_with_ai")


def test_every_phone_photograph_is_a_capture_and_not_ai():
    assert generators.SOURCE_TYPE_KINDS["computationalCapture"] == "captured"


LABEL = {"Label": "1", "ContentProducer": "doubao", "ProduceID": "7", "ReservedCode1": ""}


@pytest.mark.parametrize(
    "field",
    [
        ("xmp", "{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC", json.dumps(LABEL)),
        ("png_text", "AIGC", json.dumps(LABEL)),
        ("png_text", "AIGC", json.dumps({"AIGC": LABEL})),
        ("exif", "UserComment", json.dumps({"AIGC": LABEL})),
        ("exif", "UserComment", json.dumps({"AIGC": json.dumps(LABEL)})),
        ("app", "APP9", "AIGC" + json.dumps(LABEL)),
        ("app", "APP2", "AIGC\0" + json.dumps(LABEL)),
    ],
)
def test_the_chinese_label_is_read_in_every_form(field):
    _, label = find_tc260(carrying(field))
    assert (label["Label"], label["ContentProducer"]) == ("1", "doubao")


@pytest.mark.parametrize(
    "field",
    [
        ("exif", "ImageDescription", "About AIGC and its Label"),
        ("exif", "UserComment", json.dumps({"Label": "1", "about": "AIGC"})),
        ("exif", "UserComment", '{"AIGC": {"x": 1}}'),
        ("png_text", "AIGC", "[" * 60_000),
        ("png_text", "AIGC", '{"a":' * 10_000),
        ("png_text", "AIGC", '{"AIGC": "not json"}'),
    ],
)
def test_what_is_no_chinese_label_is_not_read_as_one(field):
    assert find_tc260(carrying(field)) is None


def test_c2pa_names_become_products_and_only_pure_generators_count_alone():
    openai, dreamina = c2pa_product(["ChatGPT", "Truepic"]), c2pa_product(["Dreamina/1.2"])
    assert (openai.product, openai.only_generates) == ("OpenAI", False)
    assert (dreamina.product, dreamina.only_generates) == ("Dreamina (ByteDance)", True)
    assert c2pa_product(["Adobe Photoshop", "Adobe Inc."]) is None


RECORD_PLACES = [
    ("png_text", "Parameters"),
    ("png_text", "Comment"),
    ("exif", "UserComment"),
    ("exif", "ImageDescription"),
    ("exif", "XPComment"),
    ("comment", "COM"),
    ("comment", "GIF"),
    ("iptc", "2:120"),
    ("xmp", "{http://purl.org/dc/elements/1.1/}description"),
]


@pytest.mark.parametrize("place", RECORD_PLACES)
@pytest.mark.parametrize(
    "record", [A1111, "a cat\nSteps: 20, Size: 512x512, Model: x", "a cat,.Steps: 4, Sampler: Euler, Version: v1.10"]
)
def test_a_record_of_settings_is_found_in_every_place_for_text(place, record):
    assert [(hit.kind, hit.source) for hit in find(carrying((*place, record)))] == [("generated", place[0])]


@pytest.mark.parametrize(
    "text",
    [
        "Steps: 3, Seed: sunflower",
        "Steps: 12, then turn left. Size: XL",
        "Recipe. Steps: 4, Size: large",
        '{"prompt": "Which animal?", "answer": "cat"}',
        '{"seed": 7, "steps": 12, "dance": "waltz"}',
        '{"c": 1, "uc": 2}',
    ],
)
def test_texts_with_the_same_words_are_no_record(text):
    assert find(carrying(("exif", "ImageDescription", text), ("png_text", "Comment", text))) == ()
