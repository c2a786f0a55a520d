"""the schema is true: what schemathesis makes of it, right and wrong, the server answers as the schema says"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live import TOKEN, Live
from test_server import ROWS

from melior.policies.classifier import Classifier, ClassifierPolicy
from melior.registry import Registry
from melior.serving.security import Limits
from melior.types import Demonstration

EXAMPLES = os.environ.get("MELIOR_SCHEMATHESIS", "2")  # for each operation, beside all corners of its parameters
SECONDS = 280 if EXAMPLES == "2" else 3_600
# What the schema cannot say is refused with 400 and a sentence: a model that is not there, a grader that cannot parse.
EXPECTED = ("[checks.not_a_server_error]", 'expected-statuses = ["2xx", "4xx", "501"]')  # what is known and not served
UNFIT = "positive_data_acceptance"


@pytest.fixture
def ids(live: Callable[..., Live], tmp_path: Path, folder_of: Callable[..., Path]) -> dict[str, str]:
    """A server with one of each thing, by the names of the schema's parameters; `url` is where it is."""
    server = live(limits=Limits(requests_per_s=1e6, burst=1_000_000))
    store, registry = server.service.store, Registry(server.service.store)
    rows = [Demonstration({"height": float(i)}, ("no", "yes")[i % 2]) for i in range(40)]
    ClassifierPolicy.make(Classifier(labels=("no", "yes")), rows).save(tmp_path / "label")
    for name, folder in (("label", tmp_path / "label"), ("tiny", folder_of("llama", "chatml"))):
        version = registry.register(name, folder, method="none", base_model="tiny")
        registry.promote(version.id, force=True, reason="the only one")
    client = server.client()
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model="tiny@prod", training_file=file)
    said: Any = [{"role": "user", "content": "hi"}]
    kept = client.chat.completions.create(model="tiny@prod", messages=said, max_tokens=3, store=True)
    hook = store.add_webhook("http://127.0.0.1:9/", ["model.promoted"])
    there = {"file_id": file, "job_id": job.id, "completion_id": kept.id, "webhook_id": hook.id, "model": "tiny@prod"}
    return {"url": server.url, **there}


@pytest.mark.slow
def test_the_server_answers_as_its_schema_says(ids: dict[str, str], tmp_path: Path) -> None:
    """No 5xx, no other status, type or object than is told, nothing wrong accepted, nothing without a token."""
    url = ids.pop("url")
    lines = [f'[dictionaries.{name}]\nvalues = ["{value}"]' for name, value in ids.items()]
    bound = [f'"path.{name}" = {{dictionary = "{name}", probability = 0.7}}' for name in ids]
    bound += [f'"body.{name}" = {{dictionary = "{name}", probability = 0.7}}' for name in ("model",)]
    settings = tmp_path / "schemathesis.toml"
    settings.write_text("\n".join([*lines, "[parameters]", *bound, *EXPECTED]))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run"]
    command += [f"{url}/v1/openapi.json", "-H", f"Authorization: Bearer {TOKEN}", "--seed", "1", "--no-shrink"]
    command += ["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--exclude-checks", UNFIT]
    command += ["--continue-on-failure", "--no-color", "--warnings", "off", "--output-sanitize", "false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-100_000:]
