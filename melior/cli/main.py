"""melior's command line

Modules are imported when a command runs, so that `melior --help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings

import typer

from melior.cli import (
    chat,
    check,
    convert,
    decide,
    demo,
    evaluate,
    export,
    feedback,
    grade,
    judge,
    models,
    pull,
    runs,
    sandbox,
    serve,
    trace,
    train,
    tune,
    webhooks,
    work,
)
from melior.cli.output import Errors

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # our own bars say more
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

app = typer.Typer(
    name="melior",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("pull")(pull.pull)
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("decide")(decide.decide)
app.command("grade")(grade.grade)
app.command("judge")(judge.judge)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("trace")(trace.trace)
app.command("chat")(chat.chat)
app.command("check")(check.check)
app.command("sandbox")(sandbox.sandbox)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("work")(work.work)
app.add_typer(models.app, name="models")
app.add_typer(serve.keys, name="keys")
app.add_typer(runs.app, name="runs")
app.add_typer(feedback.app, name="feedback")
app.add_typer(webhooks.app, name="webhooks")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"melior {version('melior')}")
        raise typer.Exit()


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks; may stand anywhere in the command."),
    allow_unsandboxed: bool = typer.Option(
        False, "--allow-unsandboxed", help="Run Python of others without the sandbox it needs; may stand anywhere too."
    ),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Makes models better from feedback: train, prove it on held-out data, pass a gate, promote.

    \b
    melior demo                                    the whole trip on a small model
    melior pull smollm2-135m-instruct              fetch a model once
    melior check train.jsonl                       what is wrong with a file of rows
    melior convert a.csv --to openai-sft --out b.jsonl  rows in another format or kind of file
    melior export preferences --to pairs.jsonl     training rows out of the log of what was said
    melior feedback list --search "too slow"       what people said; corrected, or turned into rows
    melior trace fb_3f2a                           what a row came from, and what was learnt from it
    melior train run.yaml                          train, evaluate, gate and register a version
    melior grade grader.json rows.jsonl            try a grader before anything is trained on it
    melior judge judge.yaml pairs.jsonl            whether a judge agrees with people, and may be a reward
    melior tune run.yaml                           better settings, if there are any beyond noise
    melior evaluate MODEL --data rows.jsonl        rewards on held-out data, with intervals
    melior compare before.json after.json          paired difference and the gate's verdict
    melior chat MODEL                              talk to a model
    melior decide MODEL rows.csv                   what a policy decides for rows, and how surely
    melior serve                                   the OpenAI dialect over HTTP: answer, record, train
    melior work                                    do the servers' jobs on this machine too
    """


def main() -> None:
    """What the `melior` command runs."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        Errors.debug = True
        arguments = [argument for argument in arguments if argument != "--debug"]
    if sandbox.FLAG in arguments:
        os.environ[sandbox.ALLOW] = "1"
        arguments = [argument for argument in arguments if argument != sandbox.FLAG]
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(peft|transformers|huggingface_hub)\b")
    app(args=arguments)


if __name__ == "__main__":
    main()
