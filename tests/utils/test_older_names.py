"""Settings by the names of older systems: understood where they mean something, told where they do nothing."""

import logging

import pytest

from utils.settings import Settings, load_settings


@pytest.mark.parametrize(
    ("name", "value", "section", "field", "meant"),
    [
        ("API_HOST", "0.0.0.0", "api", "host", "0.0.0.0"),
        ("API_PORT", "9000", "api", "port", 9000),
        ("API_DEBUG", "True", "log", "level", "DEBUG"),
        ("API_DEBUG", "0", "log", "level", "WARNING"),
        ("CLASSIFIER_TYPE", "light", "models", "profile", "light"),
        ("CLIP_MODEL_NAME", "ViT-H-14", "models", "detectors", ("clip_h14",)),
        ("CLIP_MODEL_NAME", "laion/CLIP-ViT-bigG-14-laion2B", "models", "detectors", ("clip_bigg",)),
        ("CLIP_MODEL_NAME", "openai/clip-vit-base-patch16", "models", "detectors", ("clip_b16",)),
    ],
)
def test_an_older_name_is_understood(monkeypatch, caplog, name, value, section, field, meant):
    monkeypatch.setenv(name, value)
    assert getattr(getattr(load_settings(), section), field) == meant
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("CLASSIFIER_TYPE", "svm", "IMGV_PROFILE"),
        ("CLIP_MODEL_NAME", "RN50", "clip_h14"),
        ("API_PORT", "tcp://10.0.0.1:80", "IMGV_API_PORT"),
    ],
)
def test_one_that_does_nothing_is_told_and_changes_nothing(monkeypatch, caplog, name, value, instead):
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert load_settings() == Settings.of()
    (told,) = caplog.messages
    assert name in told
    assert instead in told


def test_the_token_for_gated_downloads_has_an_effect_and_is_not_told(monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")  # scripts.download_weights sends it
    with caplog.at_level(logging.DEBUG):
        assert load_settings() == Settings.of()
    assert caplog.records == []


def test_our_own_name_comes_first_wherever_it_stands(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.settings.ENV_FILE", tmp_path / ".env")
    (tmp_path / ".env").write_text("IMGV_API_PORT=8001\nAPI_HOST=::1\n")
    monkeypatch.setenv("API_PORT", "9000")
    api = load_settings().api
    assert (api.port, api.host) == (8001, "::1")
