"""How many small faults in our own code its tests notice: cosmic-ray's mutants, each in a forked child.

    python tools/mutate.py specrunner/checks --sample 40 --seed 1     at most 40 of each module's, drawn by the seed
    python tools/mutate.py specrunner/checks/rules.py                 every mutant of one module
    python tools/mutate.py specrunner/checks --again --results FILE   the survivors in FILE, after tests were added

The tests are those of the mirrored path (`specrunner/checks` has `tests/checks`) or of `--tests`. One run of them under
coverage says which tests reach which line; a mutant is given to the tests that reach its line, the quickest first, and
is killed when one fails or takes far longer than it should. Property tests run derandomised, with few examples and
without shrinking. Everything happens in a copy of the working tree, so that subprocesses of tests meet the mutant too.

Left out are mutants that no test could tell from the code: inside annotations, and `==` for `is` and back. Equivalent
mutants that a person has looked at stand in `tools/equivalent_mutants.yaml` with the reason, and are not counted.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import functools
import importlib
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest
import yaml
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
PRELOADED = ("jsonschema", "numpy", "safetensors.torch", "scipy.special", "scipy.stats", "torch")
"""What children share by the fork and most tests import; what is not installed is left out."""
SAME_IN_PYTHON = ("Eq_Is", "NotEq_IsNot", "Is_Eq", "IsNot_NotEq")
MARKERS = (
    "not vllm and not sglang and not ray and not slow and not endurance and not browser and not npm and not editors"
)
OPTIONS = ("-q", "-x", "--assert=plain", "--import-mode=importlib", "-o", "addopts=", "-m", MARKERS)
OPTIONS = (*OPTIONS, *(f"-pno:{plugin}" for plugin in ("xdist", "randomly", "cacheprovider", "anyio")))
EXAMPLES = 25
MOST_SECONDS = 12.0
"""CPU time of the healthy tests that a mutant meets, the quickest first: what only later ones would kill survives."""
NO_TESTS = int(pytest.ExitCode.NO_TESTS_COLLECTED)


@dataclass(frozen=True)
class Mutant:
    """One small fault in one module."""

    path: str
    """Of the module, from the repository's root."""
    operator: str
    occurrence: int
    """Among the places of the module where the operator applies."""
    line: int
    before: str = ""
    after: str = ""
    """The changed lines, stripped."""
    outcome: str = ""
    """killed, timeout, survived, unreached (no test runs the line) or equivalent."""


@dataclass(frozen=True)
class Reach:
    """What the healthy tests do."""

    seconds: dict[str, float]
    """CPU time of each test, by node id."""
    tests: dict[str, dict[int, list[str]]]
    """Of each module and line, the tests that run it; "" stands for an import."""


class Chooser:
    """A pytest plugin that runs the given tests in the given order, with light property tests."""

    def __init__(self, chosen: Sequence[str] | None) -> None:
        self.places = None if chosen is None else {node: place for place, node in enumerate(chosen)}

    def pytest_collection(self) -> None:
        """Lighten property tests before their modules are imported."""
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            "mutants", phases=phases, max_examples=EXAMPLES, derandomize=True, database=None, deadline=None
        )
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the chosen tests."""
        if self.places is not None:
            items[:] = sorted(
                (item for item in items if item.nodeid in self.places), key=lambda item: self.places[item.nodeid]
            )


class Recorder(Chooser):
    """A pytest plugin that notes which lines of the modules each test runs, and how long it takes."""

    def __init__(self, modules: Sequence[Path]) -> None:
        super().__init__(None)
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[str(path) for path in modules])
        self.seconds: dict[str, float] = {}
        self.coverage.start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note one test with its fixtures."""
        self.coverage.switch_context(item.nodeid)
        start = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - start

    def write(self, copy: Path, target: Path) -> None:
        """Write a `Reach` as JSON."""
        self.coverage.stop()
        data = self.coverage.get_data()
        tests = {
            str(Path(file).resolve().relative_to(copy)): data.contexts_by_lineno(file) for file in data.measured_files()
        }
        target.write_text(json.dumps({"seconds": self.seconds, "tests": tests}))


