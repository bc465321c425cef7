"""Every name in a verdict has its words, in the order that the contracts give."""

from typing import get_args

from inference.words import GRADE_WORDS, TIER_MEANINGS, TIER_WORDS
from utils.contracts import GRADES, Tier


def test_every_tier_has_its_words_from_real_to_ai():
    assert tuple(TIER_WORDS) == tuple(TIER_MEANINGS) == get_args(Tier)


def test_every_grade_has_its_words_the_hardest_to_forge_first():
    assert tuple(GRADE_WORDS) == GRADES[::-1]
