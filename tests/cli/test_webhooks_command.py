"""melior webhooks: added, listed with what became of messages, revoked"""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from melior.cli.main import app
from melior.store import Store

RUN = CliRunner()


def test_webhooks_are_added_listed_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "melior.db"
    store = ["--store", str(path)]
    assert "melior webhooks add URL" in RUN.invoke(app, ["webhooks", "list", *store]).output
    asked = ["webhooks", "add", "https://ops.example", "--name", "ops", *store, "--json"]
    made = json.loads(RUN.invoke(app, asked).stdout)
    assert made["secret"].startswith("whsec_") and len(made["events"]) == 3
    with Store.open(path) as opened:
        job = opened.ask_job(opened.add_job("sft", {}, "/nowhere").id, "cancel")
        [(message, _)] = opened.claim_deliveries(1)
        opened.not_delivered(message, "refused")
    assert message.body["data"]["id"] == job.id
    [listed] = json.loads(RUN.invoke(app, ["webhooks", "list", *store, "--json"]).stdout)
    assert (listed["waiting"], listed["error"]) == (1, "refused")
    shown = RUN.invoke(app, ["webhooks", "list", *store]).output
    assert "https://ops.example" in shown and "refused" in shown and made["secret"] not in shown
    assert "told nothing more" in RUN.invoke(app, ["webhooks", "revoke", made["id"], *store]).output
    again = RUN.invoke(app, ["webhooks", "revoke", made["id"], *store])
    assert again.exit_code == 1 and "was revoked on" in again.output


def test_mistakes_are_told_with_what_there_is(tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "melior.db")]
    for asked, told in (
        (["ops.example"], "starts with http:// or https://"),
        (["https://a.example", "--event", "fine_tuning.job.suceeded"], "fine_tuning.job.succeeded"),
    ):
        result = RUN.invoke(app, ["webhooks", "add", *asked, *store])
        assert result.exit_code == 1 and told in result.output, result.output