def list_modules(targets: Sequence[str]) -> list[str]:
    """The Python files under the targets, from the root, without empty ones."""
    found: list[Path] = []
    for target in targets:
        path = ROOT / target
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py" or path.stat().st_size > 200]


@functools.cache
def read_source(path: str) -> str:
    """The healthy text of a module, as it was when it was first asked for: the working tree may change meanwhile."""
    return (ROOT / path).read_text()


def mirror(target: str) -> str:
    """The tests of a package or module: its package's folder under tests."""
    parts = Path(target).parts[1:]
    while parts:
        if (path := ROOT.joinpath("tests", *parts)).is_dir():
            return str(path.relative_to(ROOT))
        parts = parts[:-1]
    raise SystemExit(f"no tests mirror {target}; name them with --tests")


def find_mutants(path: str) -> list[Mutant]:
    """Every mutant of a module, by operator and place.

    Args:
        path: Of the module, from the root.

    Returns:
        Mutants without their text.
    """
    source = read_source(path)
    annotations = []
    for node in ast.walk(ast.parse(source)):
        found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        annotations += [part for part in found if isinstance(part, ast.expr)]
    spans = [((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)) for part in annotations]
    nodes = list(ast_nodes(get_ast(source)))
    mutants = []
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments() or name.endswith((*SAME_IN_PYTHON, "NoOp")):
            continue
        operator = operator_class()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(places):
            if not any(begin <= start < end for begin, end in spans):
                mutants.append(Mutant(path, name.removeprefix("core/"), occurrence, start[0]))
    return mutants


def find_again(mutants: Sequence[Mutant]) -> list[Mutant]:
    """Return mutants of an earlier run with the lines where they are now."""
    paths = dict.fromkeys(mutant.path for mutant in mutants)
    lines = {(one.path, one.operator, one.occurrence): one.line for path in paths for one in find_mutants(path)}
    found = [(mutant, lines.get((mutant.path, mutant.operator, mutant.occurrence))) for mutant in mutants]
    return [replace(mutant, line=line) for mutant, line in found if line is not None]


def apply(mutant: Mutant) -> str | None:
    """The module's text with the fault; None where that is no Python or says the same."""
    source = read_source(mutant.path)
    changed = mutate_code(source, get_operator(f"core/{mutant.operator}")(), mutant.occurrence)
    try:
        return None if changed is None or ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)) else changed
    except SyntaxError:
        return None


def describe(mutant: Mutant, changed: str) -> Mutant:
    """The mutant with the lines that it changes."""
    source = read_source(mutant.path)
    lines = list(difflib.ndiff(source.splitlines(), changed.splitlines()))
    before = " ".join(line[2:].strip() for line in lines if line.startswith("- "))
    after = " ".join(line[2:].strip() for line in lines if line.startswith("+ "))
    return Mutant(**{**asdict(mutant), "before": before, "after": after})


