"""melior serve: answer, record and learn over HTTP; melior keys: who may ask"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Literal

import typer

from melior.cli.output import DATABASE, JSON, STORE, say, say_json, say_table, told
from melior.errors import ConfigError

Level = Literal["debug", "info", "warning", "error"]
keys = typer.Typer(no_args_is_help=True, help="Keys: add, list, revoke.", rich_markup_mode=None)


@told
def serve(
    host: str = typer.Option("127.0.0.1", "--host", help="Beyond this machine only where MELIOR_TOKEN is set."),
    port: int = typer.Option(8000, "--port", min=0, max=65535),
    data: Path = typer.Option(None, "--data", help="For files and jobs. Default: MELIOR_HOME/server."),
    database: str = typer.Option(
        None, "--database", envvar=DATABASE, help="sqlite:///file or postgresql://… Default: the store's own."
    ),
    allow_host: list[str] = typer.Option([], "--allow-host", help="A name that clients know this server by."),
    allow_origin: list[str] = typer.Option(
        [], "--allow-origin", help="A page that may ask, such as https://a.example."
    ),
    reward: list[str] = typer.Option(
        [], "--reward", help="NAME=FUNCTION: what graders of type lambda may name; a file, module:name, URL or ARN."
    ),
    judge: list[str] = typer.Option(
        [], "--judge", help="NAME=URL,MODEL[,KEY_ENV]: a judge behind an OpenAI-compatible endpoint."
    ),
    model: list[str] = typer.Option(
        [], "--model", help="A base model to answer with: a folder, NAME=FOLDER, or what was pulled; may be repeated."
    ),
    loaded: int = typer.Option(2, "--loaded", min=1, help="Models with all their weights held in memory at once."),
    work: bool = typer.Option(True, "--work/--no-work", help="Whether jobs are done here, or by other workers."),
    access_log: bool = typer.Option(
        False, "--access-log/--no-access-log", help="A line of JSON on stderr for each request: no tokens, no bodies."
    ),
    log_level: Level = typer.Option("warning", "--log-level", help="From what level on stderr is told things."),
) -> None:
    """Serve the OpenAI dialect, and melior's own words for feedback, on one port.

    The token is MELIOR_TOKEN; where there is none, one is made and shown once.

    \b
    melior serve
    melior serve --model ~/models/my-model --model other=/srv/models/b
    melior serve --judge careful=https://judges.example/v1,judge-large,JUDGE_KEY
    MELIOR_TOKEN=… melior serve --host 0.0.0.0 --port 8000 --allow-host models.example --database postgresql://…
    curl -H "Authorization: Bearer $MELIOR_TOKEN" http://127.0.0.1:8000/v1/models
    """
    try:
        from melior.serving.access import log_requests
        from melior.serving.app import create_app
        from melior.serving.bases import named_models
        from melior.serving.drain import serve_until_stopped
        from melior.serving.security import check_bind, first_key
        from melior.serving.service import Service, Settings
    except ModuleNotFoundError as error:
        raise ConfigError(f"melior serve needs {error.name}; pip install 'melior[serve]'") from error
    from melior.store import Store
    from melior.store.database import default_database

    log_requests(log_level, access=access_log)
    home = default_database().parent
    where = database or f"sqlite:///{default_database()}"
    token = os.environ.get("MELIOR_TOKEN") or None
    with Store.open(where) as store:
        check_bind(host, token, store)
        made = first_key(store, token)
        if made:
            say(f"token     {made}")
            say("          shown this once; melior keys add makes others")
        settings = Settings(
            data=(data or home / "server").expanduser().absolute(),
            database=where,
            hosts=frozenset(name.lower() for name in (*allow_host, *([] if host == "0.0.0.0" else [host]))),
            origins=frozenset(allow_origin),
            rewards=dict(reward_function(one) for one in reward),
            judges=dict(named_judge(one) for one in judge),
            models=named_models(model),
            loaded=loaded,
            work=work,
        )
        say(f"serving   http://{host}:{port}/v1  (base_url of an OpenAI client)")
        say(f"database  {store.database.engine.url.render_as_string()}")
        say(f"data      {settings.data}")
        service = Service(settings, store)
        for name, folder in settings.models.items():
            service.bases.of(name)  # what cannot be read is told now, and not to a client
            say(f"model     {name}  ({folder})")
        serve_until_stopped(create_app(service), service, host, port)


@keys.command()
@told
def add(
    name: str = typer.Argument(..., help="Whose it is, or what for."),
    scope: list[str] = typer.Option(["infer", "feedback"], "--scope", help="infer, feedback, read, train or admin."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Make a key; its token is shown this once.

    \b
    melior keys add shop --scope infer --scope feedback
    """
    from melior.serving.security import SCOPES, hash_of
    from melior.store import Store

    if odd := sorted(set(scope) - set(SCOPES)):
        raise ConfigError(f"{odd[0]!r} is no scope; scopes are {', '.join(SCOPES)}")
    token = secrets.token_urlsafe(32)
    with Store.open(store) as opened:
        key = opened.add_key(name, hash_of(token), scope)
    if as_json:
        return say_json({"id": key.id, "name": name, "scopes": scope, "token": token})
    say(f"{key.id}  {', '.join(scope)}")
    say(f"token  {token}  (shown this once)")


