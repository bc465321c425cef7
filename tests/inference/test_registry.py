"""The tables agree: profiles name detectors and artifacts that exist, and a wrong name is told with the nearest."""

from __future__ import annotations

import re

import pytest

from inference.registry import DETECTORS, select_detectors
from models.loaders import SHIPPED
from utils.errors import BadSettings
from utils.profiles import PROFILES


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_names_detectors_and_a_fusion_artifact_that_exist(profile: str) -> None:
    assert select_detectors(profile) == PROFILES[profile].detectors
    assert set(PROFILES[profile].detectors) <= DETECTORS.keys()
    assert (SHIPPED / PROFILES[profile].fusion / "model.json").is_file()


def test_a_setting_adds_detectors_and_a_mistyped_one_is_told_the_nearest() -> None:
    assert select_detectors("embedded", ("ghostnet", "clip_b16")) == (*PROFILES["embedded"].detectors, "ghostnet")
    with pytest.raises(BadSettings, match=re.escape("no detector 'ghostnt'; did you mean 'ghostnet'?")):
        select_detectors("embedded", ["ghostnt"])


def test_two_detectors_for_one_feature_are_refused() -> None:
    with pytest.raises(BadSettings, match="both give mantra_anomaly"):
        select_detectors("embedded", ["mantranet"])
