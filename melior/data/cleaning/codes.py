"""the catalogue of findings: each has a stable code, a severity, a reason and what a fix does about it"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from melior.errors import ConfigError

Severity = Literal["error", "warning", "note"]
Action = Literal["remove", "repair", "keep"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Code:
    """One kind of finding.

    An error stops training or makes its evaluation untrue; a warning costs quality; a note is worth knowing. A fix
    removes the row, repairs it in place, or keeps it for a person to decide.
    """

    name: str
    severity: Severity
    action: Action
    why: str
    remedy: str


CODES = (
    Code("invalid-row", "error", "remove", "The line cannot be read as a row.", "Correct the line, or leave it out."),
    Code(
        "unknown-format",
        "error",
        "remove",
        "The columns are those of no format melior reads.",
        "Rename the columns; melior convert --list shows the formats.",
    ),
    Code(
        "mixed-formats",
        "error",
        "remove",
        "A file trains one objective, so all its rows must have one format.",
        "Put these rows into a file of their own.",
    ),
    Code("unknown-role", "error", "remove", "No chat template knows this role.", "Rename the role."),
    Code("empty-answer", "error", "remove", "An empty answer teaches the model to say nothing.", "Write the answer."),
    Code(
        "nothing-to-learn",
        "error",
        "remove",
        "No assistant message has a weight, so the row gives no gradient.",
        "Give a message weight 1, or leave the row out.",
    ),
    Code(
        "too-long",
        "error",
        "remove",
        "The row does not fit into the context, so training refuses it.",
        "Shorten it, or choose a longer context.",
    ),
    Code(
        "template-refuses",
        "error",
        "remove",
        "The model's chat template refuses the row, so training does.",
        "Correct the row, or choose a model whose template has what it needs.",
    ),
    Code(
        "chosen-is-rejected",
        "error",
        "remove",
        "Both sides of the preference are the same, so there is nothing to prefer.",
        "Leave the pair out, or record it as a tie.",
    ),
    Code(
        "missing-reference",
        "error",
        "remove",
        "The grader has nothing to compare an answer with, though other rows have a reference.",
        "Write the reference.",
    ),
    Code(
        "leak-exact",
        "error",
        "remove",
        "The same prompt is in the held-out file, so the evaluation would measure memory.",
        "Remove the row from training.",
    ),
    Code(
        "leak-group",
        "error",
        "remove",
        "Its conversation or user is in the held-out file, so the evaluation would measure memory.",
        "Split by group: melior.data.splits.split does.",
    ),
    Code(
        "leak-near",
        "warning",
        "remove",
        "Nearly the same prompt is in the held-out file, so the evaluation would flatter.",
        "Remove the row from training.",
    ),
    Code(
        "secret",
        "error",
        "repair",
        "A model can repeat a key or password it was trained on, word by word.",
        "Mask it, and revoke it where it came from.",
    ),
    Code(
        "personal-data",
        "warning",
        "repair",
        "A model can repeat personal data it was trained on, and the law limits its use.",
        "Mask it, or have a reason to keep it.",
    ),
    Code(
        "duplicate",
        "warning",
        "remove",
        "A row that stands there twice counts twice, and is learnt by heart.",
        "Keep one of them.",
    ),
    Code(
        "near-duplicate",
        "warning",
        "remove",
        "A row that differs from another by a few characters adds weight, not knowledge.",
        "Keep one of them.",
    ),
    Code(
        "duplicate-id",
        "warning",
        "keep",
        "Two different rows have one id, so results cannot be traced back to a row.",
        "Number the rows anew.",
    ),
    Code(
        "contradiction",
        "warning",
        "keep",
        "The same input has different right answers, so no model can satisfy both.",
        "Decide which one is right; a person must.",
    ),
    Code(
        "near-contradiction",
        "note",
        "keep",
        "Nearly the same text has another label: often a mistake in labelling.",
        "Look at both labels.",
    ),
    Code(
        "several-answers",
        "note",
        "keep",
        "The same prompt has several answers, which teaches variety, or confusion.",
        "Look whether they agree.",
    ),
    Code(
        "truncated-answer",
        "warning",
        "keep",
        "An answer cut short teaches the model to stop in the middle.",
        "Complete it, or leave the row out.",
    ),
    Code(
        "boilerplate",
        "warning",
        "keep",
        "Stock phrases of another assistant are learnt faster than anything else.",
        "Rewrite the answer, unless the refusal is meant.",
    ),
    Code(
        "answer-in-prompt",
        "warning",
        "keep",
        "The prompt already holds the answer, so copying is what is learnt.",
        "Take it out of the prompt, unless quoting is the task.",
    ),
    Code(
        "template-tokens",
        "warning",
        "keep",
        "Markers of a chat template inside a text look like turns to the model.",
        "Split the text into messages; the template writes the markers.",
    ),
    Code(
        "role-order",
        "warning",
        "keep",
        "Many templates refuse such an order of roles, or merge messages.",
        "Put system first and let user and assistant take turns.",
    ),
    Code(
        "assistant-first",
        "note",
        "keep",
        "The conversation begins with the assistant, which some templates refuse.",
        "Put a user's or a system message first, if your model's template needs it.",
    ),
    Code(
        "mojibake",
        "warning",
        "repair",
        "UTF-8 was read as another encoding; the model learns to write the debris.",
        "Decode it back.",
    ),
    Code(
        "lost-characters",
        "warning",
        "keep",
        "U+FFFD stands where a character was lost in decoding.",
        "Read the source again with its true encoding.",
    ),
    Code(
        "control-characters",
        "warning",
        "repair",
        "Control characters are tokens without a meaning.",
        "Take them out.",
    ),
    Code(
        "invisible-characters",
        "warning",
        "repair",
        "Zero-width and direction characters split words nobody sees split, and can hide text.",
        "Take them out.",
    ),
    Code(
        "html-entities",
        "warning",
        "repair",
        "Escapes such as &amp; are left over from a page; the model learns to write them.",
        "Write the characters they stand for.",
    ),
    Code("html-tags", "note", "keep", "Tags are left over from a page.", "Take them out, unless they are meant."),
    Code(
        "normal-form",
        "note",
        "repair",
        "Letters and accents stand apart, so one word has two spellings and two tokenisations.",
        "Normalise to NFC.",
    ),
    Code(
        "label-variants",
        "warning",
        "repair",
        "Labels that differ in case, spaces or underscores only count as different classes.",
        "Use the spelling most rows use.",
    ),
    Code(
        "label-spelling",
        "note",
        "keep",
        "A rare label differs from a common one by a letter or two.",
        "Correct it if it is a slip.",
    ),
    Code("rare-label", "note", "keep", "So few rows can hardly be learnt or measured.", "Collect more rows."),
    Code(
        "label-imbalance",
        "note",
        "keep",
        "The commonest label has far more rows than the rarest.",
        "Report per class, and weight or collect.",
    ),
    Code(
        "label-error",
        "warning",
        "keep",
        "A classifier that did not see the row is confident of another label.",
        "Look at these rows first.",
    ),
    Code(
        "other-language",
        "warning",
        "keep",
        "The row is in another language than most of the file.",
        "Leave it out, unless the mix is meant.",
    ),
    Code("length-outlier", "note", "keep", "The row is far longer than the others.", "Look whether it belongs here."),
    Code(
        "length-bias",
        "note",
        "keep",
        "The chosen side is longer so often that length alone explains the preference.",
        "Balance the pairs, or use a loss that controls for length.",
    ),
    Code(
        "unreadable-image",
        "error",
        "remove",
        "The picture cannot be decoded, or is not there.",
        "Save it again, or leave the row out.",
    ),
    Code(
        "constant-column",
        "note",
        "keep",
        "A column with one value in all rows teaches nothing.",
        "Leave it out, or see whether the export lost its values.",
    ),
    Code(
        "missing-values",
        "note",
        "keep",
        "A column that is mostly empty teaches little, or only who left it empty.",
        "Fill it, or leave it out.",
    ),
    Code(
        "identifier-column",
        "warning",
        "keep",
        "A column with another value in every row is learnt by heart, and new rows have none of its values.",
        "Drop it from what the policy reads.",
    ),
    Code(
        "tells-label",
        "warning",
        "keep",
        "Every value of the column has one label: it was probably written down after the label.",
        "Drop it, unless it is known before the decision.",
    ),
    Code(
        "few-prompts",
        "note",
        "keep",
        "Few distinct prompts carry most of the rows, so the model sees little variety.",
        "Collect more prompts.",
    ),
)
BY_NAME = {code.name: code for code in CODES}


def code_named(name: str) -> Code:
    """The code of a name.

    Raises:
        ConfigError: naming the nearest code.
    """
    import difflib

    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; codes are {', '.join(BY_NAME)}"
        raise ConfigError(f"no finding has the code {name!r}{hint}")
    return BY_NAME[name]
