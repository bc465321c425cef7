"""What the documentation lists is what the code has."""

import re
from pathlib import Path

from inference.registry import feature_meanings
from scripts.signals_table import table
from utils import errors
from utils.contracts import PUBLIC_FEATURES

DOCS = Path(__file__).parent.parent / "docs"


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
