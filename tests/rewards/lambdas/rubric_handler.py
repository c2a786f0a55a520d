"""a reward function whose handler has a name of its own: how much of a rubric of words does the answer hold?"""

import logging
import os

logging.getLogger().setLevel(os.environ.get("LOG_LEVEL", "INFO"))
logger = logging.getLogger()


def covered(text, words):
    return sum(word.lower() in text.lower() for word in words) / max(1, len(words))


def score_answers(event, context):
    logger.info("%s: %d samples, %d ms left", context.function_name, len(event), context.get_remaining_time_in_millis())
    scores = []
    for sample in event:
        try:
            said = sample["messages"][-1]["content"]
            scores.append({"id": sample["id"], "aggregate_reward_score": covered(said, sample["metadata"]["rubric"])})
        except Exception as error:
            scores.append({"id": sample["id"], "errorMessage": str(error), "errorType": type(error).__name__})
    return scores