def run_child(work: Callable[[], int], copy: Path, cpu: float) -> int:
    """Run work in a forked child inside the copy.

    Args:
        work: What gives the child's exit status.
        copy: The folder to run in, first of the import path.
        cpu: Seconds of CPU time before the child is ended; five times as many of the clock, and a minute.

    Returns:
        The exit status; negative where a signal ended the child.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu), math.ceil(cpu) + 1))
            with Path(os.devnull).open("r+b") as nowhere:
                for stream in range(2 if os.environ.get("MUTATE_STDERR") else 3):
                    os.dup2(nowhere.fileno(), stream)
            os.chdir(copy)
            sys.path[0] = str(copy)
            sys.dont_write_bytecode = False  # what is not changed is compiled once
            os.environ["PYTHONPATH"] = str(copy)
            status = work()
        finally:
            os._exit(status)
    deadline = time.monotonic() + 5 * cpu + 60
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(0.01)


def measure_reach(copy: Path, modules: Sequence[str], tests: Sequence[str], ignored: Sequence[str]) -> Reach:
    """Run the healthy tests once, and note what they reach."""
    target = copy / "reach.json"

    def work() -> int:
        recorder = Recorder([copy / module for module in modules])
        status = pytest.main([*OPTIONS, *(f"--ignore={path}" for path in ignored), *tests], plugins=[recorder])
        recorder.write(copy, target)
        return int(status)

    status = run_child(work, copy, cpu=3600)
    if status:
        raise SystemExit(f"the tests fail without a mutant (status {status}); MUTATE_STDERR=1 shows why")
    read = json.loads(target.read_text())
    tests_by_line = {path: {int(line): found for line, found in by.items()} for path, by in read["tests"].items()}
    return Reach(read["seconds"], tests_by_line)


def judge(mutant: Mutant, changed: str, copy: Path, reach: Reach, stamp: int) -> str:
    """Run the tests that reach the mutant.

    Args:
        mutant: The fault.
        changed: The module's text with it.
        copy: Where the module is changed, and put back afterwards.
        reach: Which tests reach it.
        stamp: Different for each mutant: the module's time, by which Python knows that its bytecode is old.

    Returns:
        The outcome.
    """
    by_line = reach.tests.get(mutant.path, {})
    last = max((line for line in by_line if line <= mutant.line), default=0)
    found = set(by_line.get(mutant.line) or by_line.get(last, ()))
    if not found:
        return "unreached"
    if "" in found:  # an import runs it: whoever runs any of the module may notice, or looks at modules from outside
        busy = {test for lines in reach.tests.values() for tests in lines.values() for test in tests}
        found = {test for tests in by_line.values() for test in tests} | (reach.seconds.keys() - busy)
    chosen = sorted((test for test in found if test), key=lambda test: reach.seconds[test])
    if not chosen:
        return "unreached"
    spent = itertools.accumulate(reach.seconds[test] for test in chosen)
    chosen = [test for test, sum_ in zip(chosen, spent, strict=True) if sum_ <= MOST_SECONDS] or chosen[:1]
    files = list(dict.fromkeys(test.partition("::")[0] for test in chosen))
    cpu = 10 * sum(reach.seconds[test] for test in chosen) + 30
    path = copy / mutant.path
    path.write_text(changed)
    os.utime(path, (stamp, stamp))
    try:
        status = run_child(lambda: int(pytest.main([*OPTIONS, *files], plugins=[Chooser(chosen)])), copy, cpu)
    finally:
        path.write_text(read_source(mutant.path))
    if status in (-signal.SIGKILL, -signal.SIGXCPU):
        return "timeout"
    return "survived" if status in (0, NO_TESTS) else "killed"


def read_equivalents() -> set[tuple[str, str, str]]:
    """Path, line and changed line of the mutants that a person found to be equivalent."""
    if not EQUIVALENT.exists():
        return set()
    groups: list[dict[str, Any]] = yaml.safe_load(EQUIVALENT.read_text()) or []
    return {
        (group["path"], one["before"], after) for group in groups for one in group["mutants"] for after in one["after"]
    }


def interval(killed: int, counted: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate, at 95 %."""
    if not counted:
        return 0.0, 1.0
    rate, wide = killed / counted, z * z / counted
    middle = (rate + wide / 2) / (1 + wide)
    half = z / (1 + wide) * math.sqrt(rate * (1 - rate) / counted + wide / (4 * counted))
    return middle - half, middle + half


def report(mutants: Sequence[Mutant], population: dict[str, int]) -> None:
    """Print a table of the modules, and the survivors."""
    print("\nmodule | mutants | tried | equivalent | killed | survived | rate\n--- | --- | --- | --- | --- | --- | ---")
    weighed, weights, sums = 0.0, 0, [0, 0, 0, 0]
    for path in sorted({mutant.path for mutant in mutants}):
        outcomes = [mutant.outcome for mutant in mutants if mutant.path == path]
        equivalent = outcomes.count("equivalent")
        killed = outcomes.count("killed") + outcomes.count("timeout")
        counted = len(outcomes) - equivalent
        whole = population.get(path, len(outcomes))
        row = [len(outcomes), equivalent, killed, counted - killed]
        sums = [old + new for old, new in zip(sums, row, strict=True)]
        if counted:
            weighed, weights = weighed + whole * killed / counted, weights + whole
        print(" | ".join(map(str, [path, whole, *row, f"{killed / counted:.1%}" if counted else "-"])))
    low, high = interval(sums[2], sums[0] - sums[1])
    total = f"{sums[2] / max(1, sums[0] - sums[1]):.1%} (95 % {low:.1%} to {high:.1%})"
    print(" | ".join(map(str, ["all", sum(population.values()), *sums, total])))
    if weights:
        print(f"\nweighed by the mutants of each module: {weighed / weights:.1%}")
    for mutant in mutants:
        if mutant.outcome in ("survived", "unreached"):
            print(f"\n{mutant.path}:{mutant.line} {mutant.operator} {mutant.outcome}")
            print(f"  - {mutant.before}\n  + {mutant.after}")


