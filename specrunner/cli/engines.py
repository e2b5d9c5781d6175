"""`specrunner engines`: list, install and examine the interpreters that run the engines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specrunner.cli import add_command
from specrunner.errors import ExitCode

if TYPE_CHECKING:
    from specrunner.environments.doctor import Examination

EXAMPLES = """\
examples:
  specrunner engines list
  specrunner engines install vllm sglang      the flavour for this machine: CUDA where a driver is, else CPU
  specrunner engines install vllm-cuda        this flavour
  specrunner engines doctor                   examine everything that is installed
"""

INSTALLING = """\
An engine's name takes the flavour for this machine. Flavours: vllm-cpu, vllm-cuda, sglang-cpu, sglang-cuda,
hf-llada2-cpu, hf-llada2-cuda; and hf. Each goes into the folder environments/ of $SPECRUNNER_CACHE, by default
~/.cache/specrunner; docs/environments.md has the sizes. Those for CPUs need CPU builds of torch, which the main package
index lacks: name an index that has them in PIP_EXTRA_INDEX_URL, or a folder of wheels in PIP_FIND_LINKS.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    list_parser = add_command(actions, "list", "say what is installed where, without starting anything")
    list_parser.add_argument("--json", action="store_true", help="print JSON")
    install_parser = add_command(actions, "install", "build environments from the lock files that specrunner ships")
    install_parser.epilog = INSTALLING
    install_parser.formatter_class = argparse.RawDescriptionHelpFormatter
    install_parser.add_argument("names", nargs="+", metavar="NAME", help="vllm, sglang, hf, or a flavour: vllm-cpu ...")
    install_parser.add_argument("--python", type=Path, metavar="FILE", help="the interpreter to build with")
    install_parser.add_argument("--reinstall", action="store_true", help="remove what is there and build anew")
    doctor_parser = add_command(actions, "doctor", "import each engine and say what is wrong with it")
    doctor_parser.add_argument("names", nargs="*", metavar="NAME", help="what to examine (default: all that is there)")
    doctor_parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.action == "list":
        return list_engines(options.json)
    if options.action == "install":
        return install_engines(options.names, options.python, options.reinstall)
    return examine_engines(options.names, options.json)


def list_engines(as_json: bool) -> int:
    """Print every engine and every environment that could run it."""
    from specrunner.environments.inventory import take_inventory

    rows = take_inventory()
    if as_json:
        print(json.dumps([row.to_json() for row in rows], indent=2))
        return ExitCode.PASSED
    lines = [("ENGINE", "ENVIRONMENT", "DEVICE", "STATE", "WHAT")]
    ready = {row.engine for row in rows if row.state == "ready"}
    for row in rows:
        what = row.remedy or f"{row.python} ({_describe_versions(row.versions)})"
        if row.state == "not installed" and row.engine in ready:
            what = f"optional: {what}"
        lines.append((row.engine, row.environment, row.device, row.state, what))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]))
    return ExitCode.PASSED


def _describe_versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "-"


def install_engines(names: Sequence[str], python: Path | None, reinstall: bool) -> int:
    """Install environments one after the other; the first that fails ends the command."""
    from specrunner.cli.meter import Meter
    from specrunner.environments.installer import install_environment
    from specrunner.environments.interpreters import environment_folder
    from specrunner.environments.locks import choose_lock

    for lock in [choose_lock(name) for name in names]:
        with Meter(lock.name, sys.stderr) as meter:
            new = install_environment(lock, progress=meter.show, python=python, reinstall=reinstall)
        print(f"{lock.name} is {'installed' if new else 'already installed'} in {environment_folder(lock)}")
    return ExitCode.PASSED


def examine_engines(names: Sequence[str], as_json: bool) -> int:
    """Examine environments and print what is wrong with each; exit 1 when something is."""
    from specrunner.environments.inventory import find_examinations

    results: list[Examination] = []
    for label, examine in find_examinations(names):
        print(f"examining {label} ...", file=sys.stderr)
        results.append(examine())
    if as_json:
        print(json.dumps([result.to_json() for result in results], indent=2))
    else:
        for result in results:
            _print_examination(result)
    return ExitCode.FAILED if any(result.problems for result in results) else ExitCode.PASSED


def _print_examination(result: Examination) -> None:
    if not result.problems:
        torch = result.facts.get("torch") or {}
        build = f", torch {torch['version']}" if torch else ""
        gpus = "".join(f", {device}" for device in torch.get("devices", ()))
        print(f"{result.name}: works (Python {result.facts.get('python', '?')}{build}{gpus})  {result.python}")
        return
    print(f"{result.name}: does not work" + (f"  {result.python}" if result.python else ""))
    for problem in result.problems:
        print(f"  {problem.message}")
        if problem.remedy:
            print(f"    help: {problem.remedy}")
