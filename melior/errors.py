"""every error melior raises, drawn as a tree

MeliorError
├── ConfigError          a setting is unknown, missing or out of range
├── DataError            a file or a row cannot be used; says which line
├── ModelError           a model folder, tokenizer or template cannot be used
│   └── LayoutError      the forest layout does not fit this model
├── ShapeError           tensors that must agree in shape do not
├── MissingLogProbs      an objective needs log-probs that the records lack
├── NeedsProbabilities   a loss needs probabilities and got densities
├── GraderError          a grader failed too often, or cannot be loaded
├── OutboundError        another machine refused, broke off or took too long
├── TrainingError        a run cannot go on
│   └── NonFiniteError   loss or gradient was not finite too many times in a row
├── CheckpointError      a checkpoint is damaged or does not fit
└── StoreError           the database refuses: stale alias, wrong schema, another body under one id
    ├── NotFound         nothing has this id
    │   └── UnknownModel   no model answers to this name
    ├── Forbidden        it is somebody else's to change
    ├── FencedError      a job has been given to another worker
    └── DatabaseAway     the database does not answer at present
        └── DiskFull     it has no room for more

Every message is one sentence with the number and the remedy.
"""


class MeliorError(Exception):
    """Something the reader of the message can put right."""


class ConfigError(MeliorError):
    """A setting is unknown, missing or out of range."""


class DataError(MeliorError):
    """A file or a row cannot be used."""


class ModelError(MeliorError):
    """A model folder, tokenizer or template cannot be used."""


class LayoutError(ModelError):
    """The forest layout does not fit this model."""


class ShapeError(MeliorError):
    """Tensors that must agree in shape do not."""


class MissingLogProbs(MeliorError):
    """An objective needs log-probs that the records lack."""


class NeedsProbabilities(MeliorError):
    """A loss needs probabilities and got densities."""


class GraderError(MeliorError):
    """A grader failed, failed too often, or cannot be loaded; `kind` is the flag of the OpenAI dialect's result."""

    def __init__(self, message: str, kind: str = "other_error") -> None:
        super().__init__(message)
        self.kind = kind


class OutboundError(MeliorError):
    """A request to another machine was not answered, or may not be sent there; `status` is its answer's, if any."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class TrainingError(MeliorError):
    """A run cannot go on."""


class NonFiniteError(TrainingError):
    """Loss or gradient was not finite too many times in a row."""


class CheckpointError(MeliorError):
    """A checkpoint is damaged or does not fit."""


class StoreError(MeliorError):
    """The database refuses what was asked of it."""


class NotFound(StoreError):
    """Nothing has this id."""


class Forbidden(StoreError):
    """It is somebody else's to change."""


class UnknownModel(NotFound):
    """No model answers to this name."""


class FencedError(StoreError):
    """A job has been given to another worker since this one took it."""


class DatabaseAway(StoreError):
    """The database does not answer at present: it is busy, stopped or out of reach."""


class DiskFull(DatabaseAway):
    """The database has no room for more; what it has is safe."""
