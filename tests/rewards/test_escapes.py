"""nothing gets out of the sandbox: each attempt is stopped for the right reason, and the canary outside is intact

Every attempt runs at every level that this machine has. Where it does no lasting harm it also runs without a sandbox,
and succeeds there: the attempt is real, and the check can fail.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_workers import descendants, gone

from melior.errors import GraderError
from melior.rewards.isolation import ALLOW, CAP, detected
from melior.rewards.sandbox import Level
from melior.rewards.sandbox.landlock import landlock_abi
from melior.rewards.workers import GraderPool
from melior.types import Record, Score

HERE = Path(__file__).parent
SOURCE = (HERE / "escapes.py").read_text()
SPEC = {"type": "python", "name": "attempts", "source": SOURCE}
HIGHEST = detected().level
LEVELS = [level for level in (Level.L2, Level.L3) if level <= HIGHEST]
ROOT = os.getuid() == 0

DENIED = "PermissionError"
GONE = "PermissionError|FileNotFoundError"  # at level 3 there is no such file
NEWER = r"PermissionError|Errno 38\b"  # calls that libraries must believe not to exist
NOTHING = "Contained"

# attempt → why it fails inside, and what it does without a sandbox: "works", "harms" the canary, "" is not tried
ATTEMPTS: dict[str, tuple[str, str]] = {
    "read_shadow": (GONE, "works" if ROOT else ""),
    "read_passwd": (GONE, "works"),
    "read_secret": (GONE, "works"),
    "read_secret_by_another_way": (GONE, "works"),
    "read_repository": (GONE, "works"),
    "list_folder": (GONE, "works"),
    "list_home": (GONE, "works" if ROOT else ""),
    "read_environment": (NOTHING, "works"),
    "read_environment_of_the_c_library": (NOTHING, "works"),
    "read_first_environment": (GONE, "works"),
    "read_environment_of_the_victim": (GONE, "works"),
    "read_memory_of_the_trainer": (GONE, "works" if ROOT else ""),
    "read_descriptors_of_the_trainer": (GONE, "works"),
    "read_memory_of_the_victim": (DENIED, "works"),
    "read_kernel_memory": (GONE, ""),
    "read_disk": (GONE, ""),
    "make_disk": (DENIED, ""),
    "write_outside": (GONE, "harms"),
    "write_shared_memory": (GONE, "harms"),
    "write_python": (rf"{DENIED}|Errno 30\b", ""),
    "overwrite": (GONE, "harms"),
    "truncate": (GONE, "harms"),
    "remove": (GONE, "harms"),
    "rename": (GONE, "harms"),
    "change_mode": (GONE, "harms"),
    "change_times": (GONE, "harms"),
    "change_owner": (GONE, "harms" if ROOT else ""),
    "change_attribute": (GONE, ""),
    "follow_symbolic_link": (GONE, "works"),
    "write_through_symbolic_link": (GONE, "harms"),
    "hard_link": (DENIED, ""),
    "set_user_id_bit": (DENIED, ""),
    "inherited_descriptors": (NOTHING, ""),
    "connect": (DENIED, "harms"),
    "connect_to_metadata": (DENIED, ""),
    "connect_6": (DENIED, ""),
    "send_datagram": (DENIED, "harms"),
    "listen": (DENIED, "works"),
    "connect_unix": (DENIED, "harms"),
    "connect_abstract": (DENIED, "harms"),
    "send_unix_from_a_pair": (DENIED, "harms"),
    "netlink": (DENIED, "works"),
    "packet": (DENIED, "works" if ROOT else ""),
    "raw": (DENIED, "works" if ROOT else ""),
    "resolve": ("gaierror|PermissionError", ""),
    "kill_victim": (DENIED, "harms"),
    "kill_trainer_softly": (DENIED, "works"),
    "kill_everyone_softly": (DENIED, "works"),
    "kill_group_of_guardian": (DENIED, "works"),
    "kill_by_descriptor": (NEWER, "harms"),
    "kill_by_owner_of_a_socket": (DENIED, "harms"),
    "trace_victim": (DENIED, "works"),
    "slow_victim": (DENIED, "works"),
    "limit_victim": (DENIED, "works" if ROOT else ""),
    "type_into_terminal": (DENIED, ""),
    "shared_memory": (DENIED, ""),
    "fork": (DENIED, "works"),
    "fork_bomb": (DENIED, ""),
    "daemon": (DENIED, "works"),
    "vfork": (DENIED, "works"),
    "shell": (DENIED, ""),
    "program_in_memory": (DENIED, ""),
    "preload": (DENIED, ""),
    "threads": ("start new thread", ""),
    "namespaces_by_clone": (DENIED, ""),
    "become_root": (DENIED, "works" if ROOT else ""),
    "regain_capabilities": (DENIED, ""),
    "allow_new_privileges": (DENIED, ""),
    "outlive_guardian": (DENIED, "works"),
    "become_dumpable": (DENIED, "works"),
    "loosen_filter": (DENIED, ""),
    "raise_limits": ("ValueError|PermissionError", "works"),
    "eat_memory": ("MemoryError", ""),
    "eat_shared_memory": (r"Errno 12\b", ""),
    "eat_descriptors": (r"Errno 24\b", ""),
    "one_large_file": (r"Errno 27\b", "works"),
    "guess_answer": ("nothing more to try", "refused"),
    "print_answer": ("nothing more to try", "refused"),
    "deep_recursion": ("RecursionError", "refused"),
}

# attempts after which the process is gone → how
ENDS = {
    "thirty_two_bits": "signal 31",
    "x32": "signal 31",
    "crash": "signal 11",
    "crash_the_stack": "signal 11",
    "close_everything": "ended its worker process",
    "forge_end": "ended its worker process",
    "flood_answers": "an answer longer than",
    "spin": "did not answer within",
    "sleep_and_ignore": "did not answer within",
    "poison": "did not answer within",
}


class World:
    """What lies outside the sandbox, and must be as it was afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "home"
        self.folder.mkdir(mode=0o700)
        self.secret = self.folder / "secret"
        self.secret.write_text("canary")
        self.secret.chmod(0o600)
        self.victim = _started(["sleep", "300"], {"MELIOR_CANARY": "secret"})
        unix = str(self.folder / "unix")
        self.listeners = [_listener(socket.AF_INET, ("127.0.0.1", 0)), _listener(socket.AF_UNIX, unix)]
        self.port = self.listeners[0].getsockname()[1]
        self.abstract = f"melior-canary-{os.getpid()}-{self.port}"
        self.listeners.append(_listener(socket.AF_UNIX, "\0" + self.abstract))
        self.datagrams = [_datagrams(socket.AF_INET, ("127.0.0.1", self.port))]
        self.datagrams.append(_datagrams(socket.AF_UNIX, unix + "-datagrams"))
        self.item: dict[str, Any] = {
            "secret": str(self.secret),
            "repository": str(HERE.parents[1] / "pyproject.toml"),
            "trainer": os.getpid(),
            "victim": self.victim.pid,
            "port": self.port,
            "unix": unix,
            "abstract": self.abstract,
        }
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        """Everything an attempt could have changed."""
        statuses = {path.name: path.lstat() for path in self.folder.iterdir()}
        return {
            "files": {name: (s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns) for name, s in statuses.items()},
            "secret": self.secret.read_text() if self.secret.exists() else None,
            "connections": [_accepted(listener) for listener in self.listeners],
            "datagrams": [_received(one) for one in self.datagrams],
            "victim": self.victim.poll(),
            "priority": os.getpriority(os.PRIO_PROCESS, self.victim.pid) if self.victim.poll() is None else None,
            "shared memory": os.path.exists("/dev/shm/melior-escaped"),
            "library": os.path.exists(os.path.join(os.path.dirname(os.__file__), "json", "escaped.py")),
        }

    def close(self) -> None:
        for one in (*self.listeners, *self.datagrams):
            one.close()
        self.victim.kill()
        self.victim.wait()
        with suppress(FileNotFoundError):
            os.unlink("/dev/shm/melior-escaped")


