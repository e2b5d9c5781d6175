#!/usr/bin/env python3
"""Fuzzes what `specrunner validate` and `run --plan` do with a file: no crash, hang or traceback.

    tools/fuzz_specs.py --documents 1000000              made by a grammar and by mutations of our own specs
    tools/fuzz_specs.py --documents 100000 --guided      led by coverage (atheris, from `pip install atheris`)
    tools/fuzz_specs.py --replay FILE…                   judge files again

Documents are judged in child processes, one a shard, so that a crash is seen; each has a limit of CPU time and the
children one of memory. What breaks a promise is kept in `--keep`, and the exit status is 1. The seeds are the specs of
this repository and the examples of its tests, taken from where they lie.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
KILL_AFTER = 20
"""Seconds of CPU time after which a child is ended, stuck where no Python code runs."""
MEMORY = 4 << 30
"""Bytes of address space that a child may have."""


class Examiner:
    """Judges documents in a child, and keeps account in a file that the parent reads.

    Args:
        account: where to, rewritten now and then; beside it lies the document being judged.
        keep: where the documents that break a promise are kept.
        limit: seconds of CPU time that one may take.
    """

    def __init__(self, account: Path, keep: Path, limit: float) -> None:
        self._account, self._keep, self._limit = account, keep, limit
        self._current = os.open(account.with_suffix(".current"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.done = 0
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.slow: list[str] = []
        self.bugs: Counter[str] = Counter()

    def examine(self, kind: str, data: bytes) -> None:
        """Judge one document."""
        from tests.hostile.judging import LIMIT_OF_CASE, judge

        os.pwrite(self._current, data, 0)
        os.ftruncate(self._current, len(data))
        signal.setitimer(signal.ITIMER_PROF, KILL_AFTER)
        started, cases = time.process_time(), 0
        try:
            outcome, cases = judge(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a bug
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"BUG {type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:100]}"
            self.bugs[outcome] += 1
            if self.bugs[outcome] <= 3:
                self.keep("bug", data)
        took = time.process_time() - started
        self.slowest = max(self.slowest, took - cases * LIMIT_OF_CASE)
        if took > self._limit + cases * LIMIT_OF_CASE:
            self.slow.append(f"{took:.2f} s: {self.keep('slow', data)}")
        self.outcomes[f"{kind} · {outcome if outcome == 'valid' or outcome[:3] == 'BUG' else 'refused'}"] += 1
        self.outcomes[outcome] += outcome.startswith("refused")
        self.done += 1
        if self.done % 1000 == 0:
            self.save()

    def keep(self, why: str, data: bytes) -> str:
        """Keep a document, and return its name."""
        self._keep.mkdir(parents=True, exist_ok=True)
        name = f"{why}-{os.getpid()}-{self.done}.yaml"
        (self._keep / name).write_bytes(data)
        return name

    def save(self) -> None:
        """Write the account."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        told = {"done": self.done, "outcomes": self.outcomes, "slowest": self.slowest, "slow": self.slow}
        told |= {"bugs": self.bugs, "rss_mb": usage.ru_maxrss // 1024, "cpu": usage.ru_utime + usage.ru_stime}
        self._account.write_text(json.dumps(told), encoding="utf-8")


def work(options: argparse.Namespace) -> None:
    """Judge one shard, in a child."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if options.guided:
        import atheris

        with atheris.instrument_imports(include=["specrunner.spec", "specrunner.plan"]):
            import specrunner.plan.capabilities
            import specrunner.spec.explain  # noqa: F401
    from tests.hostile.documents import LONGEST, SEEDS, Maker, read_seeds

    examiner = Examiner(Path(options.worker), Path(options.keep), options.limit)
    maker = Maker(read_seeds())
    if not options.guided:
        for index in range(options.first, options.first + options.documents):
            examiner.examine(*maker.make(random.Random(f"{options.seed}:{index}")))
        examiner.save()
        return

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return maker.mutate(data, chance)[:most]

    def test(data: bytes) -> None:
        examiner.examine("guided", data)
        if examiner.done >= options.documents:
            examiner.save()
            os._exit(0)

    corpus = Path(options.keep) / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    arguments = [sys.argv[0], f"-seed={options.seed + options.first + 1}", f"-max_len={LONGEST}", "-rss_limit_mb=0"]
    arguments += [f"-artifact_prefix={options.keep}/", "-report_slow_units=600"]
    atheris.Setup([*arguments, "-print_final_stats=0", str(corpus), *map(str, SEEDS)], test, custom_mutator=mutate)
    atheris.Fuzz()


def run_shards(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Run all shards one after the other and print the sum; return the exit status."""
    keep = Path(options.keep)
    keep.mkdir(parents=True, exist_ok=True)
    total: Counter[str] = Counter()
    done, slowest, rss, cpu = 0, 0.0, 0, 0.0
    broken: list[str] = []
    started = time.monotonic()
    while done < options.documents and time.monotonic() - started < options.minutes * 60:
        account = keep / "account.json"
        account.unlink(missing_ok=True)
        size = min(options.shard, options.documents - done)
        command = [sys.executable, __file__, "--worker", str(account), "--keep", str(keep), "--first", str(done)]
        command += ["--documents", str(size), "--seed", str(options.seed), "--limit", str(options.limit)]
        child = subprocess.run([*command, *(["--guided"] if options.guided else [])], capture_output=True, text=True)
        told = json.loads(account.read_text(encoding="utf-8")) if account.exists() else {"done": 0}
        if child.returncode or told["done"] < size:
            name = f"crash-{options.seed}-{done}.yaml"
            account.with_suffix(".current").replace(keep / name)
            broken.append(f"a child ended with {child.returncode}: {name}: {child.stderr[-300:]}")
            if not told["done"]:
                break
        total.update(told.get("outcomes", {}))
        broken += [*told.get("bugs", {}), *told.get("slow", ())]
        slowest, rss = max(slowest, told.get("slowest", 0)), max(rss, told.get("rss_mb", 0))
        done, cpu = done + told["done"], cpu + told.get("cpu", 0)
        say(f"{done:,} documents in {time.monotonic() - started:,.0f} s, {len(broken)} broken promises")
    rate = done / max(cpu, 1e-9)
    say(f"{done:,} documents, {cpu:,.0f} s of CPU time, {rate:,.0f} a second of it; slowest {slowest:.3f} s; {rss} MB")
    for outcome, number in sorted(total.items(), key=lambda item: -item[1]):
        say(f"{number:>10,}  {outcome}")
    for line in broken:
        say(f"BROKEN: {line}")
    return 1 if broken or done < options.documents else 0


def main() -> int:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no shard after so many minutes")
    parser.add_argument("--shard", type=int, default=20_000, help="documents that one child judges (default: 20000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same documents (default: 1)")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds of CPU time for one (default: 1)")
    parser.add_argument("--guided", action="store_true", help="lead the choice by coverage, with atheris")
    parser.add_argument("--keep", default=".fuzz", help="where to keep what breaks a promise (default: .fuzz)")
    parser.add_argument("--replay", nargs="+", metavar="FILE", help="judge these files")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return 0
    if options.replay:
        from tests.hostile.judging import judge

        for file in options.replay:
            started = time.process_time()
            outcome, cases = judge(Path(file).read_bytes())
            print(f"{time.process_time() - started:.3f} s  {outcome}  {cases:,} cases  {file}")
        return 0
    return run_shards(options, lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
