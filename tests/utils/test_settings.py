"""Settings: documented, validated, and named in errors."""

from pathlib import Path

import pytest
from dotenv import dotenv_values

from utils.errors import BadSettings
from utils.settings import Settings, load_settings, unprefixed, variables

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def test_the_example_lists_every_setting_with_its_default(monkeypatch):
    values = dotenv_values(EXAMPLE)
    assert list(values) == list(variables())
    monkeypatch.setattr("utils.settings.ENV_FILE", EXAMPLE)
    assert load_settings() == Settings.of()


def test_the_example_explains_every_setting():
    comments = EXAMPLE.read_text()
    for field in variables().values():
        assert f"# {field.description}" in comments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("MAX_BYTES", "-1"), ("MAX_BYTES", str(10**20)), ("DECODE_SECONDS", "inf"), ("FETCH_SECONDS", "1e300")],
        *[("PROFILE", "huge"), ("THRESHOLD", "2"), ("FETCH_PORTS", "80;443"), ("FETCH_PORTS", "80,65536")],
        *[("FETCH_PORTS", ","), ("QUEUE_PROFILES", "huge"), ("API_KEYS", "alice"), ("QUEUE_BATCH", "0")],
        *[("PIPELINE_DECODERS", str(2**40)), ("THREADS", str(2**40)), ("QUEUE_LEASE_SECONDS", "1e-9")],
        *[("FUSION", "x" * 300), ("QUEUE_PATHS", "/a:/" + "x" * 300), ("API_HOST", "x" * 300)],
        *[("DECODE_SECONDS", str(10**10)), ("QUEUE_ANSWER_SECONDS", str(10**10)), ("WEIGHTS_DIR", "~nosuchuser/w")],
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(f"IMGV_{name}", value)
    with pytest.raises(BadSettings, match=f"IMGV_{name}"):
        load_settings()


VALUES = ("0", "-1", "1e300", "9" * 400, str(2**40), "nan", "-inf", "abc", " ", "x" * 100_000, "/dev/null", "~", "a\nb",
          "~nosuchuser", "[]", ",", "=", "http://", "redis://[", "127.0.0.1:99999", "\u0661")  # fmt: skip


@pytest.mark.parametrize("name", variables())
def test_a_setting_at_its_ends_is_taken_or_refused_in_one_short_line(monkeypatch, name):
    for value in VALUES:
        monkeypatch.setenv(name, value)
        try:
            load_settings()
        except BadSettings as error:
            assert name in str(error)
            assert len(str(error)) < 400
            assert str(error).isprintable()


def test_the_env_file_of_the_folder_where_it_is_called_is_not_read(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("IMGV_THRESHOLD=0.9\nREDIS_URL=redis://foreign\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings() == Settings.of()


def test_a_mistyped_setting_is_refused_wherever_it_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("imgv_treshold", "0.9")
    with pytest.raises(BadSettings, match=r"imgv_treshold: .* did you mean IMGV_THRESHOLD"):
        load_settings()
    monkeypatch.delenv("imgv_treshold")
    monkeypatch.setattr("utils.settings.ENV_FILE", tmp_path / ".env")
    (tmp_path / ".env").write_text("OTHER=1\nIMGV_SPEED=7\n")
    with pytest.raises(BadSettings, match="IMGV_SPEED"):
        load_settings()


def test_a_path_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings(c2pa_trust_anchors="~/a.pem", weights_dir="~/w", queue_embedded_dir="~/q")
    paths = (settings.models.c2pa_trust_anchors, settings.models.weights_dir, settings.queue.embedded_dir)
    assert paths == (tmp_path / "a.pem", tmp_path / "w", tmp_path / "q")


def test_the_command_line_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("IMGV_PROFILE", "full")
    assert load_settings(profile="embedded").models.profile == "embedded"
    assert load_settings().models.profile == "full"


def test_lists_are_parsed_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    digest = "0" * 64
    settings = Settings.of(
        detectors="dino, ghostnet,",
        fetch_ports="443,8443",
        queue_profiles="full",
        queue_paths=f"~/in:{tmp_path}",
        api_keys=f"alice={digest},bob={digest}",
        api_origins="https://example.org/ , https://example.com",
    )
    assert settings.models.detectors == ("dino", "ghostnet")
    assert settings.fetch.ports == (443, 8443)
    assert settings.queue.profiles == ("full",)
    assert settings.queue.paths == (tmp_path / "in", tmp_path)
    assert settings.api.keys == {"alice": digest, "bob": digest}
    assert settings.api.origins == ("https://example.org", "https://example.com")


def test_what_moved_to_the_pipeline_keeps_its_old_name_and_the_new_one_comes_first(monkeypatch):
    monkeypatch.setenv("IMGV_QUEUE_BATCH", "3")
    assert load_settings().pipeline.batch == 3
    monkeypatch.setenv("IMGV_PIPELINE_BATCH", "5")
    assert load_settings().pipeline.batch == 5


def test_the_server_may_have_the_name_that_platforms_give_it(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://platform")
    assert load_settings().queue.redis_url.get_secret_value() == "redis://platform"
    monkeypatch.setenv("IMGV_REDIS_URL", "redis://ours")
    assert load_settings().queue.redis_url.get_secret_value() == "redis://ours"


def test_names_of_before_are_understood_and_ours_come_first(monkeypatch):
    monkeypatch.setenv("MIN_IMAGES_PER_CLASS", "7")
    monkeypatch.setenv("TRAINING_TIME", "04:30")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    found = load_settings().lifecycle
    assert (found.min_images, found.time, found.tracking_uri) == (7, "04:30", "sqlite:///other.db")
    monkeypatch.setenv("IMGV_MIN_IMAGES_PER_CLASS", "9")
    assert load_settings().lifecycle.min_images == 9


@pytest.mark.parametrize("name", sorted(unprefixed()))
def test_a_name_without_our_prefix_is_told_where_its_setting_is(monkeypatch, name):
    assert any(name in f"{variable} {field.description}" for variable, field in variables().items())
    monkeypatch.setenv(name, "7")  # it sets something, or is refused for what it is
    try:
        assert load_settings() != Settings.of()
    except BadSettings as error:
        assert "see .env.example" in str(error)


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    monkeypatch.setenv("IMGV_MAX_BYTES", "")
    assert load_settings() == Settings.of()


def test_strangers_images_are_decoded_in_a_child_unless_the_settings_say_otherwise():
    assert not Settings.of().decode.in_child
    assert Settings.of().decode.for_strangers().in_child
    assert not Settings.of(decode_in_child=False).decode.for_strangers().in_child


def test_a_file_that_is_no_text_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.settings.ENV_FILE", tmp_path / ".env")
    (tmp_path / ".env").write_bytes(b"A=\xff\xfe")
    with pytest.raises(BadSettings, match=r"\.env"):
        load_settings()