def reward_function(told: str) -> tuple[str, str]:
    """NAME=FUNCTION as a name and a function that can be found from anywhere.

    Raises:
        ConfigError: if it is not of this form, or its file is not there.
    """
    name, equals, function = told.rpartition("=") if "://" not in told else told.partition("=")
    if not (name and equals and function):
        raise ConfigError(f"--reward {told!r} is not NAME=FUNCTION, such as polite=rewards.py:lambda_handler")
    file, end, handler = function.partition(".py")
    if end and "://" not in function:
        place = Path(f"{file}.py").expanduser().absolute()
        if not place.is_file():
            raise ConfigError(f"--reward {name}: there is no file {place}")
        return name, f"{place}{handler}"
    return name, function


def named_judge(told: str) -> tuple[str, dict[str, str]]:
    """NAME=URL,MODEL[,KEY_ENV] as a name and a judge's model.

    Raises:
        ConfigError: if it is not of this form, or could not be asked.
    """
    from melior.errors import GraderError
    from melior.rewards.remote import remote_model

    name, _, rest = told.partition("=")
    parts = [part.strip() for part in rest.split(",")]
    if not name.strip() or not 2 <= len(parts) <= 3 or not all(parts):
        raise ConfigError(
            f"--judge {told!r} is not NAME=URL,MODEL[,KEY_ENV], such as careful=https://judges.example/v1,large,JUDGE_KEY"
        )
    made = dict(zip(("endpoint", "model", "key_env"), parts, strict=False))
    try:
        remote_model(made, f"--judge {name}").open(name)
    except GraderError as error:
        raise ConfigError(f"--judge {name}: {error}") from None
    return name.strip(), made


@keys.command("list")
@told
def list_keys(store: str = STORE, as_json: bool = JSON) -> None:
    """Every key; nobody can see a token again.

    \b
    melior keys list
    """
    from melior.store import Store

    with Store.open(store) as opened:
        found = opened.keys()
    shown: list[dict[str, Any]] = [
        {"id": key.id, "name": key.name, "scopes": list(key.scopes), "created": key.created, "revoked": key.revoked}
        for key in found
    ]
    if as_json:
        return say_json(shown)
    if not shown:
        return say("there are no keys yet; melior serve makes the first, melior keys add others")
    rows = [
        (key["id"], key["name"], ", ".join(key["scopes"]), key["created"][:16].replace("T", " "), key["revoked"] or "")
        for key in shown
    ]
    say_table(["key", "name", "may", "made (UTC)", "revoked"], rows)


@keys.command()
@told
def revoke(key: str = typer.Argument(..., help="key_…, or the beginning of it."), store: str = STORE) -> None:
    """Take a key back; servers refuse it within five seconds.

    \b
    melior keys revoke key_1f
    """
    from melior.store import Store

    with Store.open(store) as opened:
        found = opened.revoke_key(key)
    say(f"{found.id} ({found.name}) is worth nothing any more")
