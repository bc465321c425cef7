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
    ("name", "value"),
    [
        *[("MAX_BYTES", "-1"), ("MAX_BYTES", str(10**20)), ("DECODE_SECONDS", "inf"), ("FETCH_SECONDS", "1e300")],
        *[("PROFILE", "huge"), ("THRESHOLD", "2"), ("FETCH_PORTS", "80;443"), ("FETCH_PORTS", "80,65536")],
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(f"IMGV_{name}", value)
    with pytest.raises(BadSettings, match=f"IMGV_{name}"):
        load_settings()


def test_a_mistyped_setting_is_refused_wherever_it_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("imgv_treshold", "0.9")
    with pytest.raises(BadSettings, match=r"imgv_treshold: .* did you mean IMGV_THRESHOLD"):
        load_settings()
    monkeypatch.delenv("imgv_treshold")
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("OTHER=1\nIMGV_SPEED=7\n")
    with pytest.raises(BadSettings, match="IMGV_SPEED"):
        load_settings()


def test_a_path_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings(c2pa_trust_anchors="~/a.pem", weights_dir="~/w", queue_embedded_dir="~/q")
    paths = (settings.c2pa_trust_anchors, settings.weights_dir, settings.queue_embedded_dir)
    assert paths == (tmp_path / "a.pem", tmp_path / "w", tmp_path / "q")


def test_the_command_line_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("IMGV_PROFILE", "full")
    assert load_settings(profile="embedded").profile == "embedded"
    assert load_settings().profile == "full"
