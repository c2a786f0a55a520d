"""rows of known formats become demonstrations, preferences, rated outputs and tasks, and rows again

demonstrations   messages (OpenAI) · prompt-completion · text (TRL) · alpaca · sharegpt · bedrock-conversation ·
                 classification · argilla-demonstration · label-studio-demonstration · table · image-label · decision
tasks            messages-task (OpenAI) · prompt (TRL) · bedrock-task · decision-task
preferences      openai-preference · prompt-preference · preference (TRL) · argilla-preference ·
                 label-studio-preference · decision-preference · segment-preference
rated            rated · prompt-completion-label (TRL) · argilla-rating · label-studio-rating · decision-rating
logged           logged: what a policy decided, how probable that was, and what came of it

A prompt, completion, chosen or rejected is text or a list of messages; `tools` go with the prompt. Every other column
of a row is kept in the example's `item`, but for `group`. All rows of a source have one format. A table's rows are
read as such where their label's column is named: `Reading(label="creditability")`.
"""

from melior.data.formats.fingerprints import as_json, canonical, fingerprint
from melior.data.formats.known import ALIASES, FORMATS, format_named, format_of, typed
from melior.data.formats.messages import ROLES, messages_of
from melior.data.formats.reading import Examples, ExampleStream, read_examples
from melior.data.formats.rows import KINDS, Example, Format, Kind, Lost, Reading, RowError
from melior.data.readers import Line, Problem

__all__ = [
    "ALIASES",
    "FORMATS",
    "KINDS",
    "ROLES",
    "Example",
    "ExampleStream",
    "Examples",
    "Format",
    "Kind",
    "Line",
    "Lost",
    "Problem",
    "Reading",
    "RowError",
    "as_json",
    "canonical",
    "fingerprint",
    "format_named",
    "format_of",
    "messages_of",
    "read_examples",
    "typed",
]
