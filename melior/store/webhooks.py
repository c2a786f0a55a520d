"""who is told when jobs end and aliases move, and what is still to be told: an outbox

What happened and the messages that tell of it are written in one transaction, so no message is lost and none tells of
what did not happen. A message is claimed before it is sent, and is due again if whoever claimed it is never heard of:
it may arrive twice, under one id, and it arrives.

    waiting ──claim──▶ waiting, due later ──▶ delivered
                            └────────────────▶ failed, a day later
"""

from __future__ import annotations

import base64
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, func, select, update

from melior.errors import StoreError
from melior.store import schema
from melior.store.query import Rows, add, add_row, fetch, find, later, new_id, now
from melior.store.rows import Delivery, Webhook

Event = Literal[
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "eval.run.succeeded",
    "eval.run.failed",
    "eval.run.canceled",  # the dialect spells it so
    "model.promoted",
    "model.rolled_back",
]
EVENTS: tuple[Event, ...] = get_args(Event)

LEASE_S = 120.0  # a message that was claimed is due again after so long: longer than all sends of one batch
FIRST_S = 5.0  # the pause after the first failure; it doubles
LONGEST_S = 4 * 3_600.0
PATIENCE = timedelta(days=1)  # after which a message is given up
FORMER_S = 24 * 3_600.0  # a secret that was replaced signs for so long where that was asked for, as OpenAI has it


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many messages of a webhook are where, and what went wrong last."""

    waiting: int = 0
    delivered: int = 0
    failed: int = 0
    error: str = ""


def announce(connection: Connection, type: Event, data: Mapping[str, Any]) -> None:
    """Adds a message to every webhook that wants this event; to be called in the transaction that makes it true."""
    wanting = [hook for hook in fetch(connection, Webhook, schema.webhooks.c.revoked.is_(None)) if type in hook.events]
    if wanting:
        body = message(type, data)
        add(connection, schema.deliveries, [vars(_delivery(hook.id, type, body)) for hook in wanting])


class Webhooks(Rows):
    """Addresses that are told, and messages to them."""

    def add_webhook(self, url: str, events: Sequence[str], *, name: str = "") -> Webhook:
        """A webhook with a secret of its own.

        Raises:
            StoreError: if there is no event of such a name.
        """
        row = Webhook(
            id=new_id("we"),
            name=schema.clean(name),
            url=url,
            events=_known(events),
            secret=_secret(),
            former=None,
            former_until=None,
            revoked=None,
            created=now(),
        )
        with self.database.write() as connection:
            return add_row(connection, row)

    def webhook(self, reference: str) -> Webhook:
        """One webhook, revoked or not."""
        return self._find(Webhook, reference)

    def webhooks(self) -> list[Webhook]:
        """Every webhook that is not revoked, the oldest first."""
        with self.database.read() as connection:
            return fetch(connection, Webhook, schema.webhooks.c.revoked.is_(None))

    def change_webhook(
        self,
        reference: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        name: str | None = None,
    ) -> Webhook:
        """The webhook with another address, other events or another name."""
        given = {"url": url, "events": None if events is None else _known(events)}
        given["name"] = None if name is None else schema.clean(name)
        return self._change(reference, {key: value for key, value in given.items() if value is not None})

    def rotate_secret(self, reference: str, *, keep: bool = False) -> Webhook:
        """The webhook with a new secret; with `keep` the former one signs beside it for a day."""
        with self.database.write() as connection:
            row = find(connection, Webhook, reference)
            former = (row.secret, later(FORMER_S)) if keep else (None, None)
            return _updated(connection, row, {"secret": _secret(), "former": former[0], "former_until": former[1]})

    def revoke_webhook(self, reference: str) -> Webhook:
        """The webhook, told nothing more; what still waits is given up."""
        with self.database.write() as connection:
            row = find(connection, Webhook, reference)
            table = schema.deliveries
            waiting = (table.c.webhook_id == row.id) & (table.c.status == "waiting")
            given_up = {"status": "failed", "due": None, "error": "the webhook was revoked"}
            connection.execute(update(table).where(waiting).values(**given_up))
            return _updated(connection, row, {"revoked": now()})

    def _change(self, reference: str, values: Mapping[str, Any]) -> Webhook:
        with self.database.write() as connection:
            return _updated(connection, find(connection, Webhook, reference), values)

    # ------------------------------------------------------------------ messages

    def deliveries(self, *, webhook_id: str | None = None, limit: int | None = None) -> list[Delivery]:
        """Messages, in the order they were written."""
        with self.database.read() as connection:
            return fetch(connection, Delivery, webhook_id=webhook_id, limit=limit)

    def count_deliveries(self) -> dict[str, Counts]:
        """By webhook: how many messages wait, arrived and failed, and the newest error."""
        table = schema.deliveries
        counted = select(table.c.webhook_id, table.c.status, func.count()).group_by(table.c.webhook_id, table.c.status)
        newest = select(func.max(table.c.sequence)).where(table.c.error != "").group_by(table.c.webhook_id)
        found: dict[str, dict[str, Any]] = {}
        with self.database.read() as connection:
            for webhook, status, number in connection.execute(counted):
                found.setdefault(webhook, {})[status] = number
            wrong = select(table.c.webhook_id, table.c.error).where(table.c.sequence.in_(newest))
            for webhook, error in connection.execute(wrong):
                found[webhook]["error"] = error
        return {webhook: Counts(**told) for webhook, told in found.items()}

    def claim_deliveries(self, most: int) -> list[tuple[Delivery, Webhook]]:
        """Up to so many messages that are due, each nobody else's until its lease is over."""
        table, time = schema.deliveries, now()
        due = (table.c.status == "waiting") & (table.c.due <= time)
        oldest = select(table.c.id).where(due).order_by(table.c.due, table.c.sequence).limit(most)
        with self.database.read() as connection:  # most looks find nothing, and a look takes no lock of writers
            if connection.scalar(oldest.limit(1)) is None:
                return []
        with self.database.write() as connection:
            ids = list(connection.scalars(oldest.with_for_update(skip_locked=True)))
            claimed = {"due": later(LEASE_S), "attempts": table.c.attempts + 1}
            connection.execute(update(table).where(table.c.id.in_(ids)).values(**claimed))
            return [
                (row, find(connection, Webhook, row.webhook_id))
                for row in fetch(connection, Delivery, table.c.id.in_(ids))
            ]

    def delivered(self, sent: Delivery) -> None:
        """Notes that a claimed message arrived."""
        self._note(sent, {"status": "delivered", "due": None, "error": ""})

    def not_delivered(self, sent: Delivery, error: str, *, final: bool = False) -> None:
        """Notes that a claimed message did not arrive; it is tried again later, for a day."""
        over = datetime.now(UTC) - datetime.fromisoformat(sent.created) > PATIENCE
        if final or over:
            self._note(sent, {"status": "failed", "due": None, "error": schema.clean(error)})
        else:
            pause = min(LONGEST_S, FIRST_S * 2 ** min(sent.attempts - 1, 30)) * random.uniform(0.5, 1)
            self._note(sent, {"due": later(pause), "error": schema.clean(error)})

    def _note(self, sent: Delivery, values: Mapping[str, Any]) -> None:
        """Changes the message, unless it was claimed again since, or given up."""
        table = schema.deliveries
        mine = (table.c.id == sent.id) & (table.c.attempts == sent.attempts) & (table.c.status == "waiting")
        with self.database.write() as connection:
            connection.execute(update(table).where(mine).values(**values))


