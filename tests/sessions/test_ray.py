"""Ray: two real nodes on this machine, each with its own raylet. The same run, whichever executor ran it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import specrunner
from specrunner.catalogue.engines import engine_targets
from specrunner.engines.registry import find_engine
from specrunner.environments.interpreters import find_environment
from specrunner.errors import CapabilityMissing
from specrunner.plan.model import PlannedSession
from specrunner.requests import Request, Session
from specrunner.sessions.ray.cluster import Demand, connect
from specrunner.sessions.serving import Surroundings
from specrunner.sessions.threads import MachineLost
from specrunner.spec.model import Model, Prompt
from tests.waiting import press, wait_for

pytestmark = pytest.mark.ray

HERE = Path(__file__).parent
ROOT = Path(specrunner.__file__).parents[1]
STORE = 100_000_000
"""Bytes of each node's object store."""

SPEC = """\
version: 1
model: {path: .}
engines: [counting]
options: {counting: {role: candidate, seconds: 0.8, wrong: melon}}
reference: {engine: counting, dtype: float32, options: {role: reference, seconds: 0.8}}
defaults:
  tensors: ["layers.*.output"]
  tolerance: {"layers.*.output": exact}
cases:
"""
FRUIT = ("apple", "pear", "melon", "fig", "plum", "cherry", "lemon", "lime", "date", "grape")


@dataclass
class Workplace:
    """A directory with a spec and an engine installed as a plugin, and a cluster.

    Attributes:
        temporary: where runs put their temporary files, and nodes put none.
    """

    folder: Path
    environment: dict[str, str]
    temporary: Path
    cluster: Any
    log: Path
    nodes: list[Any] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a run."""
        self.log.unlink(missing_ok=True)
        stated = ["spec.yaml", "-j", "2", "--no-cache", "--json", "r.json"]
        command = [sys.executable, "-m", "specrunner", "run", *stated, *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def start_on_ray(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a run on the cluster."""
        return self.start("--executor", "ray", "--ray-address", self.cluster.address, *arguments)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a run and return its report."""
        printed, _ = process.communicate(timeout=120)
        try:
            report: dict[str, Any] = json.loads((self.folder / "r.json").read_text())
        except OSError:
            pytest.fail(printed)
        return report

    @contextmanager
    def second_node(self, **stated: Any) -> Iterator[Any]:
        """Put another node in the place of the second one for a while; it may be lost meanwhile."""
        self.cluster.remove_node(self.nodes.pop())
        node = self.cluster.add_node(num_cpus=1, object_store_memory=STORE, **stated)
        try:
            yield node
        finally:
            if node in self.cluster.worker_nodes:
                self.cluster.remove_node(node)
            self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=STORE))

    def noted(self) -> list[list[Any]]:
        """Return what the engines have written down: [process, parent, role, what, prompt]."""
        try:
            return [json.loads(line) for line in self.log.read_text().splitlines()]
        except OSError:
            return []


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Two nodes of one core each. The first holds the cluster's head; the second is added by tests that lose it."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("ray")
    info = folder / "plugin" / "counting-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "plugin" / "counting.py").write_text((HERE / "counting.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[specrunner.engines]\ncounting = counting:CountingEngine\n")
    (folder / "config.json").write_text("{}")
    cases = [f"  - {{name: {name}, prompt: {name}}}" for name in FRUIT]
    (folder / "spec.yaml").write_text(SPEC + "\n".join(cases) + "\n")
    ours = {
        "PYTHONPATH": os.pathsep.join((str(folder / "plugin"), str(ROOT))),
        "COUNTING_LOG": str(folder / "log"),
        "SPECRUNNER_CACHE": str(folder / "cache"),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ours.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
        temporary = Path(tempfile.mkdtemp(prefix="run-"))  # a short path, as engines need it
        place = Workplace(folder, {**os.environ, "TMPDIR": str(temporary)}, temporary, cluster, folder / "log")
        place.nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE))
        try:
            yield place
        finally:
            cluster.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


CHANGING = re.compile(r"seconds|started|time|hostname|^node$|^command$|^id$|^finished|duration")
"""Keys of the report whose values are times, hosts or the command line."""


def strip_report(value: Any) -> Any:
    """Return a report without what differs from one run to the next."""
    if isinstance(value, dict):
        return {key: strip_report(entry) for key, entry in value.items() if not CHANGING.search(key)}
    if isinstance(value, list):
        return [strip_report(entry) for entry in value]
    return value


def forget_starts(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without how often sessions were started."""
    sessions = [{key: value for key, value in one.items() if key != "starts"} for one in report["sessions"]]
    return {**report, "sessions": sessions}


