"""Settings: documented, validated, and named in errors."""

from pathlib import Path

import pytest
from dotenv import dotenv_values

from utils.errors import BadSettings
from utils.settings import Settings, load_settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def test_the_example_lists_every_setting_with_its_default(monkeypatch):
    values = dotenv_values(EXAMPLE)
    assert list(values) == [f"IMGV_{name.upper()}" for name in Settings.model_fields]
    monkeypatch.setattr(Settings, "model_config", Settings.model_config | {"env_file": None})
    assert Settings(_env_file=EXAMPLE) == Settings()


def test_the_example_explains_every_setting():
    comments = EXAMPLE.read_text()
    for field in Settings.model_fields.values():
        assert f"# {field.description}" in comments


@pytest.mark.parametrize(
    ("name", "value"), [("MAX_BYTES", "-1"), ("PROFILE", "huge"), ("THRESHOLD", "2"), ("FETCH_PORTS", "80;443")]
)
def test_a_bad_value_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(f"IMGV_{name}", value)
    with pytest.raises(BadSettings, match=f"IMGV_{name}"):
        load_settings()


def test_the_command_line_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("IMGV_PROFILE", "full")
    assert load_settings(profile="embedded").profile == "embedded"
    assert load_settings().profile == "full"
