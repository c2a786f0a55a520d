"""lists of clients are read page by page, whatever the labels hold"""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, event

from melior.store import Store
from melior.store.query import later

ODD = {"a": 'x", "b": "y', 'b"': "1", "c": "%_\\", "é": "ü\n"}


def keep(store: Store, number: int, **labels: str) -> str:
    return store.add_completion(f"chatcmpl_{number:04}", "m", {"metadata": labels}, {}).id


def walked(store: Store, limit: int, **asked: object) -> list[str]:
    found: list[str] = []
    after, more = None, True
    while more:
        page = store.completion_page(after=after, limit=limit, **asked)  # type: ignore[arg-type]
        found += [row.id for row in page.rows]
        after, more = (found[-1] if found else None), page.more
    return found


def test_pages_are_the_list_and_no_row_is_read_for_nothing(store: Store) -> None:
    ids = [keep(store, number, odd=str(number % 2)) for number in range(50)]
    store.delete_completion(ids[7])
    left = [name for name in ids if name != ids[7]]
    assert walked(store, 7) == left and walked(store, 7, order="desc") == left[::-1]
    assert walked(store, 7, labels={"odd": "1"}) == [name for name in left if int(name[-4:]) % 2]
    read: list[int] = []

    def count(connection: Connection, cursor: object, *_: object) -> None:
        read.append(1)

    event.listen(store.database.engine, "after_cursor_execute", count)
    page = store.completion_page(after=ids[7], limit=3)
    event.remove(store.database.engine, "after_cursor_execute", count)
    assert [row.id for row in page.rows] == ids[8:11] and page.more and len(read) <= 4


@pytest.mark.parametrize("name", list(ODD))
def test_labels_are_found_as_they_are_and_not_as_they_look(store: Store, name: str) -> None:
    mine = keep(store, 1, **ODD)
    keep(store, 2, **{"z": f'"{name}": "{ODD[name]}"'})
    keep(store, 3, **{f"x{name}": ODD[name], f'x", "{name}': ODD[name], name: "other"})
    keep(store, 4, **{name: ODD[name].upper() + "x"})
    assert walked(store, 5, labels={name: ODD[name]}) == [mine]


def test_jobs_that_train_are_listed_by_label_and_their_events_by_page(store: Store) -> None:
    jobs = [store.add_job("sft", {}, "/nowhere", labels={"team": str(n % 2)}).id for n in range(6)]
    assert [job.id for job in store.job_page(labels={"team": "1"}, limit=2).rows] == [jobs[5], jobs[3]]
    for number in range(5):
        store.add_event(jobs[0], f"step {number}")
    page = store.job_event_page(jobs[0], limit=2)
    assert [row.message for row in page.rows] == ["step 4", "step 3"] and page.more


def test_files_that_have_expired_are_in_no_page(store: Store) -> None:
    for name, seconds in (("old", -1), ("new", 60)):
        store.add_file(name, "evals", size=1, sha256="", expires=later(seconds))
    store.add_file("kept", "evals", size=1, sha256="")
    assert [row.filename for row in store.file_page(purpose="evals", order="asc").rows] == ["new", "kept"]
