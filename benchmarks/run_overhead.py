"""What specrunner adds to the engines' own time: a run against a hand-written script an engine, one after the other.

    python benchmarks/run_overhead.py [--cases 200] [--rounds 3] [--engines hf,vllm,sglang]

The run holds every other engine against the first, SmolLM2-135M in float32: with three engines, 200 cases are 100
prompts through each of the three, with the output of every layer and the logits of every token captured, written,
compared and kept in a cache without captures, which knows the environments' files from an earlier run. The scripts in
`bare/` load the same model in the same interpreters with the same arguments, variables and threads, run the same
prompts, and hold the same tensors; they write and compare nothing.

Both take turns, and which goes first changes from round to round; a round before them only fills the page cache.
Beside the wall time stands the processor time of all processes, which other work on the machine disturbs less, and
that of the engines' processes alone: what the command itself does, comparing above all, it does while engines work.
`-j 1` is a session after the other, as the scripts run. `--jobs 2`, which is what a run does when nothing is stated,
lets two sessions work side by side; the scripts are then run two at a time as well, and the wall time is also held
against the sum of what they take, each by its own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from timing import time_processes

HERE = Path(__file__).parent
TEXT = (
    "the engine of a ship turns while its captain reads old letters about rivers and mountains that nobody has seen "
    "since winter came and every bird left for warmer islands where people sing under tall green trees at night"
)
HEAD = """\
version: 1
model: {{recipe: smollm2-135m}}
engines: [{candidates}]
options: {{{options}}}
reference: {{engine: {reference}, dtype: float32, options: {{num_threads: {threads}}}}}
defaults:
  tensors: ["layers.*.output", logits]
  tolerance: {{"layers.*.output": {{sqnr: 60}}, logits: {{sqnr: 60, kl: {{mean: 1.0e-6, p99: 1.0e-5}}}}}}
cases:
"""

COMMAND = """\
import json, resource, sys
from specrunner.cli import main
status = main(sys.argv[2:])
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
open(sys.argv[1], "w").write(json.dumps([one.ru_utime + one.ru_stime for one in used]))
sys.exit(status)
"""
"""The command line's own entry point, which then notes the processor seconds of itself and of its processes."""


@dataclass(frozen=True, slots=True)
class Times:
    """What one way took, in seconds.

    Attributes:
        wall: from start to end.
        cpu: of all processors, in all processes.
        engines: of all processors, in the engines' processes.
        added: what the processes would take one after the other, by their own clocks; of a run the same as `wall`.
    """

    wall: float
    cpu: float
    engines: float
    added: float


def write_prompts(count: int, words: int) -> list[str]:
    """Return so many different prompts of so many words."""
    generator = random.Random(0)
    return [" ".join([f"Case {index}:", *generator.choices(TEXT.split(), k=words)]) for index in range(count)]


def write_spec(path: Path, engines: list[str], prompts: list[str], threads: int) -> None:
    """Write the spec that holds all engines but the first against the first."""
    reference, *candidates = engines
    head = HEAD.format(
        candidates=", ".join(candidates),
        reference=reference,
        options=", ".join(f"{name}: {{num_threads: {threads}}}" for name in candidates),
        threads=threads,
    )
    cases = [f"  - {{name: c{index}, prompt: {json.dumps(prompt)}}}\n" for index, prompt in enumerate(prompts)]
    path.write_text(head + "".join(cases), encoding="utf-8")


def find_interpreters(engines: list[str], folder: Path, threads: int) -> dict[str, tuple[Path, dict[str, str]]]:
    """Return each engine's interpreter and the variables that a session of ours would set, its caches in `folder`."""
    from specrunner.engines.registry import find_engine
    from specrunner.environments.interpreters import find_environment
    from specrunner.requests import Session
    from specrunner.spec.model import Model

    found = {}
    for name in engines:
        engine = find_engine(name)
        workspace = folder / name
        workspace.mkdir()
        options = {"num_threads": threads}
        session = Session(name, "", Model(recipe="smollm2-135m"), "float32", "cpu", options)
        environment = find_environment(name, engine.capabilities(), "cpu", config={})
        variables = {"OMP_NUM_THREADS": str(threads), **engine.worker_environment(session, workspace)}
        found[name] = (environment.python, {**variables, **ease_load(name, workspace, variables), **environment.env})
    return found


def ease_load(name: str, workspace: Path, variables: dict[str, str]) -> dict[str, str]:
    """Give a hand-written script what makes a session's load shorter, too; return the variables that need it.

    vLLM keeps what it noted about its model classes, and SGLang imports one model in place of all.
    """
    from specrunner.folders import cache_folder

    if name == "vllm":
        (workspace / "vllm").mkdir()
        notes = next((cache_folder() / "vllm-modelinfos").glob("*"), None)
        if notes is not None:
            (workspace / "vllm" / "modelinfos").symlink_to(notes)
    if name != "sglang":
        return {}
    package = workspace / "models" / "one_model"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text("from sglang.srt.models.llama import LlamaForCausalLM as EntryClass\n")
    path = os.pathsep.join((str(package.parent), variables["PYTHONPATH"]))
    return {"PYTHONPATH": path, "SGLANG_EXTERNAL_MODEL_PACKAGE": package.name}


