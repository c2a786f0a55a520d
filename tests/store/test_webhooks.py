"""what is to be told is written with what happened, claimed by one at a time, and not forgotten"""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from melior.errors import StoreError
from melior.registry import Registry
from melior.store import Store, schema
from melior.store.jobs import ATTEMPTS
from melior.store.query import later
from melior.store.webhooks import EVENTS, PATIENCE

JOBS = [event for event in EVENTS if event.startswith("fine_tuning")]


def ended(store: Store, status: str = "succeeded") -> str:
    """A job that has ended so."""
    job = store.add_job("sft", {}, "/nowhere")
    claimed = store.claim("w", 30, job_id=job.id)
    assert claimed is not None
    return store.end_job(job.id, claimed.fence, status).id  # type: ignore[arg-type]


def types(store: Store) -> list[str]:
    return [row.type for row in store.deliveries()]


def overdue(store: Store) -> None:
    """Every message that waits is due."""
    table = schema.deliveries
    with store.database.write() as connection:
        connection.execute(update(table).where(table.c.due.is_not(None)).values(due=later(-1)))


def cancelled_while_it_waits(store: Store) -> str:
    return store.ask_job(store.add_job("sft", {}, "/nowhere").id, "cancel").id


def lost_too_often(store: Store) -> str:
    job = store.add_job("sft", {}, "/nowhere")
    for _ in range(ATTEMPTS):
        claimed = store.claim("w", 30, job_id=job.id)
        assert claimed is not None
        store.give_back(job.id, claimed.fence)
    return job.id


@pytest.mark.parametrize(
    ("end", "event"),
    [
        (lambda store: ended(store, "succeeded"), "fine_tuning.job.succeeded"),
        (lambda store: ended(store, "failed"), "fine_tuning.job.failed"),
        (lambda store: ended(store, "cancelled"), "fine_tuning.job.cancelled"),
        (cancelled_while_it_waits, "fine_tuning.job.cancelled"),
        (lost_too_often, "fine_tuning.job.failed"),
    ],
)
def test_however_a_job_ends_its_message_is_written_once(store: Store, end: Callable[[Store], str], event: str) -> None:
    store.add_webhook("https://one.example", JOBS)
    store.add_webhook("https://two.example", ["model.promoted"])
    job = end(store)
    [told] = store.deliveries()
    assert told.type == event and told.body["data"] == {"id": job} and told.body["type"] == event
    assert told.body["object"] == "event" and told.body["id"].startswith("evt_")


def test_a_job_that_pauses_or_waits_again_has_not_ended(store: Store) -> None:
    store.add_webhook("https://one.example", JOBS)
    ended(store, "paused")
    ended(store, "queued")
    assert types(store) == []


def test_an_alias_that_moves_is_told_and_one_that_does_not_is_not(store: Store, tmp_path: Path) -> None:
    store.add_webhook("https://one.example", EVENTS)
    registry = Registry(store)
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        made.append(registry.register("support", tmp_path / name, method="sft", base_model="base"))
    first, second = made
    registry.promote(first.id, force=True, reason="first")
    registry.promote(second.id, force=True, reason="second")
    with pytest.raises(StoreError, match="by now"):
        store.promote("support", "prod", first.id, expected=None)
    registry.rollback("support", reason="no")
    assert types(store) == ["model.promoted", "model.promoted", "model.rolled_back"]
    told = {"id": first.id, "name": "support", "alias": "prod", "previous_id": second.id}
    assert store.deliveries()[-1].body["data"] == told


def test_a_message_is_claimed_by_one_of_many(store: Store) -> None:
    store.add_webhook("https://one.example", JOBS)
    for _ in range(12):
        ended(store)
    with ThreadPoolExecutor(4) as threads:
        claimed = [row.id for part in threads.map(lambda _: store.claim_deliveries(5), range(8)) for row, _ in part]
    assert sorted(claimed) == sorted(row.id for row in store.deliveries())
    assert store.claim_deliveries(5) == []


def test_a_message_whose_sender_is_gone_is_due_again_under_the_same_id(store: Store) -> None:
    store.add_webhook("https://one.example", JOBS)
    ended(store)
    [(lost, _)] = store.claim_deliveries(5)
    overdue(store)
    [(again, _)] = store.claim_deliveries(5)
    assert again.id == lost.id and again.body == lost.body and again.attempts == 2
    store.delivered(again)
    store.not_delivered(lost, "the sender that was thought dead wakes up")
    assert [row.status for row in store.deliveries()] == ["delivered"]


def test_pauses_grow_and_after_a_day_it_is_given_up(store: Store) -> None:
    hook = store.add_webhook("https://one.example", JOBS)
    ended(store)
    pauses = []
    for _ in range(4):
        overdue(store)
        [(row, _)] = store.claim_deliveries(1)
        store.not_delivered(row, "refused")
        due = store.deliveries()[0].due
        assert due is not None
        pauses.append((datetime.fromisoformat(due) - datetime.now(UTC)).total_seconds())
    assert all(5 * 2**n / 2 - 1 < pause <= 5 * 2**n for n, pause in enumerate(pauses))
    long_ago = (datetime.now(UTC) - PATIENCE - timedelta(seconds=1)).isoformat().replace("+00:00", "Z")
    with store.database.write() as connection:
        connection.execute(update(schema.deliveries).values(created=long_ago))
    overdue(store)
    [(row, _)] = store.claim_deliveries(1)
    store.not_delivered(row, "refused still")
    counts = store.count_deliveries()[hook.id]
    assert (counts.failed, counts.waiting, counts.error) == (1, 0, "refused still")


def test_a_webhook_that_is_revoked_is_told_nothing_more(store: Store) -> None:
    hook = store.add_webhook("https://one.example", JOBS)
    ended(store)
    store.revoke_webhook(hook.id)
    ended(store)
    assert [(row.status, row.error) for row in store.deliveries()] == [("failed", "the webhook was revoked")]
    assert store.webhooks() == [] and store.claim_deliveries(5) == []
    with pytest.raises(StoreError, match="was revoked on"):
        store.rotate_secret(hook.id)


def test_a_secret_can_be_replaced_while_both_are_good(store: Store) -> None:
    first = store.add_webhook("https://one.example", JOBS, name="ops")
    assert first.secret.startswith("whsec_") and len(base64.b64decode(first.secret[6:])) == 32
    second = store.rotate_secret(first.id, keep=True)
    assert second.secret != first.secret and second.former == first.secret and second.former_until is not None
    third = store.rotate_secret(first.id)
    assert third.former is None and third.secret not in (first.secret, second.secret)


def test_a_webhook_has_events_that_there_are(store: Store) -> None:
    with pytest.raises(StoreError, match=r"'job\.done' is no event"):
        store.add_webhook("https://one.example", ["job.done"])
    with pytest.raises(StoreError, match="at least one event"):
        store.add_webhook("https://one.example", [])
    hook = store.add_webhook("https://one.example", JOBS)
    assert store.change_webhook(hook.id, url="https://two.example", events=JOBS[:1]).events == (JOBS[0],)
