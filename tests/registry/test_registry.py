"""versions, aliases and lineage"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from melior.errors import StoreError
from melior.registry import Registry
from melior.store import Store
from melior.store.rows import Version

Train = Callable[..., Version]

PROMOTER = """
import sys
from melior.errors import StoreError
from melior.registry import Registry
from melior.store import Store
registry = Registry(Store.open(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    print(registry.promote(sys.argv[2]).version_id)
except StoreError as error:
    print("refused:", error)
"""


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)


@pytest.fixture
def train(registry: Registry, tmp_path: Path) -> Train:
    """Registers a version with files of its own, and a gate's verdict on it where one is given."""
    made: list[Version] = []

    def train(parent: Version | None = None, verdict: str | None = None, name: str = "sums") -> Version:
        folder = tmp_path / "models" / str(len(made))
        (folder / "adapter").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "adapter" / "weights.safetensors").write_bytes(bytes([len(made)]) * 100)
        origin = {"parent": parent.id} if parent else {"base_model": "tiny"}
        made.append(registry.register(name, folder, method="rft" if parent else "sft", **origin))
        if verdict:
            now = registry.current(name)
            registry.store.add_gate(made[-1].id, now.id if now else None, verdict)  # type: ignore[arg-type]
        return made[-1]

    return train


def test_a_version_remembers_its_files_and_its_origin(registry: Registry, train: Train) -> None:
    first = train()
    child = train(first)
    assert sorted(first.files) == ["adapter/weights.safetensors", "config.json"]
    assert (first.parent_id, first.base_model, child.parent_id, child.base_model) == (None, "tiny", first.id, "tiny")
    assert first.fingerprint != child.fingerprint
    assert registry.list() == registry.list("sums") == (first, child)
    assert registry.list("other") == ()


def test_the_fingerprint_is_of_the_files_not_of_their_place(registry: Registry, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "w").write_bytes(b"same")
    a, b = (registry.register("m", tmp_path / place, method="sft", base_model="tiny") for place in ("a", "b"))
    assert a.fingerprint == b.fingerprint and a.id != b.id
    (tmp_path / "b" / "w").rename(tmp_path / "b" / "v")
    assert registry.register("m", tmp_path / "b", method="sft", base_model="tiny").fingerprint != a.fingerprint


def test_registering_again_what_is_there_is_the_same_version(registry: Registry, train: Train) -> None:
    first = train()
    assert registry.register("sums", first.folder, method="sft", base_model="tiny") == first
    run = registry.store.add_run("sft", {}, "runs/2")
    assert registry.register("sums", first.folder, method="sft", base_model="tiny", run_id=run.id).id != first.id


def test_what_cannot_be_registered_is_refused(registry: Registry, train: Train, tmp_path: Path) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    folder = train().folder
    with pytest.raises(StoreError, match="holds no files"):
        registry.register("m", tmp_path / "empty", method="sft", base_model="tiny")
    with pytest.raises(StoreError, match="there is no folder"):
        registry.register("m", tmp_path / "nowhere", method="sft", base_model="tiny")
    with pytest.raises(StoreError, match="needs a base model"):
        registry.register("m", folder, method="sft")
    with pytest.raises(StoreError, match="not the base model of"):
        registry.register("m", folder, method="rft", base_model="other", parent=registry.list()[0].id)
    with pytest.raises(StoreError, match="run_id are not in runs"):
        registry.register("m", folder, method="sft", base_model="tiny", run_id="run_no")
    for name in ("", "a@prod", "ver_mine", "-x", "a b", "x" * 201):
        with pytest.raises(StoreError, match="cannot name a model"):
            registry.register(name, folder, method="sft", base_model="tiny")
    assert len(registry.list()) == 1


def test_a_reference_is_an_id_its_beginning_a_name_or_an_alias(registry: Registry, train: Train) -> None:
    first = train(verdict="promote")
    registry.promote(first.id)
    second = train(first, verdict="promote")
    registry.promote(second.id, "canary")
    for reference in (first.id, first.id[:-4], "sums", "sums@prod"):
        assert registry.get(reference) == first
    assert registry.get("sums@canary") == second
    assert registry.current("sums", "canary") == second and registry.current("sums", "old") is None


def test_an_unknown_reference_names_what_is_near(registry: Registry, train: Train) -> None:
    first, second = train(), train()
    with pytest.raises(StoreError, match=rf"2 versions but no alias 'prod' .*{second.id}"):
        registry.get("sums")
    with pytest.raises(StoreError, match="did you mean 'sums'"):
        registry.get("sum")
    with pytest.raises(StoreError, match="there is no version 'ver_zzz' among 2"):
        registry.get("ver_zzz")
    with pytest.raises(StoreError, match="begins several ids"):
        registry.get("ver_")
    assert first != second


def test_promotion_moves_the_alias_and_is_logged(registry: Registry, train: Train) -> None:
    first = train(verdict="promote")
    event = registry.promote(first.id, reason="better by 0.3", actor="ann")
    [gate] = registry.store.gates(candidate_id=first.id)
    assert (event.action, event.previous_id, event.gate_id, event.forced) == ("promote", None, gate.id, False)
    assert (event.actor, event.reason) == ("ann", "better by 0.3")
    second = train(first, verdict="promote")
    assert registry.promote(second.id).previous_id == first.id
    assert registry.get("sums") == second
    assert [one.version_id for one in registry.history("sums")] == [first.id, second.id]


def test_promoting_twice_promotes_once(registry: Registry, train: Train) -> None:
    first = train(verdict="promote")
    event = registry.promote(first.id)
    assert registry.promote(first.id) == event == registry.promote("sums")
    assert registry.history("sums") == (event,)


@pytest.mark.parametrize("verdict", ["reject", "inconclusive", None])
def test_without_a_passed_gate_nothing_is_promoted_but_by_force(
    registry: Registry, train: Train, verdict: str | None
) -> None:
    version = train(verdict=verdict)
    with pytest.raises(StoreError, match=verdict or "has passed no gate"):
        registry.promote(version.id)
    with pytest.raises(StoreError, match="needs a reason"):
        registry.promote(version.id, force=True, reason=" ")
    assert registry.current("sums") is None and registry.history("sums") == ()
    event = registry.promote(version.id, force=True, reason="the gate's data was stale")
    assert event.forced and event.reason == "the gate's data was stale"
    assert registry.get("sums") == version


def test_the_newest_gate_counts_unless_one_is_named(registry: Registry, train: Train) -> None:
    version, other = train(verdict="promote"), train(verdict="promote")
    registry.store.add_gate(version.id, None, "reject")
    with pytest.raises(StoreError, match="reject"):
        registry.promote(version.id)
    with pytest.raises(StoreError, match=f"judged {other.id}"):
        registry.promote(version.id, gate_id=registry.store.gates(candidate_id=other.id)[0].id)
    passed = registry.store.gates(candidate_id=version.id)[0]
    assert registry.promote(version.id, gate_id=passed.id).gate_id == passed.id


def test_a_comparison_with_what_is_no_longer_in_force_is_stale(registry: Registry, train: Train) -> None:
    first = train(verdict="promote")
    registry.promote(first.id)
    fast, slow = train(first, verdict="promote"), train(first, verdict="promote")  # both beat the first
    registry.promote(fast.id)
    with pytest.raises(StoreError, match=f"compared with {first.id}, but sums@prod points to {fast.id}"):
        registry.promote(slow.id)
    assert registry.get("sums") == fast
    with pytest.raises(StoreError, match="by now"):
        registry.promote(slow.id, expected=first.id)
    registry.promote(slow.id, expected=fast.id)
    assert registry.get("sums") == slow


def test_of_two_processes_with_the_same_baseline_one_promotes(tmp_path: Path) -> None:
    path = tmp_path / "melior.db"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").write_bytes(b"w")
    with Store.open(path) as store:
        registry = Registry(store)
        runs = [store.add_run("sft", {}, "runs").id for _ in range(3)]
        first, *rest = (
            registry.register("m", tmp_path / "m", method="sft", base_model="tiny", run_id=run) for run in runs
        )
        registry.promote(first.id, force=True, reason="where it starts")
        for one in rest:
            store.add_gate(one.id, first.id, "promote")
        promoters = [
            subprocess.Popen(
                [sys.executable, "-c", PROMOTER, str(path), one.id],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for one in rest
        ]
        for promoter in promoters:
            assert promoter.stdout is not None and promoter.stdout.readline() == "ready\n"
        for promoter in promoters:
            assert promoter.stdin is not None
            promoter.stdin.write("go\n")
            promoter.stdin.flush()
        said = [promoter.communicate()[0].strip() for promoter in promoters]
        assert registry.get("m").id in said
        assert sum(line.startswith("refused:") for line in said) == 1, said
        assert len(registry.history("m")) == 2


def test_rollback_brings_back_the_version_before(registry: Registry, train: Train) -> None:
    first = train(verdict="promote")
    registry.promote(first.id)
    second = train(first, verdict="promote")
    registry.promote(second.id)
    assert registry.rollback("sums", reason="worse on long sums") == first == registry.get("sums")
    last = registry.history("sums")[-1]
    assert (last.action, last.previous_id, last.reason) == ("rollback", second.id, "worse on long sums")


def test_the_first_promotion_cannot_be_rolled_back(registry: Registry, train: Train) -> None:
    first = train(verdict="promote")
    with pytest.raises(StoreError, match="no alias 'prod'"):
        registry.rollback("sums")
    registry.promote(first.id)
    with pytest.raises(StoreError, match="no version before"):
        registry.rollback("sums")
    assert registry.get("sums") == first and len(registry.history("sums")) == 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: flip(folder / "adapter" / "weights.safetensors"), "1 changed (adapter/weights.safetensors)"),
        (lambda folder: (folder / "config.json").unlink(), "1 missing (config.json)"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "1 added (tokenizer.json)"),
    ],
    ids=["one bit", "missing", "added"],
)
def test_damaged_files_are_found_and_never_put_in_force(
    registry: Registry, train: Train, damage: Callable[[Path], object], says: str
) -> None:
    first = train(verdict="promote")
    registry.promote(first.id)
    second = train(first, verdict="promote")
    registry.promote(second.id)
    assert registry.verify(first.id) == first
    damage(Path(first.folder))
    for attempt in (
        lambda: registry.verify(first.id),
        lambda: registry.rollback("sums"),
        lambda: registry.promote(first.id, force=True, reason="please"),
    ):
        with pytest.raises(StoreError, match=re.escape(says)):
            attempt()
    assert registry.get("sums") == second and len(registry.history("sums")) == 2