def run_bare(
    interpreters: dict[str, tuple[Path, dict[str, str]]],
    arguments: list[str],
    told: dict[str, list[dict[str, float]]],
    jobs: int,
) -> Times:
    """Run the scripts, so many at a time, those that took longest before first; return what they cost together."""

    def run(name: str) -> float:
        python, variables = interpreters[name]
        environment = {**os.environ, **variables, "HF_HUB_OFFLINE": "1"}
        cost, printed = time_processes([str(python), str(HERE / "bare" / f"{name}.py"), *arguments], environment)
        told.setdefault(name, []).append(json.loads(printed.splitlines()[-1]))
        return cost.wall

    def rank(name: str) -> float:
        return -sum(told[name][-1][part] for part in ("load", "forwards")) if name in told else 0.0

    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        walls = list(pool.map(run, sorted(interpreters, key=rank)))
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Times(wall, cpu, cpu, sum(walls))


def make_cache(folder: Path, spec: Path) -> dict[str, str]:
    """Make a cache without captures in which the digests of the environments' files are known; return the settings."""
    from specrunner.folders import cache_folder

    folder.mkdir()
    for shared in ("models", "environments", "vllm-modelinfos"):
        (cache_folder() / shared).mkdir(exist_ok=True)
        (folder / shared).symlink_to(cache_folder() / shared)
    settings = {"SPECRUNNER_CACHE": str(folder), "SPECRUNNER_NO_CACHE": "0", "HF_HUB_OFFLINE": "1"}
    time_processes([sys.executable, "-m", "specrunner", "run", "--plan", str(spec)], {**os.environ, **settings})
    return settings


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="hf,vllm,sglang", help="the first is the reference of the others")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--words", type=int, default=24, help="of each prompt")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before them (default 1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-cache", action="store_true", help="keep no captures")
    options = parser.parse_args()
    from specrunner.models.recipes import ensure_model
    from specrunner.spec.model import Model

    engines = options.engines.split(",")
    model = ensure_model(Model(recipe="smollm2-135m"))
    prompts = write_prompts(-(-options.cases // (len(engines) - 1)), options.words)
    times: dict[str, list[Times]] = {"bare": [], "run": []}
    told: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
        write_spec(folder / "spec.yaml", engines, prompts, options.threads)
        interpreters = find_interpreters(engines, folder, options.threads)

        def bare(_number: int) -> Times:
            return run_bare(interpreters, [str(model), str(folder / "prompts.json")], told, options.jobs)

        def run(number: int) -> Times:
            settings = make_cache(folder / f"cache-{number}", folder / "spec.yaml")
            arguments = ["run", str(folder / "spec.yaml"), "-j", str(options.jobs), "--strict"]
            arguments += ["--json", str(folder / "r.json"), *(["--no-cache"] if options.no_cache else [])]
            command = [sys.executable, "-c", COMMAND, str(folder / "usage.json"), *arguments]
            cost, _ = time_processes(command, {**os.environ, **settings})
            report = json.loads((folder / "r.json").read_text(encoding="utf-8"))
            assert {case["verdict"] for case in report["cases"]} == {"passed"}
            _, engines = json.loads((folder / "usage.json").read_text())
            return Times(cost.wall, cost.cpu, engines, cost.wall)

        for number in range(options.warm_up + options.rounds):
            for subject, action in sorted({"bare": bare, "run": run}.items(), reverse=bool(number % 2)):
                found = action(number)
                print(f"round {number}, {subject}: {found}", file=sys.stderr, flush=True)
                if number >= options.warm_up:
                    times[subject].append(found)
    count = len(prompts) * (len(engines) - 1)
    shape = f"{count} cases over {', '.join(engines)}: {len(prompts)} prompts through each, -j {options.jobs}"
    print(f"{shape}, {options.threads} thread(s); medians of {options.rounds}, s")
    for name, rounds in told.items():
        parts = [statistics.median(one[key] for one in rounds[options.warm_up :]) for key in ("load", "forwards")]
        print(
            f"  {name:<8} by hand: start and load {parts[0]:.1f}, forwards {parts[1]:.1f}, {rounds[0]['rows']} tokens"
        )
    print(f"{'':<20}{'by hand':>9}{'run':>9}{'ratio':>8}{'least':>8}{'most':>8}")
    clocks = [("wall", "wall"), ("cpu", "processors, all"), ("engines", "... engines alone")]
    for clock, label in clocks + ([("added", "wall, scripts added")] if options.jobs > 1 else []):
        ours, theirs = ([getattr(one, clock) for one in times[subject]] for subject in ("run", "bare"))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        columns = f"{statistics.median(theirs):>9.1f}{statistics.median(ours):>9.1f}{statistics.median(ratios):>8.3f}"
        print(f"{label:<20}{columns}{min(ratios):>8.3f}{max(ratios):>8.3f}")


if __name__ == "__main__":
    main()
