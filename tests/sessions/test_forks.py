"""Fork servers: what a forked worker shares with its server, and what it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specrunner.errors import WorkerDied
from specrunner.sessions import forks
from specrunner.sessions.answers import Tell
from specrunner.sessions.forks import ForkServers
from specrunner.sessions.process import Cancelled, WorkerProcess, find_marked, make_variables
from specrunner.sessions.protocol import LONGEST_FORK_REQUEST
from tests.sessions.test_process import HERE, capture, load_message
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(not forks.can_fork(), reason="workers are not forked here")

HEAVY = """
import os
with open(os.environ["IMPORTS"], "a") as file:
    file.write(f"{os.getpid()} {os.environ['TMPDIR']}\\n")
"""
Begin = Callable[..., WorkerProcess]


def never() -> bool:
    """Nobody wants to stop."""
    return False


class Place:
    """A folder with a module that notes each of its imports, fork servers, and workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.imports = folder / "imports"
        (folder / "modules").mkdir()
        (folder / "modules" / "heavy.py").write_text(HEAVY)
        (folder / "modules" / "absent_minded.py").write_text("import nothing_of_that_name\n")
        (folder / "modules" / "slow.py").write_text("import time\ntime.sleep(600)\n")
        (folder / "modules" / "moody.py").write_text("import os\nos._exit(3)\n")
        self.servers = ForkServers(folder)
        self.workers: list[WorkerProcess] = []

    def start(
        self,
        module: str = "heavy",
        watch: Callable[[], Tell] | None = None,
        cancelled: Callable[[], bool] = never,
        **variables: str,
    ) -> WorkerProcess:
        """Start a worker that wants a module, and load it."""
        workspace = self.folder / f"worker-{len(self.workers)}"
        workspace.mkdir()
        own = self.variables(workspace, **variables)
        mark = f"{self.folder.name}-{len(self.workers)}"
        fork = self.servers.prepare(Path(sys.executable), [module], workspace, watch, cancelled)
        worker = WorkerProcess(Path(sys.executable), workspace, own, mark, fork)
        self.workers.append(worker)
        worker.ask(load_message(), timeout=60)
        return worker

    def variables(self, workspace: Path, **more: str) -> dict[str, str]:
        """Return the variables that a worker's workspace and the test set."""
        path = os.pathsep.join([str(self.folder / "modules"), str(HERE)])
        return {"PYTHONPATH": path, "IMPORTS": str(self.imports), "TMPDIR": str(workspace / "tmp"), **more}

    def read_imports(self) -> list[tuple[int, str]]:
        """Process and folder for temporary files of each import of the module, so far."""
        lines = self.imports.read_text().splitlines() if self.imports.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place whose processes end with the test."""
    place = Place(tmp_path)
    yield place
    for worker in place.workers:
        worker.kill()
    place.servers.close()


def read_parent(pid: int) -> int:
    """The process that started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def read_environment(pid: int) -> dict[str, str]:
    """What /proc says of a process's environment."""
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def test_workers_share_one_import(place: Place, tmp_path: Path) -> None:
    first, second = place.start(), place.start()
    ((server, _),) = place.read_imports()
    assert server not in (first.pid, second.pid)
    assert read_parent(first.pid) == read_parent(second.pid) == server
    for worker in (first, second):
        capture(worker, "ok", tmp_path / f"{worker.pid}")
        worker.close()
        assert not worker.alive


def test_a_worker_has_its_own_environment_mark_group_folder_and_log(place: Place, tmp_path: Path) -> None:
    workers = [place.start(), place.start()]
    ((server, folder),) = place.read_imports()
    for number, worker in enumerate(workers):
        mark = f"{tmp_path.name}-{number}"
        assert worker.pid in find_marked(mark)
        assert server not in find_marked(mark)
        assert len(find_marked(mark)) == 2, "the worker and its guardian"
        assert command(worker.pid).strip() == f"{sys.executable} -m specrunner.sessions.worker"
        assert os.getpgid(worker.pid) == os.getsid(worker.pid) == worker.pid
        assert Path(f"/proc/{worker.pid}/cwd").resolve() == worker.workspace
        capture(worker, "rubbish", tmp_path / mark)
        assert worker.log.tail().endswith("last words")
    assert "forks-" in folder, "the server's folder stands where variables name a session's"
    capture(workers[0], "child", tmp_path / "child")
    (child,) = (
        pid
        for pid in find_marked(f"{tmp_path.name}-0")
        if read_parent(pid) == workers[0].pid and "sleep" in command(pid)
    )
    assert read_environment(child)["TMPDIR"] == str(workers[0].workspace / "tmp")


