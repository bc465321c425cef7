"""What tests of every folder may ask for."""

from __future__ import annotations

import pytest
from sklearn.datasets import load_sample_image

from utils.contracts import RgbArray


@pytest.fixture(scope="session")
def photograph() -> RgbArray:
    """A photograph of 640 x 427 pixels."""
    return load_sample_image("china.jpg")