def _started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process that has its environment: the kernel lets the parent go on before it has laid the new stack out."""
    process = subprocess.Popen(command, env=environment)
    end = time.monotonic() + 30
    while not Path(f"/proc/{process.pid}/environ").read_bytes():
        assert process.poll() is None and time.monotonic() < end, "the victim did not start"
        time.sleep(0.001)
    return process


def _listener(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)
    return listener


def _datagrams(family: int, address: Any) -> socket.socket:
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    receiver.bind(address)
    receiver.setblocking(False)
    return receiver


def _accepted(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def _received(receiver: socket.socket) -> bool:
    try:
        return bool(receiver.recv(100))
    except BlockingIOError:
        return False


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def opened(level: Level, *, timeout_s: float = 10.0, memory_bytes: int | None = 1 << 29) -> GraderPool:
    limits: dict[str, Any] = {"timeout_s": timeout_s, "memory_bytes": memory_bytes if level > Level.L1 else None}
    return GraderPool(SPEC, processes=1, level=level, allow_unsandboxed=True, **limits)


@pytest.fixture(scope="module", autouse=True)
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A secret in the environment, and a folder of its own for what is not confined and writes where it stands."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    os.environ["MELIOR_CANARY"] = "secret"
    yield
    del os.environ["MELIOR_CANARY"]
    os.chdir(before)


@pytest.fixture(scope="module", params=LEVELS, ids=[level.name for level in LEVELS])
def pool(request: pytest.FixtureRequest, canary: None) -> Iterator[GraderPool]:
    with opened(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def unconfined(canary: None) -> Iterator[GraderPool]:
    with opened(Level.L1) as made:
        yield made


def attempted(pool: GraderPool, name: str, **item: Any) -> Score:
    return pool.grade([Record(inputs="", output="four", item={**item, "attempt": name})])[0]


def test_which_levels_were_tried(capsys: pytest.CaptureFixture[str]) -> None:
    found = detected()
    with capsys.disabled():
        print(f"\nescapes are tried at {', '.join(level.name for level in LEVELS) or 'no level'}: {found.to_json()}")
    if landlock_abi() and os.environ.get(CAP) is None:
        assert Level.L2 in LEVELS, f"this kernel has Landlock, but level 2 does not hold: {found.reasons}"
    if not LEVELS:
        pytest.skip(f"this machine has no sandbox: {found.reasons}")


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_is_stopped_and_nothing_outside_changes(pool: GraderPool, world: World, name: str) -> None:
    score = attempted(pool, name, **world.item)
    assert score.value is None
    assert re.search(ATTEMPTS[name][0], score.error), score.error
    assert world.state() == world.before
    assert attempted(pool, "nothing").value == 4.0


@pytest.mark.parametrize("name", [name for name, (_, without) in ATTEMPTS.items() if without in ("works", "harms")])
def test_the_same_attempt_succeeds_without_a_sandbox(unconfined: GraderPool, world: World, name: str) -> None:
    score = attempted(unconfined, name, **world.item)
    assert (score.value, score.error) == (1.0, "")
    if ATTEMPTS[name][1] == "harms":
        end = time.monotonic() + 5
        while world.state() == world.before:
            assert time.monotonic() < end, "nothing outside has changed"
            time.sleep(0.01)


def test_no_system_call_that_changes_the_machine_is_let_through(pool: GraderPool, unconfined: GraderPool) -> None:
    import escapes

    names = list(escapes.NUMBERS)
    records = [Record(inputs="", output="", item={"attempt": "system_call", "call": name}) for name in names]
    let_through = [name for name, score in zip(names, pool.grade(records), strict=True) if score.value is not None]
    assert let_through == []
    harmless = ("unshare", "memfd_create", "inotify_init1", "socket", "process_vm_readv", "sched_setaffinity")
    assert [attempted(unconfined, "system_call", call=name).value for name in harmless] == [1.0] * len(harmless)


@pytest.mark.parametrize("level", [Level.L1, *LEVELS], ids=lambda level: level.name)
def test_what_ends_the_process_costs_one_call_and_leaves_nothing(level: Level, world: World) -> None:
    before = descendants(os.getpid())
    with opened(level, timeout_s=1.0) as pool:
        for name, how in ENDS.items():
            if level is Level.L1 and name in ("thirty_two_bits", "x32", "sleep_and_ignore"):
                continue
            score = attempted(pool, name, **world.item)
            if how == "signal 31" and "Contained" in score.error:
                continue  # there is no such call on this machine
            assert score.value is None and how in score.error, (name, score)
            assert attempted(pool, "nothing").value == 4.0, name
        workers = descendants(os.getpid()) - before
    assert gone(workers)
    assert world.state() == world.before


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has calls of 32 bits")
def test_calls_of_another_convention_are_real(unconfined: GraderPool) -> None:
    assert attempted(unconfined, "thirty_two_bits").value == 1.0


FORGED = {
    "a number that is none": '{"value": NaN}',
    "infinity": '{"value": 1e999}',
    "a huge number": '{"value": 1' + "0" * 400 + "}",
    "a text": '{"value": "1.0"}',
    "a truth": '{"value": true}',
    "a list": '{"value": [1.0]}',
    "an object": '{"value": {"__float__": 1}}',
    "nothing": "null",
    "a list for a score": "[1.0]",
    "an error without words": '{"value": null, "error": 7, "kind": [], "parts": {"a": "b"}, "seconds": "x"}',
    "half a character": '{"value": null, "error": "\\\\ud800", "traceback": "\\\\udfff", "kind": "\\\\ud800"}',
}


@pytest.mark.parametrize("text", FORGED.values(), ids=FORGED)
def test_a_forged_answer_is_a_failure_or_a_plain_score(pool: GraderPool, text: str) -> None:
    score = attempted(pool, "forge", text=text)
    assert score.value is None
    for field in (score.name, score.error, score.traceback, score.kind, score.reason):
        assert isinstance(field, str) and field.encode().decode() == field
    assert score.name == "attempts" and score.parts == {} and score.seconds >= 0
    assert attempted(pool, "nothing").value == 4.0


def test_an_answer_is_taken_for_its_own_call_only(pool: GraderPool) -> None:
    """A grader decides its own score, and no other."""
    first = attempted(pool, "forge", text='{"value": 7.0}', then=0.0)
    assert (first.value, attempted(pool, "nothing").value) == (7.0, 4.0)
    assert attempted(pool, "garbage").value == 1.0
    assert attempted(pool, "forge", text="[" * 3000).value == 1.0  # unreadable: the true answer comes after it


def test_printing_without_end_and_setting_alarms_hurts_nobody(pool: GraderPool) -> None:
    assert attempted(pool, "flood_output").value == 1.0
    assert attempted(pool, "time_bomb").value == 1.0
    time.sleep(0.1)
    assert attempted(pool, "nothing").value == 4.0


def folders_of(guardians: set[int]) -> list[Path]:
    """What these processes have left of their working folders."""
    found = Path(tempfile.gettempdir()).glob("melior-sandbox-*")
    return [path for path in found if int(path.name.split("-")[2]) in guardians]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("name", ["many_files", "many_empty_files", "unlinked_files"])
def test_a_disk_cannot_be_filled(level: Level, name: str) -> None:
    before = descendants(os.getpid())
    with opened(level, timeout_s=60) as pool:
        guardians = descendants(os.getpid()) - before
        score = attempted(pool, name)
        assert score.value is None
        assert "Errno 28" in score.error or "its working folder held" in score.error or "Errno 24" in score.error, score
    assert guardians and folders_of(guardians) == []


@pytest.mark.skipif(Level.L2 not in LEVELS, reason="level 2 does not hold here")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("deep_folders", "folders inside one another"),
        pytest.param("hidden_folder", "cannot be looked into", marks=pytest.mark.skipif(ROOT, reason="root sees all")),
    ],
)
def test_no_shape_of_a_folder_hides_it_or_stops_the_next_sandbox(name: str, told: str) -> None:
    before = descendants(os.getpid())
    with opened(Level.L2, timeout_s=60) as pool:
        guardians = descendants(os.getpid()) - before
        score = attempted(pool, name)
        assert score.value is None and told in score.error, score
        assert attempted(pool, "nothing").value == 4.0
    assert guardians and folders_of(guardians) == []


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_poisoned_process_hurts_only_itself(level: Level) -> None:
    with opened(level, timeout_s=1.0) as poisoned, opened(level) as other:
        assert attempted(poisoned, "poison").value is None
        assert attempted(other, "nothing").value == 4.0


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_the_sandbox_ends_with_the_process_that_made_it(level: Level) -> None:
    program = (
        f"import sys; sys.path[:0] = [{str(HERE.parents[1])!r}, {str(HERE)!r}]\n"
        "from test_escapes import opened, Level, Record\n"
        f"pool = opened(Level({int(level)}), timeout_s=100)\n"
        "pool.submit(Record(inputs='', output='', item={'attempt': 'sleep_and_ignore'}))\n"
        "print('ready', flush=True)\n"
        "import time; time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        workers = descendants(parent.pid)
        assert len(workers) >= 2
        parent.kill()
    assert gone(workers)


def test_code_of_others_is_refused_where_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAP, "L1")
    monkeypatch.delenv(ALLOW, raising=False)
    with pytest.raises(GraderError, match=rf"attempts .* needs sandbox level L2.*{CAP} is L1.*set {ALLOW}=1"):
        GraderPool(SPEC, processes=1)
    monkeypatch.setenv(ALLOW, "1")
    with GraderPool(SPEC, processes=1) as pool:
        assert pool.level is Level.L1 and attempted(pool, "nothing").value == 4.0


@pytest.mark.parametrize("level", [Level.L1, *LEVELS], ids=lambda level: level.name)
def test_a_verifier_that_evaluates_the_answer_cannot_be_used_to_get_out(level: Level, tmp_path: Path) -> None:
    """reasoning-gym hands some answers to sympy, which runs them as Python."""
    from melior.data.reasoning import reasoning_tasks

    (task,) = reasoning_tasks("intermediate_integration", 1, seed=0)
    target = tmp_path / "escaped"
    answer = f"__import__('pathlib').Path({str(target)!r}).write_text('x')"
    grader = {"type": "reasoning_gym", "dataset": "intermediate_integration"}
    with GraderPool(grader, processes=1, level=level, timeout_s=60) as pool:
        assert pool.level is level
        pool.grade([Record(inputs=task.inputs, output=answer, item=task.item)])
        right = pool.grade([Record(inputs=task.inputs, output=task.item["answer"], item=task.item)])[0]
    assert right.value == 1.0
    assert target.exists() == (level is Level.L1)
