"""Python of others: a faulty source is found without running it, what goes wrong in it keeps its traceback"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from melior.errors import GraderError
from melior.rewards.graders import load_grader
from melior.rewards.isolation import detected
from melior.rewards.python import LONGEST_SOURCE
from melior.rewards.sandbox import Level
from melior.rewards.workers import GraderPool
from melior.types import Record, Score

ANY = detected().level >= Level.L2
needs_sandbox = pytest.mark.skipif(not ANY, reason=f"this machine has no sandbox: {detected().reasons}")
RECORD = Record(inputs="q", output="four", item={"answer": "four", "weight": 0.5})


def python(source: str, **more: Any) -> dict[str, Any]:
    return {"type": "python", "name": "mine", "source": source, **more}


def score_of(source: str, record: Record = RECORD) -> Score:
    with GraderPool(python(source), processes=1, timeout_s=30) as pool:
        return pool.grade([record])[0]


FAULTY = {
    "def grade(sample, item) return 1": "cannot be compiled: expected ':'",
    "def grade(sample, item):\nreturn 1": r"cannot be compiled: expected an indented block.*\(line 2\)",
    "x = '\0'": "cannot be compiled",
    "x = '\ud800'": "cannot be compiled",
    "x = " + "(" * 5000 + ")" * 5000: "cannot be compiled",
    "x = 1" + "+1" * 60_000: "cannot be compiled",
    "x = a" + ".a" * 60_000: "cannot be compiled",
    "x = " + "-" * 100_000 + "1": "cannot be compiled",
    "": "has no function `grade`",
    "def score(sample, item): return 1": "has no function `grade`",
    "class A:\n  def grade(sample, item): return 1": "has no function `grade`",
    "def grade(sample): return 1": "has a function `grade` that cannot be called with two arguments",
    "def grade(sample, item, third): return 1": "has a function `grade` that cannot be called with two arguments",
    "def grade(sample, item, *, strict): return 1": "has a function `grade` that cannot be called with two arguments",
    "#" * (LONGEST_SOURCE + 1): f"has {LONGEST_SOURCE + 1} bytes; at most {LONGEST_SOURCE}",
    "#" + "é" * (LONGEST_SOURCE // 2): f"has {LONGEST_SOURCE + 1} bytes; at most {LONGEST_SOURCE} are allowed",
}


@pytest.mark.parametrize(("source", "message"), FAULTY.items(), ids=range(len(FAULTY)))
def test_a_source_that_cannot_work_is_refused_before_it_runs(source: str, message: str) -> None:
    with pytest.raises(GraderError, match=f"the source of grader mine {message}"):
        load_grader(python(source))


@pytest.mark.parametrize("branches", [900, 1500])
def test_a_source_nested_too_deeply_for_us_is_refused_and_no_crash(branches: int) -> None:
    source = "x = 0\nif x == 0:\n    pass\n" + "elif x == 1:\n    pass\n" * branches + "def grade(a, b): return 1.0"
    try:
        load_grader(python(source))
    except GraderError as error:
        assert "nested too deeply" in str(error) or "recursion" in str(error)


@pytest.mark.parametrize(
    "source",
    [
        "def grade(sample, item, strict=False): return 1.0",
        "def grade(*parts): return 1.0",
        "grade = lambda sample, item: 1.0",
        "if True:\n    def grade(sample, item): return 1.0\nelse:\n    pass",
        "try:\n    from nowhere import grade\nexcept ImportError:\n    def grade(a, b): return 1.0",
        "async def grade(sample, item): return 1.0",
        "class Grader:\n    def __call__(self, sample, item): return 1.0\ngrade = Grader()",
    ],
)
@needs_sandbox
def test_every_way_to_define_grade_is_known(source: str) -> None:
    assert score_of(source).value == 1.0


def test_reading_a_source_runs_nothing_of_it(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    write = f"open({str(canary)!r}, 'w')"
    source = f"{write}\ndef grade(sample, item=({write})): return 1.0\n@({write})\ndef other(): pass"
    grader = load_grader(python(source, image_tag="2025-05-08", pass_threshold=0.5))
    grader.load()
    assert not canary.exists()
    assert grader.spec == python(source, image_tag="2025-05-08", pass_threshold=0.5)


def test_no_source_crashes_the_parser() -> None:
    """Reading happens in our process: the worst sources that are known for it, in another one."""
    program = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from melior.rewards.python import _fault\n"
        "n = 60_000\n"
        "repeated = ['-', '(', 'not ', 'lambda: ', '{0:', 'await ', '[0,', 'b\"\"', 'a if b else ', '1 < ', '9']\n"
        "worst = ['x=' + part * n + '1' for part in repeated]\n"
        "worst += ['x=a' + part * n for part in ('.a', '()', '[0]', '+1', '**1', ' if 1 else 1', '(b', ' and a')]\n"
        "worst += ['x=f\"' + '{a!r:' * 200, ''.join(' ' * k + 'if 1:\\n' for k in range(500)), 'del ' + '(' * n]\n"
        "worst += ['@' * n, 'def f(' + 'a,' * n + '): pass', 'match x:\\n case ' + '[' * n, 'try:\\n pass\\n' * n]\n"
        "print(len([_fault(source) for source in worst]))\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "26"), done.stderr[-500:]


@needs_sandbox
def test_the_documents_example_is_graded() -> None:
    source = (
        "from rapidfuzz import fuzz, utils\n"
        "def grade(sample, item) -> float:\n"
        "    output_text = sample['output_text']\n"
        "    return fuzz.WRatio(output_text, item['answer'], processor=utils.default_process) / 100.0\n"
    )
    assert score_of(source).value == 1.0


@needs_sandbox
@pytest.mark.parametrize("module", ["numpy", "pandas", "sympy", "asyncio", "sqlite3"])
def test_libraries_of_this_installation_can_be_imported(module: str) -> None:
    pytest.importorskip(module)
    source = f"import {module}\ndef grade(sample, item): return float(len({module}.__name__))"
    assert score_of(source).value == float(len(module))


@needs_sandbox
def test_an_error_keeps_its_type_its_line_and_its_kind() -> None:
    score = score_of("def grade(sample, item):\n    table = {}\n    return table['missing']\n")
    assert score.value is None and score.kind == "python_grader_runtime_error"
    assert score.error == "mine raised KeyError: 'missing'"
    assert 'grader_source.py", line 3, in grade' in score.traceback and "return table['missing']" in score.traceback


@needs_sandbox
def test_a_source_that_fails_when_it_is_loaded_says_where() -> None:
    with pytest.raises(GraderError, match=r"(?s)mine cannot be loaded: mine raised ZeroDivisionError.*line 2"):
        score_of("x = 1\ny = x / 0\ndef grade(sample, item): return 1.0")


@needs_sandbox
def test_a_call_outside_a_pool_is_confined_as_well(tmp_path: Path) -> None:
    target = tmp_path / "escaped"
    grader = load_grader(python(f"def grade(sample, item): open({str(target)!r}, 'w')"))
    score = grader.grade(RECORD)
    assert "PermissionError" in score.error or "FileNotFoundError" in score.error
    assert not target.exists()
    assert load_grader(python("def grade(sample, item): return 0.25")).grade(RECORD).value == 0.25


@needs_sandbox
def test_parts_of_a_sum_run_where_they_belong() -> None:
    """A function of the operator's may open files, a source of others beside it may not."""
    function = f"{Path(__file__).parent / 'faulty.py'}:reads"
    source = f"def grade(sample, item): return float(len(open({str(Path(__file__))!r}).read(1)))"
    trusted, stranger = {"type": "function", "function": function}, python(source)
    alone = {"type": "weighted", "graders": {"trusted": {"grader": trusted, "weight": 1.0}}}
    both = {"type": "weighted", "graders": {**alone["graders"], "stranger": {"grader": stranger, "weight": 1.0}}}  # type: ignore[dict-item]
    record = Record(inputs="", output="", item={"path": str(Path(__file__))})
    with GraderPool(alone, processes=1) as one, GraderPool(both, processes=1) as two:
        assert one.level is None and two.level == detected().level
        assert one.grade([record])[0].value == 1.0
        score = two.grade([record])[0]
    assert score.value is None and "stranger" in score.error and dict(score.parts) == {"trusted": 1.0}