@pytest.fixture(scope="module")
def local(workplace: Workplace) -> dict[str, Any]:
    """Return the report of the run without Ray."""
    return workplace.finish(workplace.start())


def test_the_local_run_is_worth_comparing_with(local: dict[str, Any]) -> None:
    verdicts = Counter(case["verdict"] for case in local["cases"])
    assert verdicts == {"passed": len(FRUIT) - 1, "failed": 1}


def test_the_report_is_the_local_one(workplace: Workplace, local: dict[str, Any]) -> None:
    report = workplace.finish(workplace.start_on_ray())
    assert strip_report(report) == strip_report(local)
    noted = workplace.noted()
    assert len({parent for _, parent, *_ in noted}) == 2, "two actors, one a node"
    assert Counter((role, what) for *_, role, what, _ in noted) == {
        ("candidate", "load"): 1,
        ("reference", "load"): 1,
        ("candidate", "plain"): len(FRUIT),
        ("reference", "plain"): len(FRUIT),
        ("candidate", "led"): 1,
    }
    wait_for(lambda: not any(is_running(pid) for pid, *_ in noted), "the end of the engines")


def test_a_node_that_is_lost_costs_no_verdict_and_no_answer_is_asked_for_twice(
    workplace: Workplace, local: dict[str, Any]
) -> None:
    def asked() -> Counter[str]:
        return Counter(role for *_, role, what, _ in workplace.noted() if what == "plain")

    with workplace.second_node() as node:
        process = workplace.start_on_ray()
        wait_for(lambda: min(asked()["candidate"], asked()["reference"]) >= 3, "the first requests on both nodes")
        before = workplace.noted()
        assert max(asked().values()) < len(FRUIT), "both sessions run at once, so on two nodes"
        workplace.cluster.remove_node(node, allow_graceful=False)
        report = workplace.finish(process)
    # The one that was lost starts again; so may the other, which makes room for it on the node that is left.
    starts = sorted(session.pop("starts") for session in report["sessions"])
    assert starts in ([1, 2], [2, 2])
    assert [session["end"] for session in report["sessions"]] == ["", ""]
    assert strip_report(report) == strip_report(forget_starts(local))
    noted = workplace.noted()
    loads = Counter(role for *_, role, what, _ in noted if what == "load")
    assert sorted(loads.values()) == starts
    asked_for = Counter((role, what, text) for *_, role, what, text in noted if what != "load")
    assert sum(asked_for.values()) - len(asked_for) <= 2, "only what was asked last, and what was on its way"
    assert len(before) < len(noted)
    wait_for(lambda: not any(is_running(pid) for pid, *_ in noted), "the end of the engines")


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_what_engines_print_can_be_followed_beside_the_run(workplace: Workplace, executor: str) -> None:
    def read_logs() -> list[str]:
        logs = workplace.temporary.glob("specrunner-*/counting-*/worker.log")
        return [log.read_text() for log in logs]

    process = workplace.start() if executor == "local" else workplace.start_on_ray()
    wait_for(lambda: sum("asked for apple\nasked for pear\n" in log for log in read_logs()) == 2, "both sessions' logs")
    assert process.poll() is None
    workplace.finish(process)
    assert list(workplace.temporary.iterdir()) == []


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_the_run_and_its_engines_on_all_nodes(workplace: Workplace, presses: int) -> None:
    process = workplace.start_on_ray()
    wait_for(lambda: len(workplace.noted()) >= 4, "the first requests")
    for _ in range(presses):
        press(process.pid)
    report = workplace.finish(process)
    assert process.returncode == 2
    assert len(report["cases"]) == len(FRUIT)
    assert "error" in {case["verdict"] for case in report["cases"]}
    noted = workplace.noted()
    assert len(noted) < 2 * len(FRUIT)
    wait_for(lambda: not any(is_running(pid) for pid, *_ in noted), "the end of the engines")


def test_a_caller_that_is_killed_leaves_no_engine_on_any_node(workplace: Workplace) -> None:
    process = workplace.start_on_ray()
    wait_for(lambda: len(workplace.noted()) >= 4, "the first requests")
    process.kill()
    process.communicate()
    wait_for(lambda: not any(is_running(pid) for pid, *_ in workplace.noted()), "the end of the engines")


def test_an_address_without_a_cluster_is_said_before_anything_runs(workplace: Workplace) -> None:
    process = workplace.start("--executor", "ray", "--ray-address", "127.0.0.1:1")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 4, textwrap.shorten(printed, 500)
    assert "the Ray cluster 127.0.0.1:1 cannot be joined" in printed
    assert workplace.noted() == []


