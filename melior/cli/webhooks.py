"""melior webhooks: who is told when jobs end and aliases move"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from melior.cli.output import JSON, STORE, first_line, say, say_json, say_table, told

if TYPE_CHECKING:
    from melior.store.webhooks import Counts

app = typer.Typer(no_args_is_help=True, help="Webhooks: add, list, revoke.", rich_markup_mode=None)


@app.command()
@told
def add(
    url: str = typer.Argument(..., help="Where messages are posted: https://… or, on this machine, http://127.0.0.1…"),
    event: list[str] = typer.Option([], "--event", help="What is told; may be given again. Default: how jobs end."),
    name: str = typer.Option("", "--name", help="What for."),
    store: str = STORE,
    as_json: bool = JSON,
) -> None:
    """Tell an address what happens; its secret, which signs every message, is shown this once.

    \b
    melior webhooks add https://ops.example/melior --event fine_tuning.job.failed --event model.promoted
    """
    from melior.outbound.addresses import parse_url
    from melior.store import Store
    from melior.store.webhooks import EVENTS

    parse_url(url)
    wanted = event or [known for known in EVENTS if known.startswith("fine_tuning.")]
    with Store.open(store) as opened:
        made = opened.add_webhook(url, wanted, name=name)
    if as_json:
        return say_json({"id": made.id, "url": url, "events": list(made.events), "secret": made.secret})
    say(f"{made.id}  {', '.join(made.events)}")
    say(f"secret  {made.secret}  (shown this once)")
    say("        client.webhooks.unwrap(body, headers, secret=…) of the openai package checks a message with it")


@app.command("list")
@told
def list_webhooks(store: str = STORE, as_json: bool = JSON) -> None:
    """Every webhook, and how many messages of it wait, arrived and were given up.

    \b
    melior webhooks list
    """
    from melior.store import Store
    from melior.store.webhooks import Counts

    with Store.open(store) as opened:
        hooks, counts = opened.webhooks(), opened.count_deliveries()
    counted = [(hook, counts.get(hook.id, Counts())) for hook in hooks]
    if as_json:
        return say_json(
            [
                {"id": hook.id, "name": hook.name, "url": hook.url, "events": list(hook.events), **vars(count)}
                for hook, count in counted
            ]
        )
    if not hooks:
        return say("there are no webhooks; melior webhooks add URL makes one")
    rows = [
        (hook.id, first_line(hook.url, 40), str(len(hook.events)), *_counted(count), first_line(count.error))
        for hook, count in counted
    ]
    say_table(["webhook", "url", "events", "waiting", "delivered", "failed", "last error"], rows)


@app.command()
@told
def revoke(webhook: str = typer.Argument(..., help="we_…, or the beginning of it."), store: str = STORE) -> None:
    """Tell an address nothing more; messages that wait are given up.

    \b
    melior webhooks revoke we_1f
    """
    from melior.store import Store

    with Store.open(store) as opened:
        gone = opened.revoke_webhook(webhook)
    say(f"{gone.id} ({first_line(gone.url)}) is told nothing more")


def _counted(count: Counts) -> tuple[str, str, str]:
    return str(count.waiting), str(count.delivered), str(count.failed)
