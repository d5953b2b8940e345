"""The command line: parses words, calls one function, prints what a person wants to know.

    bertray train|evaluate|score|nightly|doctor [CONFIG.yaml] [key=value ...]
    bertray report OUTPUT [key=value ...]
    bertray status OUTPUT
    bertray explain MODEL TEXT

Exit codes: 0 done · 1 bug · 2 the user's config or data · 3 done, but shards or rows were
quarantined · 4 the gate refused the model, or the night drifted.
"""

import logging
from typing import Annotated, TypeVar

import typer

from bertray import __version__
from bertray.config import (
    EvaluateConfig,
    NightlyConfig,
    ReportConfig,
    ScoreConfig,
    Section,
    TrainConfig,
    known_keys,
    load_config,
)
from bertray.errors import BertrayError, ConfigError

DONE, BUG, QUARANTINED, REFUSED = 0, 1, 3, 4
YAML = (".yaml", ".yml")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.yaml] [key=value ...]",
        show_default=False,
        help="A config file and settings over it, or settings alone, as in job.yaml "
        "output.path=/lake/out. All keys: docs/configuration.md.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and how long; write nothing.")
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune a BERT-family encoder on Ray, and label every row of a Parquet lake.",
    epilog="Settings: docs/configuration.md. Exit codes: 0 done, 1 bug, 2 your config or data, "
    "3 done but shards or rows were quarantined, 4 refused by the gate, or drifted.",
)
C = TypeVar("C", bound=Section)
_state = {"debug": False}


@app.callback(invoke_without_command=True)
def _global(
    debug: Annotated[bool, typer.Option(help="Show tracebacks and every log line.")] = False,
    version: Annotated[bool, typer.Option(help="Print the version and exit.")] = False,
) -> None:
    _state["debug"] = debug
    if version:
        typer.echo(__version__)
        raise typer.Exit(DONE)


@app.command()
def train(words: Words = None) -> None:
    """Fine-tune an encoder on labelled Parquet; write a bundle."""
    config = _config(TrainConfig, words)
    from bertray.console.train import TrainView
    from bertray.train.run import train as run

    with TrainView() as view:
        view.finish(run(config, on_progress=view.update, on_wait=view.wait), config)


@app.command()
def evaluate(words: Words = None) -> None:
    """Measure a model on labelled Parquet; write metrics.json and report.md."""
    config = _config(EvaluateConfig, words)
    from bertray.console.evaluate import table_of
    from bertray.console.score import ScoreView
    from bertray.evaluate.run import evaluate as run

    with ScoreView("evaluating") as view:
        result = run(config, on_progress=view.update)
        view.show(table_of(result, config))
    if result.verdict is not None and not result.verdict.is_passed:
        raise typer.Exit(REFUSED)


@app.command()
def score(words: Words = None, dry_run: DryRun = False) -> None:
    """Label every row of every shard; write the shards back with the scored columns."""
    config = _config(ScoreConfig, words)
    if dry_run:
        _show_outlook(config)
        return
    from bertray.console.score import ScoreView
    from bertray.score.run import score as run

    with ScoreView("scoring") as view:
        summary = run(config, on_progress=view.update, on_wait=view.wait)
        view.finish(summary, config)
    if summary.quarantined or summary.num_rows_quarantined:
        raise typer.Exit(QUARANTINED)


@app.command()
def nightly(words: Words = None, dry_run: DryRun = False) -> None:
    """Score what is new, say on one page what it is like, and tell whoever is on call."""
    config = _config(NightlyConfig, words)
    if dry_run:
        from bertray.nightly.checks import check, check_challenger
        from bertray.nightly.run import choose_model

        job, bundle = choose_model(config, notes=[])
        check(config, bundle)
        check_challenger(config)
        _show_outlook(job)
        return
    from bertray.console.nightly import table_of
    from bertray.console.score import ScoreView
    from bertray.nightly.run import nightly as run

    with ScoreView("scoring") as view:
        outcome = run(config, on_progress=view.update, on_wait=view.wait)
        view.show(table_of(outcome))
    if outcome.num_shards_quarantined or outcome.num_rows_quarantined:
        raise typer.Exit(QUARANTINED)
    if config.night.fail_on_drift and outcome.drifted:
        raise typer.Exit(REFUSED)


@app.command()
def status(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="An output.path of score.")],
) -> None:
    """Say what an output folder holds, what is missing or stale, and what a run would do."""
    _log()
    from bertray.console.status import show_status
    from bertray.score.status import status_of

    show_status(status_of(output))


