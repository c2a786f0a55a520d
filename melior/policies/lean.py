"""transformers, imported without scikit-learn

transformers imports it, where it is installed, for one kind of assisted decoding that melior never asks for. That costs
most of a second at every start. Import this module before transformers and PEFT.
"""

from transformers import utils

_available = utils.is_sklearn_available
utils.is_sklearn_available = lambda: False
try:
    import transformers.generation.candidate_generator  # noqa: F401  (it keeps this answer for itself)
finally:
    utils.is_sklearn_available = _available
