import logging
from pathlib import Path

import pytest

from embedding_studio.errors import InvalidSettingError
from embedding_studio.settings import KNOBS, NEUTRAL, Settings, load_settings, settings_markdown


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_documented_variables_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("ADJUSTMENT_RATE", "0.1")
    monkeypatch.setenv("NUM_ITERATIONS", "15")
    monkeypatch.setenv("SOFTMIN_TEMPERATURE", "1.0")
    monkeypatch.setenv("IMPROVEMENT_SECONDS_INTERVAL", "3600")
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example")

    settings = load_settings()

    assert settings.adjustment_rate == 0.1
    assert settings.num_iterations == 15
    assert settings.softmin_temperature == 1.0
    assert settings.improvement_seconds_interval == 3600
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    "given", ["https://a.example/", "a.example", '["https://a.example"]', "https://A.example", "https://a b"]
)
def test_an_origin_that_no_browser_sends_is_refused(monkeypatch, given):
    monkeypatch.setenv("CORS_ORIGINS", f"https://b.example,{given}")

    with pytest.raises(InvalidSettingError, match=r"CORS_ORIGINS: .* is no origin as browsers send it"):
        load_settings()


@pytest.mark.parametrize(
    "given", ["*", "null", "http://127.0.0.1:3000", "http://[::1]:80", "app://localhost"]
)
def test_origins_are_taken_as_browsers_send_them(monkeypatch, given):
    monkeypatch.setenv("CORS_ORIGINS", given)

    assert load_settings().cors_origins == (given,)


@pytest.mark.parametrize("name", ["data_dir", "embedder", "host"])
def test_a_variable_that_is_empty_leaves_the_default(monkeypatch, name):
    monkeypatch.setenv(name.upper(), "")

    assert getattr(load_settings(), name) == Settings.model_fields[name].default


def test_a_file_dot_env_is_read(tmp_path):
    Path(tmp_path / ".env").write_text("GATE_THRESHOLD=0.8\n")

    assert load_settings().gate_threshold == 0.8


@pytest.mark.parametrize(
    ("name", "preset", "value"),
    [(name, preset, value) for name, knob in KNOBS.items() for preset, value in knob.presets.items()],
)
def test_a_preset_by_name_lies_in_the_documented_range(name, preset, value):
    settings = load_settings(**{name: preset})

    assert getattr(settings, name) == value
    assert KNOBS[name].low <= value <= KNOBS[name].high


@pytest.mark.parametrize("name", KNOBS)
def test_the_default_lies_in_the_documented_range(name, caplog):
    load_settings()

    assert caplog.records == []
    assert KNOBS[name].low <= Settings.model_fields[name].default <= KNOBS[name].high


@pytest.mark.parametrize(
    ("name", "value", "documented"),
    [
        ("adjustment_rate", 0.9, "0.01 to 0.5"),
        ("num_iterations", 51, "5.0 to 50.0"),
        ("softmin_temperature", 0.05, "0.1 to 5.0"),
        ("improvement_seconds_interval", 200, "300.0 to 86400.0"),
    ],
)
def test_a_value_outside_the_documented_range_is_used_with_a_warning(name, value, documented, caplog):
    with caplog.at_level(logging.WARNING):
        settings = load_settings(**{name: value})

    assert getattr(settings, name) == value
    assert f"{name.upper()}={value} is outside the documented range {documented}" in caplog.text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"adjustment_rate": 0}, "ADJUSTMENT_RATE: Input should be greater than 0"),
        ({"num_iterations": "fast"}, "NUM_ITERATIONS: give a number or one of quick, standard, deep"),
        ({"gate_threshold": 1}, "GATE_THRESHOLD: Input should be less than 1"),
        ({"recall_target": 0.5}, "RECALL_TARGET: Input should be greater than 0.5"),
        ({"recall_target": 1.01}, "RECALL_TARGET: Input should be less than or equal to 1"),
        ({"adjuster": "adam"}, "ADJUSTER: Input should be 'passive_aggressive' or 'torch'"),
        ({"event_weights": {"click": 0}}, "at least one type of event needs a weight above 0"),
        ({"event_weights": {"click": -1}}, "weights are numbers from 0 upwards"),
        ({"event_weights": {"click": "a"}}, "EVENT_WEIGHTS.click: Input should be a valid number"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_a_sentence(given, told):
    with pytest.raises(InvalidSettingError) as refused:
        load_settings(**given)

    assert told in str(refused.value)
    assert "`embedding-studio settings` lists" in str(refused.value)


def test_a_refusal_does_not_repeat_a_secret(monkeypatch):
    monkeypatch.setenv("ADMIN_API_KEY", "very-secret-0123456789")
    monkeypatch.setenv("PORT", "-1")

    with pytest.raises(InvalidSettingError) as refused:
        load_settings()

    assert "very-secret-0123456789" not in str(refused.value)
    assert "very-secret-0123456789" not in repr(load_settings(port=0))


def test_weights_that_are_no_json_are_refused_with_a_sentence(monkeypatch):
    monkeypatch.setenv("EVENT_WEIGHTS", "click:1")

    with pytest.raises(InvalidSettingError, match=r"EVENT_WEIGHTS is not JSON"):
        load_settings()


def test_event_types_of_weight_zero_place_no_orders():
    settings = load_settings(event_weights={"click": 1, "impression": 0, "purchase": 3})

    assert settings.learning_event_types == {"click", "purchase"}


def test_the_fingerprint_tells_apart_what_ranks_or_teaches_differently_and_nothing_else():
    usual = load_settings().fingerprint()

    for other in (
        {"gate_threshold": 0.8}, {"query_shift": 0.5}, {"adjuster": "torch"}, {"shared_min_users": 3},
        {"event_weights": {"click": 2.0}}, {"max_sessions_per_user": 9}, {"embedder": "none"},
    ):  # fmt: skip
        assert load_settings(**other).fingerprint() != usual, other
    for same in (
        {"port": 9},
        {"worker_metrics_port": 9},
        {"pool_size": 3},
        {"data_dir": "x"},
        {"lease_seconds": 5},
        {"embedder_api_key": "k"},
    ):
        assert load_settings(**same).fingerprint() == usual, same
    assert Settings.model_fields.keys() >= NEUTRAL


def test_every_setting_stands_in_the_table_with_its_meaning():
    rows = settings_markdown().splitlines()[2:]

    assert [row.split("`")[1] for row in rows] == [name.upper() for name in Settings.model_fields]
    assert all(field.description for field in Settings.model_fields.values())


def test_a_setting_that_is_no_json_is_named_as_it_is_written(tmp_path):
    Path(tmp_path / ".env").write_text('EVENT_WEIGHTS={"click":1,\n')

    with pytest.raises(InvalidSettingError, match=r"^EVENT_WEIGHTS is not JSON") as refused:
        load_settings()

    assert "Source" not in str(refused.value)


def test_a_name_in_dot_env_that_is_nearly_a_setting_is_warned_of(tmp_path, caplog):
    Path(tmp_path / ".env").write_text("SHARED_MINUSERS=5\nGATE_THRESHOLD=0.8\nPYTHONPATH=x\n")

    load_settings()

    assert caplog.messages == ["SHARED_MINUSERS in .env is no setting; is SHARED_MIN_USERS meant?"]
