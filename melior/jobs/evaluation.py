"""one run of an eval: samples what is to be graded, has it graded, and keeps both together, some items at a time

The rows stand in a file, each with what the model reads or with what is to be graded as it is. A batch is written
whole, outputs and scores, under ids that follow from the run and the row, so that a run that was killed goes on behind
its last batch, to the same numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.cycles.folders import alone
from melior.cycles.ledger import record_evaluation
from melior.cycles.models import Found, find_model, with_judges
from melior.data.calls import calls_in, names_of
from melior.durable import write_file
from melior.errors import DataError, GraderError, NotFound
from melior.evaluation.criteria import Criterion, counts_by_criterion, counts_of, criteria_of, evaluation_of
from melior.rewards.base import failed
from melior.rewards.workers import GraderPool
from melior.store import Store
from melior.store.evals import Graded
from melior.store.rows import Job
from melior.types import Record, Sampling, Score

METHOD = "evaluation"
AT_ONCE = 64  # rows sampled and graded together: half of what the engine decodes at once, so that little is done twice
LONGEST = 1_024  # tokens of an output, where nobody says how long it may be
PATIENCE_S = 120.0  # for one output, as the dialect has it


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is to do: the recipe of its job."""

    rows: str  # a file of JSON lines: item, and inputs or output
    criteria: Sequence[Mapping[str, Any]]
    grader: str  # what the eval is called where evaluations are compared
    model: str | None = None  # None: nothing is sampled
    sampling: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # of models, as the client knows them, by our references


def run_evaluation(job: Job, folder: Path, store: Store) -> None:
    """Does the run of a job to its end; what it comes to stands in the store and in result.json.

    Raises:
        MeliorError: for whatever is wrong with rows, model or graders.
        KeyboardInterrupt: when it was interrupted; what was graded is kept.
    """
    asked = Asked(**job.recipe)
    with alone(folder):
        if (folder / "result.json").is_file():  # a kill may have come in between
            store.finish_run(job.id, metrics=json.loads((folder / "result.json").read_text(encoding="utf-8")))
            return
        rows = read_rows(Path(asked.rows))
        criteria = criteria_of(asked.criteria)
        found = find_model(asked.model, store) if asked.model is not None else None
        dataset_id = _opened(store, job, asked, found, keys_of([row["item"] for row in rows]))
        try:
            _Run(job, store, asked, criteria, found).do(rows)
            result = _result(store, job, asked, criteria, dataset_id, _whose(found, rows))
        except KeyboardInterrupt:
            store.finish_run(job.id, status="cancelled")
            raise
        except BaseException as error:
            store.finish_run(job.id, status="failed", error=str(error) or type(error).__name__)
            raise
        write_file(folder / "result.json", json.dumps(result))
        store.finish_run(job.id, metrics=result)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a run.

    Raises:
        DataError: if the file is not there or not whole.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"the rows of this run cannot be read ({error}); make another run") from error


def keys_of(items: Sequence[Any]) -> list[str]:
    """A name for each item that follows from what it holds; those that repeat are told apart by their order."""
    times: Counter[str] = Counter()
    keys = []
    for item in items:
        told = json.dumps(item, sort_keys=True).encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(told).hexdigest()[:24]
        times[digest] += 1
        keys.append(digest if times[digest] == 1 else f"{digest}:{times[digest]}")
    return keys


def output_id(run_id: str, number: int) -> str:
    """The id of a row's output."""
    return f"outputitem_{run_id.partition('_')[2]}_{number}"


def row_number(output_id: str) -> int:
    """Which row an output is of, from 0."""
    return int(output_id.rpartition("_")[2])


def _opened(store: Store, job: Job, asked: Asked, found: Found | None, keys: Sequence[str]) -> str:
    """The id of the data set; the run is open."""
    told = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    dataset = store.add_dataset(told, kind="evals", path=asked.rows, rows=len(keys))
    try:
        store.run(job.id)
        store.reopen_run(job.id)
    except NotFound:
        version = found.version if found is not None else None
        store.add_run(
            METHOD,
            job.recipe,
            job.folder,
            base_version=version.id if version is not None else None,
            base_model=found.base_model if found is not None else None,
            dataset_id=dataset.id,
            run_id=job.id,
        )
    return dataset.id


