"""a reward function as one writes it for AWS Lambda: is the last number of the answer the right one?"""

import re
import uuid


def lambda_handler(event, context):
    results = []
    for sample in event:
        answer = next(m["content"] for m in reversed(sample["messages"]) if m["role"] == "assistant")
        wanted = str(sample["metadata"]["reference_answer"]).replace(",", "")
        numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
        correct = float(bool(numbers) and numbers[-1] == wanted)
        shown = float("####" in answer)
        results.append(
            {
                "id": sample["id"],
                "aggregate_reward_score": 0.9 * correct + 0.1 * shown,
                "metrics_list": [
                    {"name": "correct", "value": correct, "type": "Reward"},
                    {"name": "shown", "value": shown, "type": "Metric"},
                ],
                "trace": str(uuid.uuid4()),
            }
        )
    return results
