"""one self-contained page about a run, for people who would rather look than read

Nothing on it comes from elsewhere, and nothing on it runs but its own few lines of script: the policy in its head names
the digests of that script and of its style, so no text of a model can add another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from melior.reports.alarms import LONGEST, rung
from melior.reports.charts import histogram_chart, interval_chart, line_chart
from melior.reports.classification import classification_section
from melior.reports.curves import NO_TEXTS, charts_of, constants, curve_of
from melior.reports.files import RunFiles, number
from melior.reports.findings import findings
from melior.reports.learning import learning_section
from melior.reports.outputs import heldout_outputs, training_outputs
from melior.reports.plots import table
from melior.reports.reward_model import reward_section
from melior.reports.shell import shell
from melior.reports.slates import slates_section
from melior.reports.text import capital, counted, cut, duration, escaped, interval, short

RECIPE = 20_000  # characters of a recipe that are shown
ALARMS = 100  # of the list
STATES = {
    "finished": "finished",
    "trained": "trained",
    "running": "not finished",
    "interrupted": "interrupted",
    "failed": "failed",
    "alarmed": "stopped by an alarm",
}
HISTOGRAMS = (
    ("Rewards", "reward", "Two bands, at the top and at the bottom, are right and wrong; between them partial credit."),
    ("Lengths of completions", "length", "A pile at the top is cut at max_tokens."),
    ("Ratios", "ratio", "Probability now over probability when sampled, per decision; all about 1 is on-policy."),
)


def page(run: RunFiles) -> str:
    """The page, complete."""
    foot = "Made by melior from the files in the run’s folder; <code>melior runs report</code> makes it again."
    return shell(f"{_name(run)} · melior", _head(run), _sections(run), foot)


def _sections(run: RunFiles) -> list[tuple[str, str, str]]:
    return [
        ("notes", "Worth knowing", _notes(run)),
        ("alarms", "Alarms", _alarms(run)),
        ("curves", "Curves", _curves(run)),
        ("distributions", "Distributions", _distributions(run)),
        ("heldout", "The same questions, before and after", heldout_outputs(run)),
        ("samples", "What was learnt from", training_outputs(run)),
        ("gate", "Evaluation and gate", _gate(run)),
        ("classes", "Decisions by label", classification_section(run.classification)),
        ("labels", "How many labels it takes", learning_section(run.learning_curve)),
        ("slates", "What the slates show", slates_section(run.slates)),
        ("reward", "Agreement with people", reward_section(run.reward_model)),
        ("data", "Data", _data(run)),
        ("lineage", "Lineage", _lineage(run)),
        ("settings", "Settings", _settings(run)),
        ("environment", "Environment", _environment(run)),
    ]


# ---------------------------------------------------------------------- the head


def _head(run: RunFiles) -> str:
    state = "alarmed" if _alarmed(run) else run.state
    pill = f'<span class="state {escaped(state)}">{escaped(STATES.get(state, state))}</span>'
    gate = run.result.get("gate") or {}
    verdict = ""
    if gate:
        promoted = " Promoted." if run.result.get("promoted") else ""
        verdict = (
            f'<p class="verdict {escaped(gate.get("result"))}"><b>{escaped(gate.get("result"))}</b>'
            f"{escaped(_sentence(gate))}{promoted}</p>"
        )
    tiles = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in _tiles(run))
    return (
        f'<header><p class="brand">melior <span>run report</span></p><h1>{escaped(_name(run))} {pill}</h1>'
        f'<p class="sub">{escaped(_subtitle(run))}</p><div class="hero">{_headline(run)}</div>{verdict}'
        f'<dl class="tiles">{tiles}</dl></header>'
    )


def _alarmed(run: RunFiles) -> bool:
    """Whether an alarm ended the run, and it was not gone on with."""
    ended = run.state in ("trained", "finished") and bool(run.status.get("stopped"))
    return ended and any(each.stops for each in rung(run))


def _sentence(gate: Mapping[str, Any]) -> str:
    """The verdict's sentence, without the verdict that stands before it as a label."""
    return str(gate.get("sentence", "")).split(":", 1)[-1]


