from pathlib import Path

import pytest
import yaml

from bertray.config import JOBS, ScoreConfig, TrainConfig, dump_config, known_keys, load_config
from bertray.errors import ConfigError

SCORE = ["model.path=m", "input.path=i", "output.path=o"]


def test_the_command_line_beats_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "score.yaml"
    file.write_text("model: {path: m, max_length: 64}\ninput: {path: i, text: body}\n")
    config = load_config(ScoreConfig, file, ["output.path=o", "model.max_length=32"])
    assert (config.model.max_length, config.input.text, config.output.prefix) == (32, "body", "")


def test_every_key_can_be_given_on_the_command_line_alone() -> None:
    words = [*SCORE, "model.dtype=bfloat16", "pool.num_gpus=0.5", "input.columns=[id, text]"]
    config = load_config(ScoreConfig, None, [*words, "output.replace=true", "pool.max_actors=3"])
    assert config.pool.num_gpus == 0.5
    assert config.input.columns == ("id", "text")
    assert config.output.replace


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("model.pth=x", "model.path"),
        ("input.txt=x", "input.text"),
        ("pool.max_actor=2", "pool.max_actors"),
        ("outpt.path=x", "output.path"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(word: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key .*did you mean '{near}'"):
        load_config(ScoreConfig, None, [*SCORE, word])


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"input\.path must be given"):
        load_config(ScoreConfig, None, ["model.path=m", "output.path=o"])
    with pytest.raises(ConfigError, match=r"output\.path must be given"):
        load_config(ScoreConfig, None, ["model.path=m", "input.path=i"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pool.max_actors=0", r"pool\.max_actors=0: .*greater than or equal to 1"),
        ("pool.max_actors=many", r"pool\.max_actors='many'"),
        ("pool.num_gpus=-1", r"pool\.num_gpus=-1"),
        ("model.dtype=float8", r"model\.dtype='float8'"),
        ("model.max_length=none", r"model\.max_length='none'"),
        ("replace", "'replace' is not a setting; write key=value"),
        ("pool.min_actors=[", "not valid YAML"),
    ],
)
def test_a_bad_value_names_its_key(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(ScoreConfig, None, [*SCORE, word])


def test_settings_that_exclude_each_other_are_named() -> None:
    with pytest.raises(ConfigError, match=r"pool\.min_actors=3 is above pool\.max_actors=2"):
        load_config(ScoreConfig, None, [*SCORE, "pool.min_actors=3", "pool.max_actors=2"])


TRAIN = ["model.base=b", "data.train=t", "output.path=o"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text.stride=3"], r"text\.stride is for text\.long=window, not truncate"),
        (["text.long=head_tail", "text.aggregate=max"], r"text\.aggregate is for .* head_tail"),
        (["text.long=window", "data.text_pair=c"], r"text\.long=window takes single texts"),
        (["text.long=window", "text.aggregate=first"], r"text\.aggregate='first'"),
    ],
)
def test_what_long_texts_do_not_allow_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, None, [*TRAIN, *words])


def test_text_keys_take_words_that_yaml_would_read_otherwise() -> None:
    config = load_config(ScoreConfig, None, [*SCORE, "input.text=no", "output.prefix=1e3"])
    assert (config.input.text, config.output.prefix) == ("no", "1e3")


@pytest.mark.parametrize(
    ("raw", "wanted"), [("true", True), ("false", False), ("http://m:5000", "http://m:5000")]
)
def test_a_key_that_takes_text_or_a_switch_can_be_switched(raw: str, wanted: object) -> None:
    config = load_config(TrainConfig, None, [*TRAIN, f"tracking.mlflow={raw}"])
    assert config.tracking.mlflow == wanted


def test_a_learning_rate_may_be_written_with_an_exponent() -> None:
    words = ["model.base=b", "data.train=t", "output.path=o", "optim.learning_rate=1e-4"]
    assert load_config(TrainConfig, None, words).optim.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("{0: 1, 1: 4, -1: 2}", {"0": 1, "1": 4, "-1": 2}),
        ("{true: 4}", {"true": 4}),
        ("{False: 0.5, spam: 2}", {"false": 0.5, "spam": 2}),
        ("balanced", "balanced"),
    ],
)
def test_labels_that_yaml_reads_as_something_else_have_their_names(
    raw: str, wanted: object
) -> None:
    config = load_config(TrainConfig, None, [*TRAIN, f"training.class_weights={raw}"])
    assert config.training.class_weights == wanted
    with pytest.raises(ConfigError, match=r"training\.class_weights"):
        load_config(TrainConfig, None, [*TRAIN, "training.class_weights={0.5: 1}"])


def test_nothing_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL__PATH", "elsewhere")
    monkeypatch.setenv("BERTRAY_MODEL_PATH", "elsewhere")
    assert load_config(ScoreConfig, None, SCORE).model.path == "m"


def test_the_resolved_config_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(ScoreConfig, None, [*SCORE, "input.columns=[a]", "pool.num_gpus=auto"])
    file = tmp_path / "resolved.yaml"
    file.write_text(dump_config(config))
    assert load_config(ScoreConfig, file) == config


@pytest.mark.parametrize("content", ["- a\n- b\n", "model: [", "\xff"])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(ScoreConfig, file)
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_config(ScoreConfig, tmp_path / "gone.yaml")


def test_every_setting_says_what_it_means() -> None:
    for schema in JOBS.values():
        assert all(field.description for _, field in known_keys(schema))


@pytest.mark.parametrize("path", sorted(Path("configs").rglob("*.yaml")), ids=str)
def test_every_config_we_ship_is_valid(path: Path) -> None:
    job = "train" if path.parent.name == "recipes" else path.stem
    schema = next(JOBS[name] for name in JOBS if job.startswith(name))
    assert load_config(schema, path).model_dump()
    assert yaml.safe_load(path.read_text())
