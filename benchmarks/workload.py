"""what is measured: rows, prompts, reward and settings, the same for both sides; standard library only"""

from __future__ import annotations

import json
import resource
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
SEED = 20  # of the rows, the prompts and the adapter
ROWS_PER_GENERATOR = 8
GENERATORS = (  # of reasoning-gym: short and long questions, short and long answers
    *("chain_sum", "basic_arithmetic", "leg_counting", "gcd", "lcm", "prime_factorization", "spell_backward"),
    *("letter_counting", "word_sorting", "count_bits", "base_conversion", "fraction_simplification"),
    *("simple_equations", "calendar_arithmetic", "family_relationships", "syllogism", "caesar_cipher"),
    *("decimal_arithmetic", "time_intervals", "products"),
)
PROMPTS = GENERATORS[2:18:2]  # one prompt of each for reinforcement: 8
BATCH = 16  # rows of one supervised step
PAIRS = 8  # preference pairs of one step: TRL's default
MOST_PAIRS = 64  # that are prepared, of each kind
SHORT_PROMPT = 64  # tokens: pairs of such prompts have little to share
LONGEST = 512  # tokens of a pair's side; what the other side would cut or leave out is not measured
HEAD_STD = 0.02  # of the reward head both sides start from
BETA = 0.1  # of DPO: both sides' default
SHORT = "-short"  # ends the names of jobs whose pairs have short prompts
GROUP = 8  # completions per prompt
COMPLETION = 32  # tokens, exactly: no side may end early
LORA_RANK, LORA_ALPHA = 16, 32
LEARNING_RATE, BETAS, EPSILON, CLIP_NORM = 2e-4, (0.9, 0.999), 1e-8, 1.0
CLIP = 0.2  # of the probability ratio


@dataclass(frozen=True)
class Workload:
    """Everything both sides read. Rows stand in the order in which they are trained."""

    model: str  # folder of the base model
    adapter: str  # folder of the untrained adapter both sides start from
    rows: list[dict[str, Any]]  # {"inputs", "output", "context": ids, "decisions": ids}
    prompts: list[dict[str, Any]]  # {"inputs", "context": ids}
    pairs: list[dict[str, Any]]  # {"inputs", "chosen", "rejected", "context": ids, "chosen_ids", "rejected_ids"}
    short_pairs: list[dict[str, Any]]  # the same, of prompts of at most SHORT_PROMPT tokens
    pairs_from: str  # whose preferences they are
    reward_head: list[float]  # [D] the reward head both sides start from

    @property
    def tokens(self) -> int:
        """Tokens of the supervised rows, without padding."""
        return sum(len(row["context"]) + len(row["decisions"]) for row in self.rows)

    def of(self, job: str) -> Workload:
        """As a job trains it: those that end in "-short" train the pairs of short prompts."""
        return replace(self, pairs=self.short_pairs) if job.endswith(SHORT) else self

    def by_length(self) -> Workload:
        """The same rows from long to short, so that the first step shows the largest memory."""
        return replace(self, rows=sorted(self.rows, key=lambda row: -len(row["context"]) - len(row["decisions"])))

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(vars(self)))

    @classmethod
    def read(cls, file: str | Path) -> Workload:
        """What `write` wrote."""
        return cls(**json.loads(Path(file).read_text()))


def pair_tokens(pair: dict[str, Any]) -> int:
    """Tokens of a pair's two sides, without padding; the prompt counts twice."""
    return 2 * len(pair["context"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def reward(ids: Sequence[int]) -> float:
    """A number in [0, 1) that depends on every token: completions of one prompt differ in it unless they are equal."""
    return zlib.crc32(json.dumps([int(token) for token in ids]).encode()) / 2**32


def check_groups(rewards: Sequence[float]) -> None:
    """Raises AssertionError if the rewards of a group are all equal: then one side would have less to compute."""
    for start in range(0, len(rewards), GROUP):
        group = rewards[start : start + GROUP]
        assert len(set(group)) > 1, f"all {len(group)} rewards of a group are {group[0]}"


class Clock:
    """Seconds of each step, from the end of the one before, and from the start of the process to the first.

    Seconds of the processor count this process alone, its threads together; with one thread they say what a step costs
    on a machine that does other things too.
    """

    def __init__(self, started: float) -> None:
        self.started = started  # time.time() before the process existed
        self.steps: list[float] = []
        self.cpu: list[float] = []
        self.cold = 0.0
        self.begin()

    def begin(self) -> None:
        """Loading is over; the first step starts."""
        self.last, self.last_cpu = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        """A step has ended."""
        now, cpu = time.perf_counter(), time.process_time()
        self.steps.append(now - self.last)
        self.cpu.append(cpu - self.last_cpu)
        self.last, self.last_cpu = now, cpu
        self.cold = self.cold or time.time() - self.started


def tell(clock: Clock, **found: Any) -> None:
    """Prints one line of JSON, the last of the process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    told = {"seconds": clock.steps, "cpu_seconds": clock.cpu, "cold_s": clock.cold, "peak_bytes": peak}
    print(json.dumps({**told, **found}), flush=True)