def _headline(run: RunFiles) -> str:
    """Before → after, with what lies between; of a run without evaluations its first and last loss or reward."""
    before, after = (found.get("reward") or {} for found in (run.before, run.after))
    what = f"held-out {run.after.get('grader') or run.before.get('grader') or 'reward'}"
    if number(before.get("estimate")) is None:
        return _first_and_last(run)
    if number(after.get("estimate")) is None:
        rows = [("before", before)]
        big = f'<b>{short(before["estimate"])}</b><span class="arrow">→</span><b class="faint">not yet</b>'
    else:
        rows = [("before", before), ("after", after)]
        big = f'<b>{short(before["estimate"])}</b><span class="arrow">→</span><b>{short(after["estimate"])}</b>'
    gain = (run.result.get("gate") or {}).get("interval")
    told = f'<p class="gain">gain {escaped(interval(gain, sign=True))}</p>' if gain else ""
    return f'<div><p class="what">{escaped(what)}</p><p class="big">{big}</p>{told}</div>{interval_chart(rows)}'


def _first_and_last(run: RunFiles) -> str:
    for name, label in (("heldout_loss", "held-out loss"), ("reward", "training reward"), ("loss", "training loss")):
        curve = curve_of(run, name)
        if curve and len(curve.points) > 1:
            first, last = curve.points[0][1], curve.last
            big = f'<b>{short(first)}</b><span class="arrow">→</span><b>{short(last)}</b>'
            return f'<div><p class="what">{label}, first and last step measured</p><p class="big">{big}</p></div>'
        if curve:
            return f'<div><p class="what">{label}, measured once</p><p class="big"><b>{short(curve.last)}</b></p></div>'
    return '<div><p class="what">Nothing has been measured yet</p><p class="big"><b class="faint">—</b></p></div>'


def _tiles(run: RunFiles) -> list[tuple[str, str]]:
    total = run.total
    done = f"{run.steps:,}" + (f" of {total:,}" if total and total != run.steps else "")
    tiles = [("steps", done)]
    seconds, decided = _sum(run, "seconds"), _sum(run, "decisions") or _sum(run, "num_tokens")
    if seconds:
        tiles.append(("training time", duration(seconds)))
    if decided:
        tiles.append(("decisions", f"{decided:,.0f}"))
    if decided and seconds:
        tiles.append(("decisions per second", short(decided / seconds)))
    nodes, padded = _sum(run, "nodes"), _sum(run, "padded_tokens")
    if nodes and padded:
        tiles.append(("computed for padded", f"{nodes:,.0f} / {padded:,.0f} ({padded / nodes:.1f}×)"))
    skipped = sum(1 for row in run.metrics if (number(row.get("skipped")) or 0) > 0)
    tiles.append(("skipped steps", f"{skipped}"))
    if run.status.get("best_step") is not None:
        tiles.append(("best step", f"{run.status['best_step']} ({short(number(run.status.get('best_value')))})"))
    return tiles


def _sum(run: RunFiles, name: str) -> float:
    return math.fsum(number(row.get(name)) or 0.0 for row in run.metrics)


def _name(run: RunFiles) -> str:
    saved = (run.settings.get("save") or {}).get("name")
    return str(saved or run.folder.absolute().name)


def _subtitle(run: RunFiles) -> str:
    model = (run.settings.get("model") or {}).get("path")
    methods = {
        "sft": "Learning by demonstration (SFT)",
        "rft": "Learning from rewards (RFT)",
        "off_policy": "Learning from logs",
        "dpo": "Learning from preferences (DPO)",
        "awr": "Learning from ratings",
    }
    method = methods.get(run.method, run.method or "Training")
    return f"{method}{f', from {model}' if model else ''}"


# ---------------------------------------------------------------------- the sections


def _notes(run: RunFiles) -> str:
    told = findings(run, alarms=False)
    return (
        f"<ul class='notes'>{''.join(f'<li>{escaped(cut(sentence, 400)[0])}</li>' for sentence in told)}</ul>"
        if told
        else ""
    )


def _alarms(run: RunFiles) -> str:
    found = rung(run)
    rows = "".join(
        f'<li class="{"stops" if each.stops else "warns"}"><b>{escaped(each.alarm)}</b> '
        f"{'stopped the run' if each.stops else 'warned'} after step {each.step + 1:,}"
        f"<p>{escaped(capital(cut(each.sentence, LONGEST)[0]))}.</p></li>"
        for each in found[:ALARMS]
    )
    left = len(found) - ALARMS
    note = f'<p class="note">{counted(left, "alarm")} more in alarms.jsonl.</p>' if left > 0 else ""
    return f'<ol class="notes">{rows}</ol>{note}' if rows else ""


