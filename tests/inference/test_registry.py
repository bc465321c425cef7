"""The tables agree: profiles name detectors and artifacts that exist, and a wrong name is told with the nearest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inference.ensemble import build_ensemble
from inference.parts import FORENSICS
from inference.registry import DETECTORS, select_detectors
from models.loaders import SHIPPED
from utils.errors import BadSettings
from utils.profiles import PROFILES
from utils.settings import Settings


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_names_detectors_and_a_fusion_artifact_that_exist(profile: str) -> None:
    assert select_detectors(profile) == PROFILES[profile].detectors
    assert set(PROFILES[profile].detectors) <= DETECTORS.keys()
    assert (SHIPPED / PROFILES[profile].fusion / "model.json").is_file()


def test_a_profile_leaves_out_forensics_that_its_fusion_does_not_read(tmp_path: Path) -> None:
    settings = Settings.of(profile="light", weights_dir=tmp_path).models
    without = set(PROFILES["light"].without)
    known = {path.rpartition(".")[2] for path in FORENSICS}
    assert without < known
    with build_ensemble(settings) as light, build_ensemble(settings, inputs=("noise.level",)) as reading:
        assert {each.name for each in light.forensics} == known - without
        assert {each.name for each in reading.forensics} == known - without | {"noise"}
    assert light.unavailable["noise.level"] == "not in the light profile; IMGV_PROFILE=embedded measures it"
    assert "noise.level" not in reading.unavailable


def test_a_setting_adds_detectors_and_a_mistyped_one_is_told_the_nearest() -> None:
    assert select_detectors("embedded", ("ghostnet", "clip_b16")) == (*PROFILES["embedded"].detectors, "ghostnet")
    with pytest.raises(BadSettings, match=re.escape("no detector 'ghostnt'; did you mean 'ghostnet'?")):
        select_detectors("embedded", ["ghostnt"])


def test_two_detectors_for_one_feature_are_refused() -> None:
    with pytest.raises(BadSettings, match="both give mantra_anomaly"):
        select_detectors("embedded", ["mantranet"])
