"""shingle sets are exact, minima estimate their Jaccard index, and bands miss few near pairs"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.cleaning.shingles import CHARACTERS, MISSED, WORDS, Shingler, jaccard
from melior.data.cleaning.spool import Spool, neighbours
from melior.data.cleaning.views import normalised

VOCABULARY = [f"word{i}" for i in range(400)]


def words(draw: random.Random, count: int) -> list[str]:
    return draw.choices(VOCABULARY, k=count)


def sets_of(text: str) -> set[str]:
    """The shingles of a text, cut plainly."""
    parts = text.split()
    if len(parts) > 50:
        return {" ".join(parts[i : i + WORDS]) for i in range(len(parts) - WORDS + 1)}
    return {text[i : i + CHARACTERS] for i in range(len(text) - CHARACTERS + 2) if len((text + " ")[i : i + 5]) == 5}


@given(st.integers(0, 10**6), st.sampled_from([20, 150]), st.integers(0, 10))
def test_the_index_of_two_texts_is_that_of_their_plain_shingles(seed: int, length: int, changes: int) -> None:
    draw = random.Random(seed)
    first = words(draw, length)
    second = list(first)
    for _ in range(changes):
        second[draw.randrange(length)] = "changed"
    texts = [" ".join(first), " ".join(second)]
    entries = Shingler(0.8).entries([*texts, "tiny"])
    assert entries.owners.tolist() == [0, 1]  # "tiny" is too short
    a, b = np.split(entries.sets, [entries.sizes[0]])
    plain = [{(text + " ")[i : i + CHARACTERS] for i in range(len(text) - CHARACTERS + 2)} for text in texts]
    if length > 50:
        plain = [sets_of(text) for text in texts]
    assert jaccard(a, b) == pytest.approx(len(plain[0] & plain[1]) / len(plain[0] | plain[1]), abs=1e-9)


@pytest.mark.parametrize("near", [0.6, 0.85, 0.95])
def test_the_bands_miss_no_more_pairs_at_the_threshold_than_they_may(near: float) -> None:
    shingler = Shingler(near)
    bands, rows = shingler.shape
    assert (1 - near**rows) ** bands <= MISSED
    met, pairs = 0, 400
    draw = random.Random(1)
    texts = []
    for _ in range(pairs):
        first = words(draw, 120)
        second = list(first)
        changed = int((1 - near) / (1 + near) * 118 / WORDS)  # each changed word costs WORDS shingles on both sides
        for place in draw.sample(range(0, 118, WORDS), changed):
            second[place] = "changed"
        texts += [" ".join(first), " ".join(second)]
    bands_of = shingler.entries(texts).bands
    for index in range(0, 2 * pairs, 2):
        met += bool((bands_of[index] == bands_of[index + 1]).any())
    assert met / pairs >= 0.96


def test_the_minima_agree_as_often_as_datasketch_says() -> None:
    datasketch = pytest.importorskip("datasketch")
    draw = random.Random(2)
    first = words(draw, 300)
    second = [word if draw.random() < 0.9 else "changed" for word in first]
    texts = [" ".join(first), " ".join(second)]
    sketches = []
    for text in texts:
        sketch = datasketch.MinHash(num_perm=512)
        sketch.update_batch([shingle.encode() for shingle in sets_of(text)])
        sketches.append(sketch)
    entries = Shingler(0.85).entries(texts)
    a, b = np.split(entries.sets, [entries.sizes[0]])
    assert jaccard(a, b) == pytest.approx(sketches[0].jaccard(sketches[1]), abs=0.08)


def test_a_batch_gives_what_its_texts_give_one_by_one() -> None:
    draw = random.Random(3)
    texts = [" ".join(words(draw, count)) for count in (5, 30, 45, 80, 300, 0, 41, 56)]
    shingler = Shingler(0.85)
    together = shingler.entries(texts)
    for index, text in enumerate(texts):
        alone = shingler.entries([text])
        mine = together.owners == index
        assert (together.bands[mine] == alone.bands).all() and (together.sizes[mine] == alone.sizes).all()


def test_pairs_are_found_on_disk_and_a_crowd_stays_bounded(tmp_path: Path) -> None:
    draw = random.Random(4)
    shingler = Shingler(0.85)
    base = words(draw, 60)
    texts = [" ".join(words(draw, 60)) for _ in range(50)] + [" ".join(base), " ".join([*base, "more"])]
    crowd = [" ".join([*base[:40], "crowd"] * 3) for _ in range(300)]
    spool = Spool(tmp_path, "rows", shingler)
    spool.add(shingler.entries(texts + crowd), 0)
    spool.finish()
    keys = np.arange(len(texts) + len(crowd), dtype=np.uint64)
    found = {
        tuple(sorted((int(spool.owners[a]), int(spool.owners[b]))))
        for run in spool.runs(np.ones(len(keys), bool), keys)
        for a, b in neighbours(run)
    }
    assert (50, 51) in found
    assert len(found) < 300 * 24 * 2
    assert not any(a < 50 or b < 50 for a, b in found)
    spool.close()


def test_normalising_keeps_what_mathematics_means() -> None:
    assert normalised("What is  2+3 ?") == "what is 2+3"
    assert len({normalised(text) for text in ("2+3", "2-3", "2*3", "2 3", "1.5", "15")}) == 6
    assert normalised("?!") == "?!"