def make_copy(folder: Path) -> Path:
    """Copy the working tree's files that git knows or would, into a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def choose(modules: Sequence[str], sample: int | None, seed: int) -> tuple[list[Mutant], dict[str, int]]:
    """The mutants to try, and how many each module has."""
    chosen, population = [], {}
    for module in modules:
        found = find_mutants(module)
        population[module] = len(found)
        random.Random(f"{seed} {module}").shuffle(found)
        chosen += found[:sample]
    return sorted(chosen, key=lambda mutant: (mutant.path, mutant.line)), population


def main() -> None:
    """Read the command line, try the mutants, report."""
    parser = argparse.ArgumentParser(description="try mutants of modules on their tests")
    parser.add_argument("targets", nargs="+", help="packages or modules, from the root")
    parser.add_argument("--sample", type=int, help="at most so many mutants of each module; default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", action="append", help="tests to run; default: the mirrored folder")
    parser.add_argument("--ignore", action="append", default=[], help="a test file to leave out")
    parser.add_argument("--results", type=Path, help="a JSON file that keeps the outcomes")
    parser.add_argument("--again", action="store_true", help="only the survivors in --results")
    stated = parser.parse_args()
    os.environ.update(CI="1", OMP_NUM_THREADS="1")
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    modules = list_modules(stated.targets)
    mutants, population = choose(modules, stated.sample, stated.seed)
    if stated.again:
        kept = json.loads(stated.results.read_text())
        population, mutants = kept["population"], find_again([Mutant(**one) for one in kept["mutants"]])
    for module in {mutant.path for mutant in mutants}:
        read_source(module)
    tests = stated.tests or list(dict.fromkeys(mirror(target) for target in stated.targets))
    equivalents = read_equivalents()
    tried: list[Mutant] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = make_copy(Path(folder).resolve())
        reach = measure_reach(copy, modules, tests, stated.ignore)
        print(f"{len(reach.seconds)} tests, {len(mutants)} mutants", flush=True)
        if mutants and judge(mutants[0], read_source(mutants[0].path), copy, reach, 999_999) == "killed":
            raise SystemExit("the healthy module counts as killed: its tests depend on their order, or on the copy")
        for stamp, mutant in enumerate(mutants, start=1_000_000):
            if stated.again and mutant.outcome in ("killed", "timeout"):
                tried.append(mutant)
                continue
            if (changed := apply(mutant)) is None:
                continue
            described = describe(mutant, changed)
            if stated.again and described.before != mutant.before:
                continue  # the code has changed since
            if (mutant.path, described.before, described.after) in equivalents:
                outcome = "equivalent"
            else:
                outcome = judge(described, changed, copy, reach, stamp)
            tried.append(Mutant(**{**asdict(described), "outcome": outcome}))
            print({"killed": ".", "timeout": "t", "equivalent": "="}.get(outcome, "S"), end="", flush=True)
            if stated.results and not stated.again:
                keep(stated.results, tried, population)
    if stated.results:
        keep(stated.results, tried, population)
    report(tried, population)


def keep(target: Path, mutants: Sequence[Mutant], population: dict[str, int]) -> None:
    """Write the outcomes."""
    target.write_text(json.dumps({"population": population, "mutants": [asdict(one) for one in mutants]}, indent=1))


if __name__ == "__main__":
    main()