class _Run:
    """The model and the graders of one run."""

    def __init__(
        self, job: Job, store: Store, asked: Asked, criteria: Sequence[Criterion], found: Found | None
    ) -> None:
        self.job, self.store, self.asked, self.criteria, self.found = job, store, asked, criteria, found
        self.policy: Any = _loaded(found) if found is not None else None

    def do(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does what is not done yet."""
        done = {output.id for output in self.store.graded(self.job.id)}
        ids = [output_id(self.job.id, number) for number in range(len(rows))]
        keys = keys_of([row["item"] for row in rows])
        with ExitStack() as stack:
            pools = [stack.enter_context(self._pool(one)) for one in self.criteria]
            for start in range(0, len(rows), AT_ONCE):
                part = [n for n in range(start, min(start + AT_ONCE, len(rows))) if ids[n] not in done]
                if part:
                    made = list(self._outputs([rows[n] for n in part]))
                    records = [replace(record, group=keys[n]) for n, (record, _) in zip(part, made, strict=True)]
                    scores = self._grades(records, [error for _, error in made], pools)
                    self.store.add_outputs(self.job.id, [ids[n] for n in part], records, scores, fence=self.job.fence)

    def _pool(self, one: Criterion) -> GraderPool:
        return GraderPool(with_judges(one.spec, self.store), processes=1, timeout_s=PATIENCE_S)

    def _outputs(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Record, str]]:
        """Each row's output, and what went wrong where there is none."""
        asked: list[Any] = []
        settings: list[Sampling] = []
        errors: list[str] = []
        for row in rows:
            try:
                settings += [self._settings(row)] if "output" not in row else []
                asked += [row["inputs"]] if "output" not in row else []
                errors.append("")
            except DataError as fault:  # this row's alone
                errors.append(str(fault))
        sampled = iter(self.policy.sample(asked, settings) if asked else ())
        for row, error in zip(rows, errors, strict=True):
            if error:
                record = Record(inputs=row["inputs"], output=None)
            elif "output" in row:
                record = Record(inputs=row.get("inputs"), output=row["output"], finish=row.get("finish", "given"))
            else:
                record = next(sampled)
            version = row.get("version") if "output" in row else self._version
            yield replace(record, item=row["item"], policy_version=version), error

    @property
    def _version(self) -> str | None:
        return self.found.version.id if self.found is not None and self.found.version is not None else None

    def _settings(self, row: Mapping[str, Any]) -> Sampling:
        """How a row's output is sampled.

        Raises:
            DataError: if what is read cannot be rendered, or leaves no room for the output.
        """
        read = len(self.policy.renderer.context(row["inputs"]))
        room = self.policy.max_length - read
        wanted = self.asked.sampling.get("max_tokens") or max(1, min(LONGEST, room))
        if wanted > room:
            raise DataError(
                f"{read} tokens and an output of up to {wanted} exceed the context of {self.policy.max_length}; "
                "ask less, or lower max_completion_tokens"
            )
        return Sampling(**{**self.asked.sampling, "max_tokens": wanted})

    def _grades(
        self, records: Sequence[Record], errors: Sequence[str], pools: Sequence[GraderPool]
    ) -> list[list[Score]]:
        """Each record's scores, one for each criterion."""
        whole = [replace(record, output=answered(record)) for record in records]
        there = [record for record, error in zip(whole, errors, strict=True) if not error]
        columns = []
        for one, pool in zip(self.criteria, pools, strict=True):
            given = iter(pool.grade(there) if there else ())
            scores = [failed(one.name, f"no output: {error}") if error else next(given) for error in errors]
            columns.append([_said(one, score) for score in scores])
        return [list(row) for row in zip(*columns, strict=True)]


def _loaded(found: Found) -> Any:
    """The language model.

    Raises:
        DataError: if it is another kind of policy.
    """
    from melior.policies.kinds import load_policy  # brings torch, which outputs that are given do without

    policy = load_policy(found.path)
    if policy.kind != "language":
        raise DataError(f"{found.path} is a {policy.kind} policy, and evals ask language models")
    return policy


def answered(record: Record) -> Any:
    """The output as graders and people see it: an assistant's message where it calls tools that were offered."""
    tools = record.inputs.get("tools") if isinstance(record.inputs, Mapping) else None
    if not tools or not isinstance(record.output, str):
        return record.output
    said, calls = calls_in(record.output, names_of(tools))
    named = [{"id": f"call_{place}", **call} for place, call in enumerate(calls)]
    return {"role": "assistant", "content": said or None, "tool_calls": named} if calls else record.output


def _said(one: Criterion, score: Score) -> Score:
    """The score under the criterion's name; one that says neither a number nor why is an error too."""
    if score.value is None and not score.error:
        score = failed(one.name, f"{one.name} gave no number; it must give one for every output")
    return replace(score, name=one.name)


def _result(
    store: Store,
    job: Job,
    asked: Asked,
    criteria: Sequence[Criterion],
    dataset_id: str,
    whose: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What the run came to; the registry's evaluation too, where all of it is one model's."""
    outputs = store.graded(job.id)
    counts = tally(outputs, criteria)
    if counts["counts"]["errored"] == len(outputs):
        first = next(error for output in outputs for error in output.errors.values())
        raise GraderError(f"{len(outputs)} of {len(outputs)} outputs could not be graded, the first with: {first}")
    sampling = Sampling(**{"max_tokens": LONGEST, **asked.sampling})
    evaluation = evaluation_of(
        [(output.key, output.values) for output in outputs], criteria, grader=asked.grader, sampling=sampling
    )
    told: dict[str, Any] = {"run_id": job.id, **counts, "usage": usage_of(store, job, outputs)}
    if whose is not None:
        told["evaluation_id"] = record_evaluation(store, evaluation, dataset_id=dataset_id, **whose).id
    return told


def _whose(found: Found | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """The version or the base model that all outputs are of; None where they are of several, or of nobody we know."""
    if found is not None:
        return {"version_id": found.version.id} if found.version is not None else {"base_model": found.base_model}
    versions = {row.get("version") for row in rows}
    (version, *others) = versions
    return {"version_id": version} if version is not None and not others else None


def tally(outputs: Sequence[Graded], criteria: Sequence[Criterion]) -> dict[str, Any]:
    """How many outputs passed, in all and by criterion."""
    values = [output.values for output in outputs]
    return {"counts": counts_of(values, criteria), "criteria": counts_by_criterion(values, criteria)}


def usage_of(store: Store, job: Job, outputs: Sequence[Graded]) -> list[dict[str, Any]]:
    """Tokens of the model and of every judge, by the names that the client knows them by."""
    asked = Asked(**job.recipe)
    spent: dict[str, Counter[str]] = {}
    if asked.model is not None:
        for decision in store.decisions(run_id=job.id):
            read, decided = decision.record.context, decision.record.decisions
            if read is not None and decided is not None:
                model = spent.setdefault(asked.names.get(asked.model, asked.model), Counter())
                model.update(invocation_count=1, prompt_tokens=len(read), completion_tokens=len(decided))
    for output in outputs:
        for models in output.usage.values():
            for name, counts in models.items():
                spent.setdefault(asked.names.get(name, Path(name).name), Counter()).update(invocation_count=1, **counts)
    return [
        {
            "model_name": name,
            "invocation_count": counts["invocation_count"],
            "prompt_tokens": counts["prompt_tokens"],
            "completion_tokens": counts["completion_tokens"],
            "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"],
            "cached_tokens": 0,
        }
        for name, counts in spent.items()
    ]