def test_a_node_that_runs_short_of_memory_is_no_lost_node(workplace: Workplace) -> None:
    """Ray is told to take a hundredth of the memory for all of it, and ends what runs there."""
    short = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    with workplace.second_node(env_vars=short):
        report = workplace.finish(workplace.start_on_ray("-k", "apple or pear"))
    failures = [case["failure"] for case in report["cases"]]
    assert [failure["kind"] for failure in failures] == ["out-of-memory"] * 2, failures
    assert "and Ray ended the session" in failures[0]["message"]
    assert max(session["starts"] for session in report["sessions"]) == 1, "it is not tried elsewhere"


def test_a_lost_node_leaves_what_its_engine_printed(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(workplace.folder / "plugin"), *sys.path])
    from specrunner.sessions.ray.session import RemoteSession

    find_engine.cache_clear()
    engine_targets.cache_clear()
    connect(workplace.cluster.address)
    environment = find_environment("counting", find_engine("counting").capabilities(), "cpu", config={})
    name = f"{environment.name}-{environment.digest}"
    session = Session("counting", name, Model(path=str(workplace.folder)), "float32", "cpu", {"seconds": 600.0})
    request = Request(Prompt(text="fig"), ("layers.0.output",))
    workplace.log.unlink(missing_ok=True)
    import ray

    with workplace.second_node() as node, ThreadPoolExecutor() as threads:
        remote = RemoteSession(
            session,
            Surroundings(tmp_path, environment),
            Demand(1, 0, 0),
            node.node_id,
            stopped=lambda: False,
            cancelled=lambda: False,
        )
        remote.place()
        remote.load()
        settled: list[Any] = []
        answering = threads.submit(
            remote.answer, request, 900.0, lambda done, total: None, lambda *answer: settled.append(answer)
        )
        log = remote.workspace / "worker.log"
        wait_for(lambda: "asked for fig\n" in log.read_text(), "what the engine printed")
        workplace.cluster.remove_node(node, allow_graceful=False)
        with pytest.raises(MachineLost) as caught:
            answering.result()
        assert caught.value.log_tail.endswith("asked for fig")
        assert settled == [(request, None, 0.0)], "it is to be asked again"
        assert not remote.alive
        remote.end(at_once=True)
    ray.shutdown()
    assert list(tmp_path.iterdir()) == []
    wait_for(lambda: not any(is_running(pid) for pid, *_ in workplace.noted()), "the end of the engine")


def test_sessions_on_gpus_get_their_own(workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is told of two GPUs that are not there; the engine only says which ones it was given."""
    monkeypatch.setattr(sys, "path", [str(workplace.folder / "plugin"), *sys.path])
    from specrunner.sessions.ray.pool import RayPool

    find_engine.cache_clear()
    engine_targets.cache_clear()
    node = workplace.cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=STORE)
    connect(workplace.cluster.address)
    environment = find_environment("counting", find_engine("counting").capabilities(), "cpu", config={})
    name = f"{environment.name}-{environment.digest}"
    facts: dict[str, Any] = {}
    planned = [
        PlannedSession(
            Session(
                "counting", name, Model(path=str(workplace.folder)), "float32", "cuda", {"seconds": 1.0, **options}
            ),
            (Request(Prompt(text="fig"), ("layers.0.output",)),),
        )
        for options in ({"index": 0}, {"index": 1}, {"index": 2, "tp_size": 2}, {"index": 3, "tp_size": 4})
    ]
    pool = RayPool(
        tmp_path,
        jobs=2,
        environments={one.session.key: environment for one in planned},
        timeouts={(one.session.key, one.requests[0].key): 60.0 for one in planned},
        publish=lambda event: None,
        deliver=lambda session, request, answer, known, seconds: facts.update({session: (answer, dict(known))}),
    )
    for one in planned:
        pool.start(one)
    pool.shutdown()
    workplace.cluster.remove_node(node)
    first, second, both, too_many = (facts[one.session.key] for one in planned)
    assert {first[1]["gpus"], second[1]["gpus"]} == {"0", "1"}
    assert set(both[1]["gpus"].split(",")) == {"0", "1"}
    assert isinstance(too_many[0], CapabilityMissing)


def test_a_node_without_the_engine_is_passed_over(workplace: Workplace) -> None:
    with workplace.second_node(env_vars={"PYTHONPATH": str(ROOT)}):
        report = workplace.finish(workplace.start_on_ray("-k", "apple or pear"))
    assert [case["verdict"] for case in report["cases"]] == ["passed", "passed"]
    assert Counter(what for *_, what, _ in workplace.noted()) == {"load": 2, "plain": 4}