def command(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.parametrize(
    ("text", "how"), [("exit", "exited with status 7"), ("kill", "was killed by SIGKILL"), ("alarm", "signal 40")]
)
def test_how_a_forked_worker_ended_is_known(place: Place, tmp_path: Path, text: str, how: str) -> None:
    worker = place.start()
    with pytest.raises(WorkerDied, match=how):
        capture(worker, text, tmp_path / "c")
    wait_for(lambda: not Path(f"/proc/{worker.pid}").exists(), "it is reaped")


def test_an_orderly_end_is_status_0(place: Place) -> None:
    worker = place.start()
    worker.close()
    assert worker._process.wait() == 0


def test_a_worker_outlives_its_server(place: Place, tmp_path: Path) -> None:
    worker = place.start()
    ((server, _),) = place.read_imports()
    os.kill(server, signal.SIGKILL)
    capture(worker, "ok", tmp_path / "a")
    other = place.start()
    assert read_parent(other.pid) == os.getpid(), "without a server, the interpreter is started"
    assert find_marked(f"{tmp_path.name}-1") == [], "under a mark that a process forked unseen cannot end"
    assert other.pid in find_marked(other._mark)
    with pytest.raises(WorkerDied, match="the engine process ended$"):
        capture(worker, "kill", tmp_path / "b")
    assert find_marked(f"{tmp_path.name}-0") == []


@pytest.mark.parametrize("module", ["absent_minded", "moody", "there_is_none"])
def test_where_a_module_cannot_be_imported_the_interpreter_is_started(
    place: Place, tmp_path: Path, module: str
) -> None:
    for _ in range(2):
        worker = place.start(module)
        assert read_parent(worker.pid) == os.getpid()
    capture(worker, "ok", tmp_path / "c")


def test_another_environment_is_another_server(place: Place) -> None:
    parents = [read_parent(place.start(**{name: "1"}).pid) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HOME")]
    assert len({*parents, os.getpid()}) == 4
    own = [place.start(OMP_NUM_THREADS="1", SPECRUNNER_NAME_MAPS=f"maps-{number}") for number in range(2)]
    assert {read_parent(worker.pid) for worker in own} == {parents[0]}, "no engine reads it when it is imported"


def test_an_idle_server_gives_way_and_a_busy_one_does_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "MOST_SERVERS", 1)
    first = place.start(HOME="a")
    server = read_parent(first.pid)
    assert read_parent(place.start(HOME="b").pid) == os.getpid()
    first.close()
    third = place.start(HOME="b")
    assert read_parent(third.pid) not in (os.getpid(), server)
    assert not Path(f"/proc/{server}").exists()


def test_the_server_that_was_used_longest_ago_gives_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "MOST_SERVERS", 2)
    servers = {}
    for home in ("a", "b", "a", "c"):
        worker = place.start(HOME=home)
        servers[home] = read_parent(worker.pid)
        worker.close()
    assert [Path(f"/proc/{servers[home]}").exists() for home in "abc"] == [True, False, True]


def test_what_was_imported_serves_while_it_is_what_is_installed(place: Place) -> None:
    now = ["old"]

    def watch() -> Tell:
        before = now[0]
        return lambda: before if now[0] == before else None

    first, second = place.start(watch=watch), place.start(watch=watch)
    assert read_parent(first.pid) == read_parent(second.pid) != os.getpid()
    now[0] = "new"
    assert read_parent(place.start(watch=watch).pid) == os.getpid()
    assert read_parent(place.start().pid) == read_parent(first.pid), "nobody will ask"


def test_a_server_that_nobody_watched_does_not_serve_where_somebody_will_ask(place: Place) -> None:
    place.start()
    assert read_parent(place.start(watch=lambda: lambda: "same").pid) == os.getpid()


def test_an_import_ahead_serves_the_session_that_it_was_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(home: str) -> bool:
        workspace = place.folder / f"ahead-{home}"
        workspace.mkdir(exist_ok=True)
        variables = make_variables(workspace, place.variables(workspace, HOME=home))
        return place.servers.import_ahead(Path(sys.executable), ["heavy"], variables, workspace, None)

    assert begin("a") and not begin("a")
    wait_for(lambda: place.read_imports() != [], "the module is imported before there is a session")
    worker = place.start(HOME="a")
    assert [read_parent(worker.pid)] == [pid for pid, _ in place.read_imports()]
    monkeypatch.setattr(forks, "MOST_SERVERS", 2)
    assert not begin("b"), "the last room is for a session that is there"


def test_waiting_for_an_import_can_be_cancelled(place: Place) -> None:
    since = time.monotonic()
    with pytest.raises(Cancelled):
        place.start("slow", cancelled=lambda: time.monotonic() > since + 0.5)
    place.servers.close()
    wait_for(lambda: not any("fork_server" in command(pid) for pid in list_ours(place)), "the server ends")


def list_ours(place: Place) -> list[int]:
    """Processes whose environment names the place."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"IMPORTS={place.imports}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_what_does_not_fit_through_a_socket_starts_the_interpreter(place: Place) -> None:
    large = {f"LARGE_{number}": "x" * (LONGEST_FORK_REQUEST // 4) for number in range(5)}
    assert read_parent(place.start(**large).pid) == os.getpid()


def die_with(place: Place, *lines: str) -> str:
    """Have another process run lines with a place of its own, of which the last kills it; return what it printed."""
    head = f"""
        import os, signal, sys, threading
        from pathlib import Path
        sys.path[:0] = {[str(HERE), str(HERE.parents[1])]!r}
        from tests.sessions.test_forks import Place, kill_during_import
        folder = Path({str(place.folder / "other")!r})
        folder.mkdir()
        place = Place(folder)
        place.imports = Path({str(place.imports)!r})
        """
    script = "\n".join([textwrap.dedent(head), *lines])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout


def kill_during_import(place: Place) -> None:
    """Kill ourselves when there is a server, and say how many processes there are then."""
    wait_for(lambda: list_ours(place) != [], "the server is started")
    print(len(list_ours(place)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_is_left_when_the_caller_dies(place: Place) -> None:
    die_with(place, "place.start()", "place.start()", "os.kill(os.getpid(), signal.SIGKILL)")
    assert len(place.read_imports()) == 1
    wait_for(lambda: list_ours(place) == [], "server, workers and guardians end")


def test_a_caller_that_dies_during_the_import_leaves_nothing(place: Place) -> None:
    said = die_with(place, "threading.Thread(target=kill_during_import, args=[place]).start()", "place.start('slow')")
    assert int(said) >= 1
    wait_for(lambda: list_ours(place) == [], "the server ends")
