"""What the documentation lists is what the code has."""

import re
from pathlib import Path
from typing import get_args

from inference.registry import feature_meanings
from scripts.signals_table import table
from utils import errors
from utils.contracts import GRADES, PUBLIC_FEATURES, Tier

README = Path(__file__).parent.parent / "README.md"
DOCS = README.with_name("docs")


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


def test_the_readme_lists_tiers_grades_and_public_names_in_their_order():
    text = README.read_text()
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