def _curves(run: RunFiles) -> str:
    charts = "".join(line_chart(chart, run.steps) for chart in charts_of(run))
    level = constants(run)
    still = ", ".join(f"{name} {short(value)}" for name, value in level.items() if name not in ("skipped", "rounds"))
    note = f'<p class="note">The same at every step: {escaped(still)}.</p>' if still else ""
    return f'<div class="grid">{charts}</div>{note}' if charts else note


def _distributions(run: RunFiles) -> str:
    charts = "".join(
        histogram_chart(title, note, name, run.histograms)
        for title, name, note in HISTOGRAMS
        if name != "length" or run.kind not in NO_TEXTS
    )
    return f'<div class="grid">{charts}</div>' if charts else ""


def _gate(run: RunFiles) -> str:
    texts = run.kind not in NO_TEXTS
    rows = []
    for when, found in (("before", run.before), ("after", run.after)):
        if not found:
            continue
        share = number(found.get("truncated"))
        passed = "; ".join(f"@{k} {short(number(value))}" for k, value in (found.get("pass_at") or {}).items())
        rows.append(
            (
                when,
                interval(found.get("reward")),
                interval(found.get("greedy")),
                passed or "—",
                f"{len(found.get('items', ()))}",
                f"{found.get('excluded', 0)}",
                *(("—" if share is None else f"{share:.0%}", short(number(found.get("mean_tokens")))) if texts else ()),
            )
        )
    head = ("", "reward", "greedy", "pass", "items", "failed gradings", *(("cut", "mean length") if texts else ()))
    reasons = (run.result.get("gate") or {}).get("reasons") or ()
    told = "".join(f"<li>{escaped(reason)}</li>" for reason in reasons)
    return (table(head, rows) if rows else "") + (f"<h3>Why the gate decided so</h3><ul>{told}</ul>" if told else "")


def _data(run: RunFiles) -> str:
    data = dict(run.data)
    lengths = data.pop("lengths", None) or {}
    data.setdefault("steps_fingerprint", run.run.get("steps"))
    facts = [(name.replace("_", " "), value) for name, value in data.items() if value not in (None, "")]
    told = table(("", ""), [(name, _told(value)) for name, value in facts]) if facts else ""
    columns = ("tokens", "smallest", "5 %", "median", "95 %", "largest")
    rows = [(name, *(short(number(value)) for value in found)) for name, found in lengths.items()]
    return told + (f"<h3>Lengths</h3>{table(columns, rows)}" if rows else "")


def _lineage(run: RunFiles) -> str:
    result, model = run.result, (run.settings.get("model") or {}).get("path")
    steps = [
        ("from", model),
        ("starting weights", run.run.get("starting_weights") or run.run.get("policy")),
        ("data", run.data.get("fingerprint") or run.run.get("steps")),
        ("run", result.get("run_id")),
        ("version", result.get("version_id")),
        ("gate", result.get("gate_id") and f"{result['gate_id']}: {(result.get('gate') or {}).get('result')}"),
        ("promoted", ("yes" if result.get("promoted") else "no") if result else None),
    ]
    told = "".join(f"<li><span>{name}</span><code>{escaped(value)}</code></li>" for name, value in steps if value)
    return f'<ol class="chain">{told}</ol>' if told else ""


def _settings(run: RunFiles) -> str:
    if run.recipe:
        text, left = cut(run.recipe, RECIPE)
        more = f"\n… {left:,} more characters in recipe.yaml" if left else ""
        return f"<details><summary>Resolved recipe</summary><pre>{escaped(text + more)}</pre></details>"
    settings = {name: value for name, value in run.run.items() if name != "environment"}
    if not settings:
        return ""
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    return f"<details><summary>Settings of fit</summary><pre>{escaped(cut(text, RECIPE)[0])}</pre></details>"


def _environment(run: RunFiles) -> str:
    told = run.run.get("environment")
    if not isinstance(told, dict):
        return ""
    facts = [(name, _told(value)) for name, value in told.items() if name != "packages"]
    layout = run.result.get("layout")
    facts += [("layout", layout)] if layout else []
    packages = [(name, _told(value)) for name, value in (told.get("packages") or {}).items()]
    return f'<div class="two">{table(("machine", ""), facts)}{table(("package", "version"), packages)}</div>'


def _told(value: Any) -> str:
    if value is None:
        return "none"
    found = number(value)
    if found is not None:
        return f"{value:,}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
