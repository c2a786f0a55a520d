"""how alike two texts are: the metrics of text_similarity graders, all between 0 and 1

fuzzy_match       RapidFuzz's normalised weighted ratio of lower-cased words, as the dialect's examples use it
bleu              sentence BLEU of sacrebleu: 13a tokens, exponential smoothing, n-grams up to 4, as a share of 100
gleu              NLTK's sentence GLEU over words, n-grams up to 4
meteor            NLTK's METEOR over lower-cased words; its synonym stage runs only where WordNet is installed
rouge_1 … rouge_5 F1 of n-grams of lower-cased words, without stemming
rouge_l           F1 of the longest common subsequence
cosine            of sentence embeddings (all-MiniLM-L6-v2), negative ones as 0

Words are runs of letters and digits, or single other signs. Two empty texts are alike; an empty and
another one are not.

Source: Papineni et al. 2002 (BLEU); Wu et al. 2016, arXiv:1609.08144, §3 (GLEU); Banerjee and Lavie 2005 (METEOR);
Lin 2004 (ROUGE); Reimers and Gurevych 2019, arXiv:1908.10084 (sentence embeddings).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from melior.errors import GraderError
from melior.rewards.base import checked, failed, nearest
from melior.rewards.checks import rendered, texts_of
from melior.rewards.templates import OutputLacks, Template
from melior.types import Record, Score

log = logging.getLogger(__name__)

_WORD = re.compile(r"\w+|[^\w\s]")

Metric = Callable[[str, str], float]  # of the text and its reference


def _module(name: str) -> Any:
    """A library of the extra `similarity`."""
    try:
        return import_module(name)
    except ImportError:
        raise GraderError(
            f"this metric needs {name.partition('.')[0]}; install it with pip install 'melior[similarity]'"
        ) from None


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _fuzzy() -> Metric:
    fuzz, process = _module("rapidfuzz.fuzz"), _module("rapidfuzz.utils").default_process
    # two equal texts of signs alone have no words to compare
    return lambda text, reference: (
        1.0 if text == reference else float(fuzz.WRatio(text, reference, processor=process)) / 100
    )


def _bleu() -> Metric:
    score = _module("sacrebleu").sentence_bleu
    # a text identical to its reference comes out as 100.00000000000004
    return lambda text, reference: min(1.0, float(score(text, [reference], smooth_method="exp").score) / 100)


def _gleu() -> Metric:
    score = _module("nltk.translate.gleu_score").sentence_gleu
    return lambda text, reference: float(score([_words(reference)], _words(text)))


class _NoSynonyms:
    """Stands for WordNet where it is not installed: no word has a synonym."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        return []


def _meteor() -> Metric:
    score = _module("nltk.translate.meteor_score").meteor_score
    wordnet = _wordnet()
    return lambda text, reference: float(score([_words(reference)], _words(text), wordnet=wordnet))


@cache  # so that it is said once
def _wordnet() -> Any:
    """WordNet, or a stand-in that knows no synonyms."""
    wordnet = _module("nltk.corpus").wordnet
    try:
        wordnet.synsets("better")
    except LookupError:
        log.warning(
            "meteor compares exact words and stems only, as WordNet is not installed; "
            "python -m nltk.downloader wordnet adds synonyms (and raises scores)"
        )
        return _NoSynonyms()
    return wordnet


class _Letters:
    """ROUGE's tokens, in any alphabet: rouge-score's own drop every letter that is not English."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def _rouge(kind: str) -> Callable[[], Metric]:
    def made() -> Metric:
        scorer = _module("rouge_score.rouge_scorer").RougeScorer([kind], tokenizer=_Letters())
        return lambda text, reference: float(scorer.score(reference, text)[kind].fmeasure)

    return made


METRICS: Mapping[str, Callable[[], Metric]] = {
    "fuzzy_match": _fuzzy,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    **{f"rouge_{n}": _rouge(f"rouge{n}") for n in range(1, 6)},
    "rouge_l": _rouge("rougeL"),
}
COSINE = "cosine"


@cache
def _metric(name: str) -> Metric:
    return METRICS[name]()


def similarity(metric: str, text: str, reference: str) -> float:
    """How alike two texts are by a metric of `METRICS`, from 0 to 1."""
    if not text.strip() or not reference.strip():
        return float(text.strip() == reference.strip())
    return _metric(metric)(text, reference)


@dataclass(frozen=True)
class TextSimilarity:
    """How alike the rendered input is to the rendered reference, from 0 to 1."""

    name: str
    spec: Mapping[str, Any]
    metric: str
    input: Template
    reference: Template

    def load(self) -> None:
        """Import the metric's library.

        Raises:
            GraderError: if it is not installed, naming the extra.
        """
        _metric(self.metric)

    def grade(self, record: Record) -> Score:
        """The similarity; 0.0 where the output lacks what is compared."""
        try:
            text, reference = rendered(record, self.input, self.reference)
        except OutputLacks as lack:
            return lack.score
        return checked(self.name, similarity(self.metric, text, reference))


@dataclass(frozen=True)
class CosineSimilarity:
    """The cosine of two texts' embeddings, many pairs at once; below 0 it counts as 0."""

    name: str
    spec: Mapping[str, Any]
    input: Template
    reference: Template

    def load(self) -> None:
        """Load the encoder.

        Raises:
            GraderError: if its package is not installed, naming the extra.
        """
        from melior.rewards.local import encoder

        encoder()

    def grade(self, record: Record) -> Score:
        """The cosine of one pair."""
        return self.grade_many([record])[0]

    def grade_many(self, records: Sequence[Record]) -> list[Score]:
        """The cosine of each record's pair; equal texts are embedded once."""
        from melior.rewards.local import encoder

        scores: list[Score] = []
        pairs: dict[int, list[str]] = {}
        for index, record in enumerate(records):
            try:
                pairs[index] = rendered(record, self.input, self.reference)
                scores.append(Score(value=None))
            except OutputLacks as lack:
                scores.append(lack.score)
            except GraderError as error:
                scores.append(failed(self.name, str(error), kind=error.kind))
        cosines = encoder().cosines([(pair[0], pair[1]) for pair in pairs.values()])
        for (index, pair), cosine in zip(pairs.items(), cosines, strict=True):
            blank = [not text.strip() for text in pair]
            value = float(all(blank)) if any(blank) else min(1.0, max(0.0, cosine))
            scores[index] = Score(value=value)
        return scores


def text_similarity(spec: Mapping[str, Any], name: str | None) -> TextSimilarity | CosineSimilarity:
    """The grader of a setting.

    Raises:
        GraderError: if the metric is unknown, or a template or threshold cannot be used.
    """
    metric = spec["evaluation_metric"]
    known = (COSINE, *METRICS)
    if metric not in known:
        raise GraderError(
            f"text_similarity has no evaluation_metric {metric!r}{nearest(metric, known)}; it has {', '.join(known)}"
        )
    threshold_of(spec)
    named = name or str(metric)
    told = {**spec, "name": named}
    if metric == COSINE:
        return CosineSimilarity(named, told, *texts_of(spec))
    return TextSimilarity(named, told, metric, *texts_of(spec))


def threshold_of(spec: Mapping[str, Any]) -> float | None:
    """From which score on an output passes, for reports; rewards are not cut off at it.

    Raises:
        GraderError: if `pass_threshold` is not a number.
    """
    threshold = spec.get("pass_threshold")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
        raise GraderError(f"pass_threshold of {spec['type']} is a number, got {threshold!r}")
    return None if threshold is None else float(threshold)
