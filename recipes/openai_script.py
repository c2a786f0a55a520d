"""a fine-tuning script for OpenAI's API: demonstrations, preferences, rewards; nothing of it is ours

    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=$MELIOR_TOKEN python recipes/openai_script.py

The official client reads both variables by itself, so the script is the same against any server of the dialect. It
teaches sums of two numbers below one hundred: 160 demonstrations, 96 pairs of a right answer and a wrong one, 480
questions with a grader; each job starts from the model that the one before made, and all are asked 100 other questions.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI

ASK = "What is {} {} {}? Answer with the number alone."
GRADER = {
    "type": "string_check",
    "name": "right",
    "operation": "eq",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
AT_ONCE = 16  # questions that are asked at the same time

Row = dict[str, Any]


def main() -> None:
    """Three jobs one after another, and what each was worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="to start from")
    parser.add_argument("--demonstrations", type=int, default=160)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--questions", type=int, default=480, help="for rewards")
    parser.add_argument("--heldout", type=int, default=100)
    asked = parser.parse_args()

    client = OpenAI()
    sums = questions()
    heldout, first, second, third = (
        [next(sums) for _ in range(number)]
        for number in (asked.heldout, asked.demonstrations, asked.pairs, asked.questions)
    )
    right = {"start": accuracy(client, asked.model, heldout)}
    model = asked.model
    three_times, gently = {"hyperparameters": {"n_epochs": 3}}, {"hyperparameters": {"n_epochs": 1, "beta": 0.1}}
    for name, rows, how in (
        ("supervised", map(demonstration, first), three_times),
        ("dpo", map(pair, second), gently),
        ("reinforcement", map(task, third), {"grader": GRADER}),
    ):
        model = trained(client, name, model, list(rows), how)
        right[name] = accuracy(client, model, heldout)
    for name, share in right.items():
        print(f"{name:<14} {share:.2f} of {len(heldout)} right")


def questions(seed: int = 7) -> Iterator[tuple[str, str]]:
    """Sums that are all different: (question, answer)."""
    source = random.Random(seed)
    seen: set[tuple[int, str, int]] = set()
    while True:
        left, right, sign = source.randrange(100), source.randrange(100), source.choice("+-")
        if (left, sign, right) not in seen:
            seen.add((left, sign, right))
            yield ASK.format(left, sign, right), str(left + right if sign == "+" else left - right)


def demonstration(one: tuple[str, str]) -> Row:
    """A row of supervised fine-tuning."""
    return {"messages": [_user(one[0]), _assistant(one[1])]}


def pair(one: tuple[str, str]) -> Row:
    """A row of preferences: the right answer, and one that is off by ten."""
    wrong = str(int(one[1]) + 10)
    return {
        "input": {"messages": [_user(one[0])]},
        "preferred_output": [_assistant(one[1])],
        "non_preferred_output": [_assistant(wrong)],
    }


def task(one: tuple[str, str]) -> Row:
    """A row of reinforcement fine-tuning: the grader reads `item.answer`."""
    return {"messages": [_user(one[0])], "answer": one[1]}


def trained(client: OpenAI, name: str, model: str, rows: Sequence[Row], how: Mapping[str, Any]) -> str:
    """The model that a job made of another one."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = client.files.create(file=(f"{name}.jsonl", content), purpose="fine-tune")
    client.files.wait_for_processing(file.id)
    started = time.monotonic()
    method: Any = {"type": name, name: how}
    job = client.fine_tuning.jobs.create(model=model, training_file=file.id, method=method, suffix="sums", seed=1)
    print(f"{job.id}: {name} on {len(rows)} rows, from {model}")
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    last = client.fine_tuning.jobs.list_events(job.id, limit=2).data
    for event in reversed(last):
        print(f"  {event.level}: {event.message}")
    if job.status != "succeeded" or job.fine_tuned_model is None:
        raise SystemExit(f"{name} {job.status}: {job.error.message if job.error else ''}")
    columns = client.files.content(job.result_files[0]).text.splitlines()
    tokens = f"{job.trained_tokens:,} tokens" if job.trained_tokens else "tokens untold"
    print(f"  {time.monotonic() - started:.0f} s, {len(columns) - 1} steps, {tokens}: {job.fine_tuned_model}")
    return job.fine_tuned_model


def accuracy(client: OpenAI, model: str, heldout: Sequence[tuple[str, str]]) -> float:
    """The share of questions that a model answers rightly, asked many at a time."""

    def right(one: tuple[str, str]) -> bool:
        messages: Any = [_user(one[0])]
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12)
        return (answer.choices[0].message.content or "").strip() == one[1]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(right, heldout)) / len(heldout)


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


if __name__ == "__main__":
    main()