def _updated(connection: Connection, row: Webhook, values: Mapping[str, Any]) -> Webhook:
    if row.revoked is not None:
        raise StoreError(f"{row.id} was revoked on {row.revoked[:10]}; add another")
    if values:
        connection.execute(update(schema.webhooks).where(schema.webhooks.c.id == row.id).values(**values))
    return find(connection, Webhook, row.id)


def _known(events: Sequence[str]) -> tuple[str, ...]:
    odd = [event for event in events if event not in EVENTS]
    if odd or not events:
        told = f"{odd[0]!r} is no event" if odd else "a webhook has at least one event"
        raise StoreError(f"{told}; events are {', '.join(EVENTS)}")
    return tuple(dict.fromkeys(events))


def _secret() -> str:
    """Follows: github.com/standard-webhooks, "Signature scheme": 24 to 64 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def message(type: Event, data: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent of an event, as the OpenAI dialect has it."""
    told = {"id": new_id("evt"), "object": "event", "created_at": int(datetime.now(UTC).timestamp())}
    return {**told, "type": type, "data": dict(data)}


def _delivery(webhook_id: str, type: str, body: Mapping[str, Any]) -> Delivery:
    return Delivery(
        id=new_id("msg"),
        webhook_id=webhook_id,
        type=type,
        body=body,
        status="waiting",
        attempts=0,
        due=now(),
        error="",
        created=now(),
    )
