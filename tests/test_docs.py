"""What the documentation and the page list is what the code has."""

import re
from pathlib import Path
from typing import get_args

from api.jobs import Stage
from inference.registry import feature_meanings
from provenance import claims, exif
from scripts.signals_table import table
from tests.fakes import flat_sample
from utils import errors
from utils.contracts import GRADES, PUBLIC_FEATURES, Tier

README = Path(__file__).parent.parent / "README.md"
DOCS = README.with_name("docs")
PAGE = README.parent / "api" / "static"


def test_every_error_code_is_documented_with_its_kind():
    kinds = {
        errors.InputError: "input",
        errors.TransientError: "transient",
        errors.SetupError: "setup",
        errors.TrainingError: "training",
    }
    codes = {cls.code: name for kind, name in kinds.items() for cls in kind.__subclasses__()}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert dict(rows) == codes


def test_the_table_of_signals_is_current():
    assert (DOCS / "signals.md").read_text() == table(), "run: python -m scripts.signals_table > docs/signals.md"


def test_the_feature_vector_starts_with_the_public_names():
    assert tuple(feature_meanings())[:9] == PUBLIC_FEATURES


def test_the_fields_of_a_verdict_name_tiers_grades_and_public_names_in_their_order():
    text = (DOCS / "fields.md").read_text()
    tiers = re.search(r"^\| `tier` \| (.*?), each", text, re.MULTILINE)
    grades = re.search(r"A claim's grade says what it is worth: (.*?)\. ", text, re.DOTALL)
    assert tiers and tuple(re.findall(r"`(\w+)`", tiers[1])) == get_args(Tier)
    assert grades and tuple(re.findall(r"`(\w+)`", grades[1])) == GRADES[::-1]
    assert f"| `{PUBLIC_FEATURES[0]}` … `{PUBLIC_FEATURES[-1]}`, `signals` |" in text


def test_the_glossary_defines_each_word_once_and_names_files_that_exist():
    rows = re.findall(r"^\| ([a-z ]+) \| (.*) \| `(\S+)` \|$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    words = [word for word, _, _ in rows]
    assert len(words) == len(set(words)) > 40
    assert [place for _, _, place in rows if not (README.parent / place).exists()] == []
    assert all(meaning.endswith(".") for _, meaning, _ in rows)


def test_the_page_has_words_for_every_stage_of_a_job():
    table = re.search(r"const STAGES = \{(.*)\};", (PAGE / "page.js").read_text())
    assert table
    assert set(get_args(Stage)) - {"failed"} <= set(re.findall(r"(\w+): \"", table[1]))


def test_the_page_shows_every_fact_of_a_files_origin():
    chain = re.search(r"const chain = \[(.*?)\]", (PAGE / "evidence.js").read_text())
    facts = {name for module in (claims, exif) for name in module.measure(flat_sample(9)).facts}
    assert chain and set(re.findall(r'"(\w+)"', chain[1])) == facts
