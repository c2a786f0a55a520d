"""what a judge is worth: agreement, order, length and canaries, and the floor under which it is no reward"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from melior.errors import ConfigError, DataError
from melior.evaluation.judges import Floor, JudgeReport, concordance, judge_report, length_slope
from melior.rewards.canaries import CANARIES, QUESTION, Tried, canaries, last_words, lowest, passing_line
from melior.rewards.pairs import SWAPPED, Compared, Pair
from melior.types import Preference, Rated, Record, Score


class Single:
    """A judge of single outputs that says what a function says; None is a failure."""

    def __init__(self, say: Callable[[str], float | None]) -> None:
        self.say = say

    def grade(self, records: Sequence[Record]) -> list[Score]:
        usage = {"big": {"prompt_tokens": 2, "completion_tokens": 1}}
        return [
            Score(value=value, usage=usage)
            if (value := self.say(str(record.output))) is not None
            else Score(value=None, error="it broke", kind="model_grader_parse_error")
            for record in records
        ]


class Both:
    """A judge of pairs that names a side: what a function says of the two answers in the order shown."""

    def __init__(self, say: Callable[[str, str], str]) -> None:
        self.say = say

    def compare(self, pairs: Sequence[Pair]) -> list[Compared]:
        found = []
        for pair in pairs:
            said = self.say(pair.first, pair.second), self.say(pair.second, pair.first)
            same = said[0] == SWAPPED[said[1]]
            found.append(Compared(value={"A": 1.0, "B": 0.0, "tie": 0.5}[said[0]] if same else 0.5, said=said))
        return found


def quality(text: str) -> float:
    """Answers of these tests begin with how good they are; canaries do not, and are worth nothing."""
    head = text.split(" ")[0]
    return float(head) if head.replace(".", "").replace("-", "").isdigit() else -9.0


def pairs(count: int = 200, noise: float = 0.0, seed: int = 0) -> list[Preference]:
    """People prefer the better answer, but for a share of the pairs."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        good, bad = (
            f"{value:.3f} {'x' * chance.randint(1, 80)}" for value in sorted((chance.random(), chance.random()))[::-1]
        )
        chosen, rejected = (bad, good) if chance.random() < noise else (good, bad)
        rows.append(Preference(f"question {number}", chosen, rejected))
    return rows


def test_a_judge_who_sees_what_people_see_is_accepted() -> None:
    report = judge_report(Single(quality), pairs(noise=0.2), name="good")
    assert report.accepted and report.agreement is not None and report.consistency is None
    assert 0.7 < report.agreement.low < report.agreement.estimate < 0.9
    assert report.sentence.startswith("Accepted: good agrees with people on") and report.failure_share == 0
    assert [each.name for each in report.canaries] == list(CANARIES) and not any(t.accepted for t in report.canaries)
    assert report.tokens == {"big": 3 * 400}


def test_a_coin_is_refused_and_says_so() -> None:
    chance = random.Random(3)
    report = judge_report(Single(lambda text: chance.random() if quality(text) >= 0 else -1.0), pairs())
    assert not report.accepted and "the floor is 0.55" in report.sentence and report.sentence.startswith("Refused")


def test_a_judge_of_sides_ties_always_and_is_refused_for_it() -> None:
    report = judge_report(Both(lambda a, b: "A"), pairs())
    assert report.agreement is not None and report.agreement.estimate == 0.5 and report.ties == 1.0
    assert report.consistency is not None and report.consistency.estimate == 0.0
    assert report.first_named is not None and report.first_named.estimate == 1.0
    assert len(report.reasons) == 3 and "survive an exchange of sides" in report.sentence
    assert all(each.accepted == each.prompts == 20 for each in report.canaries)  # a tie is not worse


def test_a_judge_of_pairs_that_looks_is_accepted() -> None:
    report = judge_report(Both(lambda a, b: "A" if quality(a) > quality(b) else "B"), pairs(noise=0.1))
    assert report.accepted and report.consistency is not None and report.consistency.estimate == 1.0
    assert report.first_named is not None and report.first_named.estimate == 0.5


def test_failures_are_left_out_counted_and_too_many_refuse() -> None:
    few = judge_report(Single(lambda text: None if text.startswith("0.99") else quality(text)), pairs(400))
    assert few.accepted and 0 < few.failures["model_grader_parse_error"] == few.rows - few.graded
    many = judge_report(Single(lambda text: None if text.startswith("0.9") else quality(text)), pairs(400))
    assert not many.accepted and "failed on" in many.sentence and many.agreement is not None
    assert many.agreement.estimate == 1.0  # of those with a verdict: nothing was scored 0 for a failure
    none = judge_report(Single(lambda text: None), pairs())
    assert none.graded == 0 and none.agreement is None and "failed on all 200 rows" in none.sentence
    assert "it broke" in none.sentence and json.dumps(none.to_json(), allow_nan=False)


@pytest.mark.parametrize("bait", ["", ":", "give me 10"])
def test_a_judge_that_falls_for_one_canary_is_refused_by_its_name(bait: str) -> None:
    report = judge_report(Single(lambda text: 2.0 if text == bait else quality(text)), pairs())
    assert not report.accepted and len(report.reasons) == 1
    name = next(name for name in CANARIES if canaries("q")[name] == bait)
    assert f"accepts the canary {name!r} on 20 of 20 prompts (limit 5%)" in report.sentence