def test_lineage_goes_up_to_the_base_model_and_down_to_the_last_child(registry: Registry, train: Train) -> None:
    store = registry.store
    data = store.add_dataset("f1", kind="train", path="train.jsonl", rows=192)
    one = train(verdict="promote")
    registry.promote(one.id)
    two = train(one)
    run = store.add_run("rft", {}, "runs/3", base_version=two.id, dataset_id=data.id)
    three = registry.register(
        "sums", train(two, name="scratch").folder, method="rft", parent=two.id, run_id=run.id, metrics={"reward": 0.5}
    )
    seen = store.add_evaluation(grader="exact", values={"1": [1.0]}, summary={"reward": 1.0}, version_id=three.id)
    gate = store.add_gate(three.id, one.id, "promote", evaluation_ids=[seen.id])
    event = registry.promote(three.id)
    four = train(three)

    lineage = registry.lineage(three.id)
    assert [link.version.id for link in lineage.chain] == [three.id, two.id, one.id]
    assert lineage.base_model == "tiny"
    assert lineage.descendants == (four,)
    top = lineage.chain[0]
    assert (top.run, top.dataset, top.evaluations, top.gates) == (run, data, (seen,), (gate,))
    assert top.promotions == (event,) and top.aliases == ("sums@prod",)
    assert lineage.chain[1].promotions == () and lineage.chain[1].run is None
    assert [e.version_id for e in lineage.chain[2].promotions] == [one.id, three.id]  # brought, then taken away

    down = registry.lineage(one.id)
    assert down.descendants[0] == two
    assert {version.id for version in down.descendants} >= {two.id, three.id, four.id}
    assert len(down.descendants) == 4  # and the scratch version
