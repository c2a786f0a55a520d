"""generated tasks are reproducible, separable, and verifiable from their item alone"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from melior.data.reasoning import reasoning_demonstrations, reasoning_split, reasoning_tasks
from melior.data.splits import check_disjoint
from melior.errors import DataError
from melior.rewards.base import call_grader
from melior.rewards.graders import load_grader
from melior.types import Record

pytest.importorskip("reasoning_gym")
SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


def test_the_same_seed_draws_the_same_tasks_and_more_begin_with_fewer() -> None:
    tasks = reasoning_tasks("chain_sum", 100, 3, **SMALL)
    assert tasks[:70] == reasoning_tasks("chain_sum", 70, 3, **SMALL)
    assert len({task.id for task in tasks}) == 100


def test_neighbouring_seeds_do_not_share_their_tasks() -> None:
    first, second = ({task.inputs for task in reasoning_tasks("lcm", 200, seed)} for seed in (0, 1))
    assert len(first & second) < 50


@pytest.mark.parametrize("dataset", ["chain_sum", "countdown", "acre", "basic_arithmetic", "word_sorting", "maze"])
def test_the_verifier_works_from_the_item_alone_after_json(dataset: str) -> None:
    grader = load_grader({"type": "reasoning_gym", "dataset": dataset})
    for task in reasoning_tasks(dataset, 3, 1):
        item = json.loads(json.dumps(task.item))
        assert item == task.item
        right, wrong = (Record(inputs="", output=text, item=item) for text in (f" {item['answer']}\n", "no idea"))
        assert call_grader(grader, right).value == pytest.approx(1.0)
        assert (call_grader(grader, wrong).value or 0.0) < 0.5


def test_demonstrations_answer_the_same_questions() -> None:
    tasks = reasoning_tasks("chain_sum", 5, 0, **SMALL)
    shown = reasoning_demonstrations("chain_sum", 5, 0, **SMALL)
    assert [(row.inputs, row.output, row.item) for row in shown] == [
        (task.inputs, task.item["answer"], task.item) for task in tasks
    ]
    assert all(eval_sum(row.inputs) == int(row.output) for row in shown)


def eval_sum(question: str) -> int:
    """The value of "State the final answer to the following arithmetic problem: 6 + 53 =", by hand."""
    terms = question.rpartition(":")[2].replace("=", "").replace("- ", "-").replace("+ ", "").split()
    return sum(map(int, terms))


def test_train_and_heldout_share_no_question_and_heldout_stays() -> None:
    train, held = reasoning_split("chain_sum", 300, 100, 7, **SMALL)
    assert (len(train), len(held)) == (300, 100)
    assert len({task.inputs for task in train + held}) == 400
    check_disjoint(train, held)
    assert reasoning_split("chain_sum", 50, 100, 7, **SMALL) == (train[:50], held)


def test_too_few_questions_and_unknown_names_are_told() -> None:
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(DataError, match="different questions"):
        reasoning_split("chain_sum", 300, 100, 0, **tiny)
    with pytest.raises(DataError, match="did you mean 'chain_sum'"):
        reasoning_tasks("chain_sums", 1)
    with pytest.raises(DataError, match="min_term"):
        reasoning_tasks("chain_sum", 1, min_term=2)
    with pytest.raises(DataError, match="refuses"):
        reasoning_tasks("chain_sum", 1, min_terms=5, max_terms=2)
    with pytest.raises(DataError, match="after JSON"):
        reasoning_tasks("arc_agi", 1)
    with pytest.raises(DataError, match="no reference answer"):
        reasoning_demonstrations("graph_color", 1)


def test_without_the_package_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['reasoning_gym'] = None\n"
        "from melior.data.reasoning import reasoning_tasks\n"
        "from melior.errors import DataError\n"
        "try: reasoning_tasks('chain_sum', 1)\n"
        "except DataError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "melior[reasoning]" in told