@app.command()
def report(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OUTPUT | CONFIG.yaml] [key=value ...]",
            show_default=False,
            help="An output.path of score, or a config file, and settings over it, as in "
            "scored/ explain.num_rows=0. All keys: docs/configuration.md.",
        ),
    ] = None,
) -> None:
    """Put what a scored folder holds, what drifted, and why on one HTML page."""
    folders = [w for w in words or () if not w.endswith(YAML) and not _is_setting(w, ReportConfig)]
    if len(folders) > 1:
        raise ConfigError(f"one scored folder at most, found {', '.join(folders)}")
    others = [word for word in words or () if word not in folders]
    config = _config(ReportConfig, [*others, *(f"input.path={folder}" for folder in folders)])
    from bertray.console.report import show_report
    from bertray.report.run import report as run

    show_report(run(config))


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What model.path takes.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help='In quotes, as in "a dull film".')],
    pair: Annotated[str | None, typer.Option(help="The second text, for models of pairs.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Explain this label. Default: the most probable one.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Where store://NAME@champion is, or models:/NAME@champion.")
    ] = None,
) -> None:
    """Say which words of a text speak for a label, and which against it."""
    _log()
    from bertray.console.explain import show_explanation
    from bertray.model.bundle import open_bundle
    from bertray.report.explain import Explainer

    bundle = open_bundle(model, key="MODEL", root=store)
    found = Explainer(bundle)(text, pair, label=label)
    unit = "score" if bundle.task == "regression" else "log-odds"
    show_explanation(found, (text, *(() if pair is None else (pair,))), unit=unit)


@app.command()
def doctor(words: Words = None) -> None:
    """Check versions, devices, the cluster; by a config of score or nightly, model and input."""
    config = _config(NightlyConfig, words) if words else None
    from bertray.console.doctor import show_findings
    from bertray.doctor import examine

    if not show_findings(examine(config)):
        raise typer.Exit(2)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; gives the exit code. A user sees one message, never a traceback."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except BertrayError as error:
        if _state["debug"]:
            raise
        typer.echo(f"bertray: {error}", err=True)
        return error.exit_code
    except typer.Abort:
        typer.echo("bertray: interrupted; run the same command again to go on", err=True)
        return 130
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a usage error
            typer.echo(f"bertray: {error.format_message()}{_advice(error)}", err=True)
            return 2
        if _state["debug"]:
            raise
        typer.echo(
            f"bertray: unforeseen {type(error).__name__}: {error}\n"
            "This is a bug in bertray or its libraries; `bertray --debug COMMAND ...` shows where.",
            err=True,
        )
        return BUG
    return result if isinstance(result, int) else DONE


def _advice(error: Exception) -> str:
    """What to write in place of words that the command line does not take."""
    option = getattr(error, "option_name", None)
    command = getattr(getattr(getattr(error, "ctx", None), "command", None), "name", None)
    if option in ("--debug", "--version"):
        return f"; it goes before the command: bertray {option} {command} ..."
    if option is not None and "." in option:
        return f"; settings are written without dashes: {option.lstrip('-').partition('=')[0]}=..."
    if command == "explain" and "extra argument" in str(error):
        return '; put the text in quotes, as in bertray explain MODEL "a dull film"'
    return ""


def _show_outlook(config: ScoreConfig) -> None:
    from bertray.console.status import show_status
    from bertray.score.run import prepare
    from bertray.score.status import outlook

    show_status(outlook(prepare(config)))


def _config(schema: type[C], words: list[str] | None) -> C:
    """The job's config from the words after the command: at most one file, then settings."""
    _log()
    files = [word for word in words or () if not _is_setting(word, schema)]
    settings = [word for word in words or () if _is_setting(word, schema)]
    keys = {key for key, _ in known_keys(schema)}
    for word in files:
        if word in keys:
            raise ConfigError(f"{word} is a setting; write {word}=... with its value, no blanks")
    if len(files) > 1:
        raise ConfigError(f"one config file at most, found {', '.join(files)}")
    return load_config(schema, files[0] if files else None, settings)


def _is_setting(word: str, schema: type[Section]) -> bool:
    """Whether a word is ``key=value``, and no path such as /lake/day=2026-11-26."""
    key, equals, _ = word.partition("=")
    return bool(equals) and ("/" not in key or key.partition(".")[0] in schema.model_fields)


def _log() -> None:
    """Our own events on stderr; of the libraries' what went wrong."""
    level = logging.DEBUG if _state["debug"] else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=level)
    logging.getLogger("bertray").setLevel(logging.DEBUG if _state["debug"] else logging.INFO)
    if not _state["debug"]:
        # The hub's client says of each try that it failed; its own level it sets when imported.
        for library in ("ray", "huggingface_hub.utils._http"):
            logging.getLogger(library).setLevel(logging.ERROR)
