"""/v1/evals/{eval}/compare: whether one run is better than another of the same rows, and how sure that is

An addition to the dialect. Rows are paired by what their items hold, so two models, two prompts or two settings can be
compared; what a criterion could not grade in either run is left out and counted.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from melior.evaluation.compare import compare
from melior.evaluation.criteria import evaluation_of
from melior.evaluation.evaluate import REWARD, Evaluation
from melior.evaluation.gates import Gate, decide
from melior.serving.eval_runs import criteria_in, found
from melior.serving.feedback import Id
from melior.serving.problems import Problem
from melior.serving.security import needs
from melior.serving.service import Service

PASSED = "passed"  # what the reward of an eval is: 1 for an output that passes every criterion

router = APIRouter(prefix="/v1/evals/{eval_id}/compare", tags=["evals"])


@router.get("", dependencies=[Depends(needs("read"))])
def compared(request: Request, eval_id: Id, baseline: Id, candidate: Id) -> dict[str, Any]:
    """Candidate minus baseline, paired row by row, with 95 % intervals, and what follows from it in a sentence."""
    service: Service = request.app.state.service
    before, after = (_measured(service, eval_id, run_id) for run_id in (baseline, candidate))
    paired = compare(after, before)
    verdict = decide(paired, Gate(guards=()))
    return {
        "object": "eval.comparison",
        "eval_id": eval_id,
        "baseline": baseline,
        "candidate": candidate,
        "items": len(paired.of(REWARD)),
        "missing": paired.missing,
        "results": [
            {
                "name": PASSED if name == REWARD else name.partition("/")[2],
                "baseline": paired.mean(name),
                "candidate": paired.mean(name) + paired.interval(name).estimate,
                "difference": paired.interval(name).to_json(),
            }
            for name in paired.differences
        ],
        "result": verdict.result,
        "items_needed": verdict.items_needed,
        "sentence": verdict.sentence.replace(REWARD, PASSED),
    }


def _measured(service: Service, eval_id: str, run_id: str) -> Evaluation:
    """What a run came to; how it was sampled is part of what is compared.

    Raises:
        Problem: if it has not come to its end.
    """
    job = found(service, eval_id, run_id)
    if job.status != "succeeded":
        raise Problem(409, f"{job.id} is {job.status}; compare runs that are completed", retry=False)
    outputs = [(output.key, output.values) for output in service.store.graded(job.id)]
    return evaluation_of(outputs, criteria_in(job), grader=str(job.recipe["grader"]))
