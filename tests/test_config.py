import json
from pathlib import Path

import pytest
import yaml

from bertray.config import (
    JOBS,
    NightlyConfig,
    ScoreConfig,
    TrainConfig,
    dump_config,
    known_keys,
    load_config,
)
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
        ("max_actors=2", "pool.max_actors"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(word: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key .*did you mean '{near}'"):
        load_config(ScoreConfig, None, [*SCORE, word])


@pytest.mark.parametrize(
    ("job", "word", "wanted"),
    [
        ("train", "optim.lr=1", "unknown key 'optim.lr'; did you mean 'optim.learning_rate'?"),
        ("train", "lr=1", "did you mean 'optim.learning_rate'?"),
        ("train", "training.batch_size=8", "did you mean 'training.per_device_batch_size'?"),
        ("train", "training.epochs=8", "did you mean 'training.num_epochs'?"),
        ("train", "training.learning_rate=1", "did you mean 'optim.learning_rate'?"),
        ("train", "training.fp16=true", "did you mean 'training.precision'?"),
        ("train", "training.save_steps=9", "did you mean 'training.checkpoint_steps'?"),
        ("train", "training.eval_steps=9", "did you mean 'training.validation_steps'?"),
        ("train", "scaling.gpus=2", "did you mean 'scaling.num_workers'?"),
        ("train", "scaling.num_gpus=2", "did you mean 'scaling.num_workers'?"),
        ("train", "model.path=m", "did you mean 'model.base'?"),
        ("score", "outpt.path=x", "no section 'outpt'; did you mean 'output'?"),
        (
            "score",
            "data.path=x",
            "no section 'data' in bertray score (model, text, input, abstain, pool, output)",
        ),
        (
            "score",
            "pool.zzz=1",
            "unknown key 'pool.zzz'; known are min_actors, max_actors, num_gpus, num_threads",
        ),
    ],
)
def test_advice_on_an_unknown_key_is_near_or_a_list(job: str, word: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(JOBS[job], None, [word])
    assert wanted in str(error.value).replace("\n", " ")


def test_a_file_of_another_command_is_told_by_its_sections_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("data: {train: t}\noptim: {learning_rate: 1e-4}\n")
    with pytest.raises(ConfigError) as error:
        load_config(ScoreConfig, file, SCORE)
    assert str(error.value) == (
        f"{file}: no section 'data', 'optim' in bertray score "
        "(model, text, input, abstain, pool, output)"
    )


def test_a_value_where_there_are_keys_too_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.path: model has a value of its own"):
        load_config(ScoreConfig, None, ["model=/m", "model.path=/m"])


def test_no_message_repeats_a_webhook(tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    for text in ("alert: https://hush\n", "alert: {webhook: [https://hush]}\n"):
        file.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_config(NightlyConfig, file, ["alert.on=always"])
        assert "hush" not in str(error.value)
        assert "alert" in str(error.value)


def test_a_key_with_a_dot_in_a_file_is_shown_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "score.yaml"
    file.write_text("model.path: m\n")
    with pytest.raises(ConfigError, match=r"write `model:`, and below it `path: \.\.\.`"):
        load_config(ScoreConfig, file, SCORE)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"input\.path must be given"):
        load_config(ScoreConfig, None, ["model.path=m", "output.path=o"])
    with pytest.raises(ConfigError, match=r"output\.path must be given"):
        load_config(ScoreConfig, None, ["model.path=m", "input.path=i"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pool.max_actors=0", r"pool\.max_actors=0: expected at least 1"),
        ("pool.max_actors=many", r"pool\.max_actors='many': expected a whole number$"),
        ("pool.num_gpus=many", r"pool\.num_gpus='many': expected a number or 'auto'$"),
        ("model=/tmp/x", r"model: expected a section with keys, such as model: \{path: \.\.\.\}"),
        ("output.replace=perhaps", r"output\.replace='perhaps': expected true or false"),
        ("pool.num_gpus=null", r"pool\.num_gpus not given: expected a number or .auto."),
        ("pool.num_gpus=-1", r"pool\.num_gpus=-1"),
        ("model.dtype=float8", r"model\.dtype='float8'"),
        ("model.max_length=none", r"model\.max_length='none'"),
        ("replace", "'replace' is not a setting; write key=value"),
        ("pool.min_actors=[", "not valid YAML"),
    ],
)
def test_a_bad_value_names_its_key(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(ScoreConfig, None, [word] if word.startswith("model=") else [*SCORE, word])


@pytest.mark.parametrize(
    ("job", "word", "line"),
    [
        ("train", "text.stride=3", "text.stride is for text.long=window, not truncate"),
        (
            "train",
            "scaling.num_workers=auto",
            "scaling.num_workers='auto': expected a whole number or a list, as in 2 or [2, 8]",
        ),
        (
            "train",
            "scaling.num_workers=[1, 2, 3]",
            "scaling.num_workers=[1, 2, 3]: expected at most 2 values, as in 2 or [2, 8]",
        ),
        (
            "train",
            "augmentation.translation_models=[a]",
            "augmentation.translation_models=['a']: expected one value more",
        ),
        (
            "train",
            "training.class_weights={0: heavy}",
            "training.class_weights.0='heavy': expected a number",
        ),
        (
            "train",
            "training.class_weights=3",
            "training.class_weights=3: expected 'balanced' or a mapping, as in {name: value}",
        ),
        (
            "evaluate",
            "gate.at_least.accuracy=high",
            "gate.at_least.accuracy='high': expected a number",
        ),
        (
            "evaluate",
            "gate.name=x",
            "gate.store not given, gate.name=x: they go together; give both",
        ),
    ],
)
def test_what_is_wrong_with_a_value_is_one_line_in_our_words(
    job: str, word: str, line: str
) -> None:
    words = {"train": TRAIN, "evaluate": ["model.path=m", "data.path=d", "output.path=o"]}[job]
    with pytest.raises(ConfigError) as error:
        load_config(JOBS[job], None, [*words, word])
    assert str(error.value) == f"the command line: {line}"


def test_each_key_that_is_wrong_has_a_line() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(ScoreConfig, None, [*SCORE, "pool.max_actors=x", "pool.num_gpus=x"])
    assert [line.split("=")[0].split()[-1] for line in str(error.value).splitlines()] == [
        "pool.max_actors",
        "pool.num_gpus",
    ]


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


REQUIRED = {
    "train": TRAIN,
    "evaluate": ["model.path=m", "data.path=d", "output.path=o"],
    "score": SCORE,
    "report": ["input.path=i"],
    "nightly": SCORE,
}


@pytest.mark.parametrize("job", JOBS)
def test_every_key_can_be_written_in_a_file_as_it_stands(job: str, tmp_path: Path) -> None:
    config = load_config(JOBS[job], None, REQUIRED[job])
    file = tmp_path / "all.yaml"
    with file.open("w") as out:
        for section, keys in config.model_dump(mode="json").items():
            out.write(f"{section}:\n")
            for key, value in keys.items():
                out.write(f"  {key}: {json.dumps(value)}\n")
    assert load_config(JOBS[job], file) == config


def test_words_that_older_yaml_takes_for_switches_are_text(tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text("alert:\n  on: always\n")
    assert load_config(JOBS["nightly"], file, SCORE).model_dump()["alert"]["on"] == "always"
    file.write_text("training:\n  class_weights: {yes: 4, no: 1, Off: 2}\n")
    weights = load_config(TrainConfig, file, TRAIN).training.class_weights
    assert weights == {"yes": 4, "no": 1, "Off": 2}
    word = "training.class_weights={yes: 4}"
    assert load_config(TrainConfig, None, [*TRAIN, word]).training.class_weights == {"yes": 4}
    file.write_text("tracking: {mlflow: no}\n")
    with pytest.raises(ConfigError, match=r"tracking\.mlflow=no: write true, false or"):
        load_config(TrainConfig, file, TRAIN)


@pytest.mark.parametrize(
    ("content", "line", "key", "first"),
    [
        ("input: {path: i}\npool: {}\ninput: {text: t}\n", 3, "input", 1),
        ("input:\n  path: i\n  text: t\n  path: j\n", 4, "path", 2),
    ],
)
def test_a_key_that_is_in_a_file_twice_is_refused(
    content: str, line: int, key: str, first: int, tmp_path: Path
) -> None:
    file = tmp_path / "score.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(ScoreConfig, file, SCORE)
    assert str(error.value) == (
        f"{file}: line {line}: {key!r} is in line {first} already; put both together"
    )


def test_a_section_whose_keys_are_all_commented_out_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "score.yaml"
    file.write_text("model: {path: m}\npool:\n  # max_actors: 2\n")
    assert load_config(ScoreConfig, file, [*SCORE, "pool.max_actors=3"]).pool.max_actors == 3


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
