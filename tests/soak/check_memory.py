"""checks a file of a given size and measures time and peak memory: python tests/soak/check_memory.py --mb 1024

The rows are real ones where MELIOR_DATA has them (GSM8K with its numbers and names changed at random), so that texts
look like texts, and otherwise sums in words: some rows repeat, some nearly do, some hold e-mail addresses.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import resource
import tempfile
import threading
import time
from pathlib import Path

import psutil

DATA = Path(os.environ.get("MELIOR_DATA", Path(__file__).parents[3] / "shared" / "data"))
NAMES = ("Natalia", "Weng", "Betty", "Julie", "James", "Mark", "Albert", "Ken", "Alexis", "Tina", "Jasper", "Toulouse")
THINGS, DOES = ("apples", "books", "tickets", "cakes", "stamps"), ("buys", "sells", "finds", "loses", "shares")
DUPLICATES, NEAR, PRIVATE = 0.01, 0.01, 0.002  # shares of rows


def write_rows(path: Path, size: int, seed: int = 0) -> int:
    """Writes rows up to a size in bytes; how many."""
    draw = random.Random(seed)
    known = _known(draw)
    sentences = [s for row in known for s in re.split(r"(?<=[.?!]) ", row["question"])]
    rows = written = 0
    last = ""
    with path.open("w", encoding="utf-8") as out:
        while written < size:
            line = _again(draw, last) if last else ""
            line = line or json.dumps(_row(draw, known, sentences)) + "\n"
            out.write(line)
            written, rows, last = written + len(line), rows + 1, line
    return rows


def _known(draw: random.Random) -> list[dict[str, str]]:
    """Questions and answers."""
    path = DATA / "gsm8k" / "train.jsonl.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    things = [draw.choice(THINGS) + str(draw.randrange(10_000)) for _ in range(4_000)]
    said = [f"{draw.choice(NAMES)} {draw.choice(DOES)} {draw.randrange(1000)} {thing}." for thing in things]
    ends = [f"How many {thing} are left then?" for thing in things]
    return [
        {"question": f"{one} {end}", "answer": str(draw.randrange(1000))} for one, end in zip(said, ends, strict=True)
    ]


def _again(draw: random.Random, last: str) -> str:
    """The last row once more, now and then, or the row without one of its words; mostly nothing."""
    chance = draw.random()
    if chance < DUPLICATES:
        return last
    if chance > DUPLICATES + NEAR:
        return ""
    row = json.loads(last)
    words = row["prompt"].split(" ")
    place = next((i for i, word in enumerate(words) if word.isalpha()), 0)
    return json.dumps({**row, "prompt": " ".join(words[:place] + words[place + 1 :])}) + "\n"


def _row(draw: random.Random, known: list[dict[str, str]], sentences: list[str]) -> dict[str, str]:
    prompt = " ".join(draw.sample(sentences, 4))
    prompt = re.sub(r"\d+", lambda _: str(draw.randrange(1000)), prompt)
    prompt = re.sub(r"\b(?:" + "|".join(NAMES) + r")\b", lambda _: draw.choice(NAMES), prompt)
    if draw.random() < PRIVATE:
        prompt += f" Write to {draw.choice(NAMES).lower()}.{draw.randrange(999)}@acme-mail.com."
    return {"prompt": prompt, "completion": draw.choice(known)["answer"]}


class Peak(threading.Thread):
    """The greatest memory of this process and its children together, looked at five times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.done = 0, threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.2):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit-gb", type=float, default=2.0)
    parser.add_argument("--fix", action="store_true")
    asked = parser.parse_args()
    from melior.data.cleaning import CheckConfig, check_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = write_rows(path, asked.mb << 20)
        peak = Peak()
        peak.start()
        started, used = time.monotonic(), time.process_time()
        fix = Path(folder) / "clean.jsonl" if asked.fix else None
        report = check_file(path, CheckConfig(workers=asked.workers, languages=False), fix=fix)
        seconds, used = time.monotonic() - started, time.process_time() - used
        peak.done.set()
        peak.join()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{asked.mb} MB, {rows:,} rows, {asked.workers} workers{', with a fix' * asked.fix}")
    print(f"{seconds:.0f} s, {used + children.ru_utime + children.ru_stime:.0f} s of processor time")
    print(f"peak memory of all processes {peak.bytes / 2**30:.2f} GB")
    for finding in report.findings:
        print(f"  {finding.code}: {finding.count:,}")
    assert report.rows == rows
    assert report.finding("duplicate") and report.finding("near-duplicate")
    assert peak.bytes < asked.limit_gb * 2**30, f"more than {asked.limit_gb} GB"


if __name__ == "__main__":
    main()
