"""leaks, references, token lengths, labels and settings"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_rows import Rows, write

from melior import durable
from melior.data.cleaning import CODES, CheckConfig, CheckReport, check_file
from melior.data.cleaning.tables import variants
from melior.errors import CheckpointError, ConfigError, DataError

QUIET = CheckConfig(languages=False)


def lines(report: CheckReport, code: str) -> list[Any]:
    finding = report.finding(code)
    return list(finding.lines) if finding else []


def test_leaks_into_training_are_told_and_removed(real_rows: Callable[[str, int], Rows], tmp_path: Path) -> None:
    rows = real_rows("gsm8k", 300)
    heldout, train = rows[:100], rows[100:]
    train[10] = {**heldout[3], "completion": "Another answer, with other words. #### 5"}
    train[20] = {**train[20], "prompt": heldout[4]["prompt"].upper() + "  "}
    words = heldout[5]["prompt"].split()
    place = next(i for i in range(len(words) // 2, len(words)) if words[i].isalpha())
    train[30] = {**train[30], "prompt": " ".join(words[:place] + words[place + 1 :])}
    train[40] = {**train[40], "user": "u7"}
    heldout[50] = {**heldout[50], "user": "u7"}
    config = CheckConfig(languages=False, group="user", near=0.8)
    source, other = write(tmp_path / "train.jsonl", train), write(tmp_path / "heldout.jsonl", heldout)
    report = check_file(source, config, heldout=other, fix=tmp_path / "out.jsonl")
    assert lines(report, "leak-exact") == [11, 21]
    assert lines(report, "leak-near") == [31]
    assert lines(report, "leak-group") == [41]
    assert "held-out line 4" in str(report.finding("leak-exact").examples[0].detail)  # type: ignore[union-attr]
    again = check_file(tmp_path / "out.jsonl", config, heldout=other)
    assert not [finding.code for finding in again.findings if finding.code.startswith("leak")]
    with pytest.raises(DataError, match="is the file being checked"):
        check_file(source, QUIET, heldout=other, fix=other)


def test_the_same_question_with_other_numbers_is_another_question(tmp_path: Path) -> None:
    asked = "State the final answer to the following arithmetic problem, and nothing else: {} {} {} ="
    sums = [(a, sign, b) for a in range(10, 20) for sign in "+-" for b in range(10, 20)]
    rows = [{"prompt": asked.format(*one), "completion": f"{one[0] + one[2]}"} for one in sums]
    write(tmp_path / "heldout.jsonl", rows[100:])
    report = check_file(write(tmp_path / "a.jsonl", rows[:100]), QUIET, heldout=tmp_path / "heldout.jsonl")
    assert [finding.code for finding in report.findings] == []


def test_tasks_need_the_reference_that_others_have(tmp_path: Path) -> None:
    rows = [{"prompt": f"Add {i} and {i}, what is it?", "answer": f"{2 * i}"} for i in range(30)]
    rows[4]["answer"], rows[9] = " ", {"prompt": "Add many numbers, what is it?"}
    rows[12]["prompt"] += " The answer is 24"
    report = check_file(write(tmp_path / "tasks.jsonl", rows), QUIET)
    assert lines(report, "missing-reference") == [5, 10]
    assert lines(report, "answer-in-prompt") == [13]
    few = [{"prompt": f"Prompt number {i % 2}, do it", "answer": str(i)} for i in range(40)]
    report = check_file(write(tmp_path / "few.jsonl", few), QUIET)
    assert report.finding("few-prompts") and len(lines(report, "contradiction")) == 40


def test_weight_zero_everywhere_teaches_nothing(tmp_path: Path) -> None:
    def chat(weight: int) -> dict[str, Any]:
        said = {"role": "assistant", "content": "Yes, that is so.", "weight": weight}
        return {"messages": [{"role": "user", "content": f"Is it {weight}?"}, said]}

    report = check_file(write(tmp_path / "chats.jsonl", [chat(1), chat(0)]), QUIET)
    assert lines(report, "nothing-to-learn") == [2]


def test_longer_chosen_sides_are_told_when_they_are_no_accident(tmp_path: Path) -> None:
    draw = random.Random(0)

    def pairs(longer: float) -> list[dict[str, str]]:
        sides = [("a much longer answer, it is", "s") for _ in range(200)]
        return [
            {"prompt": f"Question {i}?", "chosen": f"{i} {a if draw.random() < longer else b}", "rejected": f"{i} mid"}
            for i, (a, b) in enumerate(sides)
        ]

    assert check_file(write(tmp_path / "a.jsonl", pairs(0.9)), QUIET).finding("length-bias")
    assert not check_file(write(tmp_path / "b.jsonl", pairs(0.5)), QUIET).finding("length-bias")


def test_rows_over_the_context_are_told_in_tokens(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    from melior.policies.lengths import TokenCounter

    rows = [{"prompt": "the cat " * n, "completion": "sat"} for n in (1, 5, 400)]
    source = write(tmp_path / "rows.jsonl", rows)
    config = CheckConfig(languages=False, max_length=64)
    report = check_file(source, config, count_tokens=TokenCounter(str(folder_of())))
    assert lines(report, "too-long") == [3]
    assert report.tables["lengths"]["tokens"]["max"] > 400
    with pytest.raises(ConfigError, match="name the model"):
        check_file(source, config)


def test_a_row_that_the_template_refuses_is_told_with_its_line(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    from melior.policies.lengths import TokenCounter

    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    rows = [{"prompt": "the cat", "completion": "sat"}, {"prompt": "the dog", "completion": "ran", "tools": [tool]}]
    source = write(tmp_path / "rows.jsonl", rows)
    report = check_file(source, QUIET, count_tokens=TokenCounter(str(folder_of())), fix=tmp_path / "out.jsonl")
    assert lines(report, "template-refuses") == [2]
    assert report.fixed is not None and report.fixed.kept == 1


TEXT = "Every morning the old baker of the village opens his shop early and sells warm bread to all the children"


def test_texts_without_a_prompt_leak_too(tmp_path: Path) -> None:
    write(tmp_path / "heldout.jsonl", [{"text": TEXT}, {"text": TEXT.replace("bread", "cakes")}])
    rows = [{"text": f"{TEXT}."}, {"text": TEXT.removesuffix(" children")}, {"text": "Nothing of that kind is here."}]
    report = check_file(write(tmp_path / "rows.jsonl", rows), QUIET, heldout=tmp_path / "heldout.jsonl")
    assert (lines(report, "leak-exact"), lines(report, "leak-near")) == ([1], [2])


def test_groups_named_by_personal_data_stay_apart(tmp_path: Path) -> None:
    def row(name: str) -> dict[str, str]:
        return {"prompt": f"I am {name}, who are you?", "completion": "Nobody.", "user": f"{name}@acme-mail.com"}

    other = write(tmp_path / "heldout.jsonl", [row("ann"), {**row("bob"), "prompt": "Who is there?"}])
    source = write(tmp_path / "rows.jsonl", [row("carl"), row("dora"), row("bob")])
    report = check_file(source, CheckConfig(languages=False, group="user"), heldout=other)
    assert lines(report, "leak-group") == [3]


def test_other_tools_make_another_row(tmp_path: Path) -> None:
    said = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": f"So it is: {TEXT.lower()}"}]
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("add", "find")]
    rows = [{"messages": said, "tools": [*given]} for given in (*tools, tools[0])]
    report = check_file(write(tmp_path / "rows.jsonl", rows), QUIET)
    assert (lines(report, "duplicate"), lines(report, "near-duplicate")) == ([3], [])


def test_contradictory_preferences_are_left_to_people(tmp_path: Path) -> None:
    sides = {
        "chosen": TEXT,
        "rejected": "A short walk along the river in the evening helps more than any book.",
    }
    swapped = {"chosen": sides["rejected"], "rejected": sides["chosen"]}
    rows = [{"prompt": "What is good for us?", **both} for both in (sides, swapped)]
    report = check_file(write(tmp_path / "rows.jsonl", rows), QUIET, fix=tmp_path / "out.jsonl")
    assert (lines(report, "contradiction"), lines(report, "near-duplicate")) == ([1, 2], [])
    assert report.fixed is not None and report.fixed.kept == 2


def test_only_case_and_spaces_make_variants_of_a_label() -> None:
    assert variants({"card_arrival": 5, "Card Arrival": 1, "CARD_ARRIVAL ": 2}) == {
        "Card Arrival": "card_arrival",
        "CARD_ARRIVAL ": "card_arrival",
    }
    assert variants({"C": 5, "C#": 3, "C++": 2, "कि": 2, "का": 3, ":)": 1, ":(": 1}) == {}


@pytest.mark.slow
def test_wrong_labels_are_among_the_suspects(real_rows: Callable[[str, int], Rows], tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    rows = real_rows("banking77", 1200)
    labels = sorted({row["label"] for row in rows})
    wrong = random.Random(0).sample(range(len(rows)), 40)
    for index in wrong:
        rows[index]["label"] = labels[(labels.index(rows[index]["label"]) + 1) % len(labels)]
    report = check_file(write(tmp_path / "rows.jsonl", rows), CheckConfig(languages=False, labels=True))
    suspects = set(lines(report, "label-error"))
    caught = len(suspects & {index + 1 for index in wrong})
    assert caught >= 30 and len(suspects) <= 3 * len(wrong)


@pytest.mark.parametrize("system", ["", "You are a patient teacher of mathematics, who explains all steps. " * 9])
def test_languages_are_told_by_the_words(real_rows: Callable[[str, int], Rows], tmp_path: Path, system: str) -> None:
    pytest.importorskip("py3langid")
    rows = real_rows("gsm8k", 40)
    rows[7]["prompt"] = (
        "Eine Buchhandlung verkauft jede Woche dreihundert Romane an die Studierenden der Universität und verschenkt "
        "einige kleine Hefte an die Kinder, die sonntags mit ihren Eltern kommen."
    )
    if system:
        before = [{"role": "system", "content": system}]
        rows = [{**row, "prompt": [*before, {"role": "user", "content": row["prompt"]}]} for row in rows]
    report = check_file(write(tmp_path / "rows.jsonl", rows))
    assert lines(report, "other-language") == [8]
    assert report.tables["languages"]["en"] == 39


def test_what_is_ignored_is_neither_told_nor_fixed(tmp_path: Path) -> None:
    row = {"prompt": "Write to jane.doe@acme-mail.com, at the cafÃ©", "completion": "Yes."}
    source = write(tmp_path / "rows.jsonl", [row, row])
    every = frozenset(code.name for code in CODES)
    report = check_file(source, CheckConfig(languages=False, ignore=every), fix=tmp_path / "same.jsonl")
    assert report.findings == [] and (tmp_path / "same.jsonl").read_text() == source.read_text()
    kept = CheckConfig(languages=False, ignore=frozenset({"personal-data", "duplicate"}))
    check_file(source, kept, fix=tmp_path / "out.jsonl")
    assert "jane.doe@acme-mail.com, at the café" in (tmp_path / "out.jsonl").read_text()


def test_reports_show_no_personal_data(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Hello, I am jane.doe{i}@acme-mail.com and this is <b>bold</b>.", "completion": ""}
        for i in range(3)
    ]
    report = check_file(write(tmp_path / "rows.jsonl", rows), QUIET)
    report.write(tmp_path / "report.json")
    assert "acme-mail" not in (tmp_path / "report.json").read_text()


def test_settings_without_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.85 is usual"):
        CheckConfig(near=0.2)
    with pytest.raises(ConfigError, match=r"did you mean near-duplicate"):
        CheckConfig(ignore=frozenset({"near-duplicates"}))
    source = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    for fix in (tmp_path / "x" / ".." / "rows.jsonl", tmp_path / "out.jsonl"):
        name = "rows.jsonl" if fix.name == "rows.jsonl" else "out.removed.jsonl"
        again = write(tmp_path / name, [{"prompt": "a", "completion": "b"}])
        with pytest.raises(DataError, match="is the file being checked"):
            check_file(again, QUIET, fix=fix)
    with pytest.raises(DataError, match="stands in its folder"):
        check_file(tmp_path, QUIET, fix=tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        check_file(source, QUIET, fix=tmp_path / "out.csv")
    with pytest.raises(DataError, match=r"none\.jsonl"):
        check_file(tmp_path / "none.jsonl", QUIET)


def test_a_disk_that_refuses_a_fix_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])

    def refuse(moment: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "failpoint", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        check_file(source, QUIET, fix=tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_tasks_with_other_right_answers_are_other_tasks(tmp_path: Path) -> None:
    asked = (
        "A farmer has twelve cows on one meadow and five {} cows on the other meadow behind the house by the river. "
        "How many cows does the farmer have on both of the meadows together?"
    )

    def told(*answers: str) -> list[Any]:
        rows = [{"prompt": asked.format(word), "answer": a} for word, a in zip(("more", "fewer"), answers, strict=True)]
        return lines(check_file(write(tmp_path / "rows.jsonl", rows), QUIET), "near-duplicate")

    assert told("29", "19") == [] and len(told("29", "29")) == 1


def test_conversations_that_only_begin_alike_are_no_duplicates(tmp_path: Path) -> None:
    def chat(*answers: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": "Hello."}]
        for answer in answers:
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on."}]
        return {"messages": messages[:-1]}

    said = [("Yes.", "No."), ("No.", "Yes."), ("Tea?", "Then coffee for the lady."), ("It rains.", "Stay at home.")]
    said += [
        (f"The first of {word} words is here.", "And the last is there, behind the river.") for word in ("many", "Many")
    ]
    said[-1] = (said[-1][0], said[-1][1] + " No")
    report = check_file(write(tmp_path / "rows.jsonl", [chat(*one) for one in said]), QUIET)
    assert len(lines(report, "near-duplicate")) == 1 and set(lines(report, "near-duplicate")) <= {5, 6}
