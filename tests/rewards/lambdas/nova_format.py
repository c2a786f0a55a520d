"""a reward function for Amazon Nova: its role for the assistant, content in parts, reference_answer at the top"""

import json
from dataclasses import asdict, dataclass, field


@dataclass
class Metric:
    name: str
    value: float
    type: str = "Reward"


@dataclass
class Result:
    id: str
    aggregate_reward_score: float
    metrics_list: list = field(default_factory=list)


def text_of(message):
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def lambda_handler(event, context):
    samples = event if isinstance(event, list) else [event]
    answered = [judge(sample, context) for sample in samples]
    return {"statusCode": 200, "body": json.dumps([asdict(result) for result in answered])}


def judge(sample, context):
    last = sample["messages"][-1]
    if last["role"] not in ("nova_assistant",):
        raise ValueError(f"unexpected role {last['role']}")
    assert context.get_remaining_time_in_millis() > 0 and context.aws_request_id and context.function_name
    said = text_of(last)
    exact = float(said.strip() == str(sample["reference_answer"]))
    brief = max(0.0, 1 - len(said) / 400)
    return Result(
        sample["id"], 0.8 * exact + 0.2 * brief, [asdict(Metric("exact", exact)), asdict(Metric("brief", brief))]
    )