def test_a_judge_that_likes_the_question_is_found_out() -> None:
    report = judge_report(Single(lambda text: 2.0 if text.startswith("question") else quality(text)), pairs())
    assert [each.name for each in report.canaries if each.accepted] == [QUESTION]


def test_the_lowest_score_is_never_an_acceptance_and_a_threshold_is_the_line() -> None:
    flat = [Preference(f"q{n}", "good", "bad") for n in range(150)]
    label = {"type": "label_model"}
    strict = judge_report(Single(lambda text: 0.0), flat, spec=label)
    assert not any(each.accepted for each in strict.canaries)  # 0 is what failing is called
    generous = judge_report(Single(lambda text: 1.0), flat, spec=label)
    assert all(each.accepted == each.prompts for each in generous.canaries)
    half = judge_report(Single(lambda text: 0.6), flat, spec={"type": "score_model", "pass_threshold": 0.7})
    assert not any(each.accepted for each in half.canaries) and half.line == 0.7


def test_rows_of_one_conversation_stand_or_fall_together() -> None:
    alone = pairs(200, noise=0.2)
    grouped = [Preference(row.inputs, row.chosen, row.rejected, group=f"g{n // 20}") for n, row in enumerate(alone)]
    first, second = judge_report(Single(quality), alone), judge_report(Single(quality), grouped)
    assert first.agreement is not None and second.agreement is not None
    assert first.agreement.estimate == second.agreement.estimate and (first.clusters, second.clusters) == (200, 10)
    assert not second.accepted and "10 independent rows are fewer than the 100" in second.sentence


def test_pairs_are_turned_to_what_more_people_preferred_and_ties_left_out() -> None:
    rows = [Preference(r.inputs, r.rejected, r.chosen, 0.1) for r in pairs(120)]
    report = judge_report(Single(quality), [*rows, Preference("q", "1", "0", 0.5)])
    assert report.rows == 120 and report.agreement is not None and report.agreement.estimate == 1.0


def test_ratings_are_judged_by_concordance_which_is_the_area_for_two_kinds() -> None:
    chance = np.random.default_rng(0)
    good = chance.random(150) < 0.4
    said = good + chance.normal(size=150)
    assert concordance(said, good.astype(float)) == pytest.approx(roc_auc_score(good, said))
    rows = [Rated(f"q{n}", f"{score:.6f} words", float(label)) for n, (score, label) in enumerate(zip(said, good))]
    report = judge_report(Single(quality), rows)
    assert report.of == "ratings" and report.agreement is not None and report.accepted
    assert report.agreement.estimate == pytest.approx(roc_auc_score(good, said), abs=1e-4)
    assert report.line == pytest.approx(float(np.median(said[good])), abs=1e-4)
    with pytest.raises(DataError, match="compares two outputs"):
        judge_report(Both(lambda a, b: "A"), rows)


def test_the_slope_of_length_is_a_logistic_regression_without_intercept() -> None:
    chance = np.random.default_rng(1)
    ratio = chance.normal(size=400)
    prefers = (chance.random(400) < 1 / (1 + np.exp(-0.8 * ratio))).astype(float)
    found = length_slope(prefers, ratio, list(range(400)))
    peer = LogisticRegression(fit_intercept=False, C=1e3).fit(ratio[:, None], prefers)
    assert found.estimate == pytest.approx(float(peer.coef_[0, 0]), abs=2e-3)
    assert found.low < 0.8 < found.high
    turned = length_slope(1 - prefers, -ratio, list(range(400)))
    assert turned.estimate == pytest.approx(found.estimate)  # whichever side is called the first


def test_a_judge_of_length_shows_by_its_slope() -> None:
    report = judge_report(Single(lambda text: float(len(text))), pairs(noise=0.5))
    assert report.length_slope is not None and report.length_slope.low > 2
    assert report.people_slope is not None and report.people_slope.low < 0 < report.people_slope.high
    assert report.baselines["the longer one"] == pytest.approx(1 - report.baselines["the shorter one"])


def test_a_report_is_plain_json() -> None:
    told = json.loads(json.dumps(judge_report(Both(lambda a, b: "tie"), pairs(120)).to_json(), allow_nan=False))
    assert told["accepted"] is False and told["floor"]["agreement"] == 0.55 and told["canaries"][0]["rate"] == 1.0


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(DataError, match="0 rows"):
        judge_report(Single(quality), [])
    with pytest.raises(DataError, match="people tied on all"):
        judge_report(Single(quality), [Preference("q", "a", "b", 0.5)])
    with pytest.raises(ConfigError, match="shares between 0 and 1"):
        Floor(agreement=55)


def test_canaries_ask_the_persons_own_words() -> None:
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "two"},
    ]
    assert last_words(talk) == "two" and last_words("alone") == "alone" and last_words(None) == ""
    assert canaries(talk)[QUESTION] == "two" and tuple(canaries("q")) == CANARIES
    assert Tried(name="empty", prompts=0, accepted=0).rate == 0.0
    assert passing_line({"type": "pair_model"}) == 0.5 and passing_line("os:system") is None
    assert lowest({"type": "score_model", "range": [-2, 2]}) == -2.0 and lowest({"type": "learned"}) is None


def test_progress_is_told() -> None:
    told: list[str] = []
    report: JudgeReport = judge_report(
        Single(quality), pairs(40), progress=lambda what, done, total: told.append(f"{what} {done} {total}")
    )
    assert told[0] == "judging 0 80" and told[-1].startswith("canaries") and report.rows == 40
