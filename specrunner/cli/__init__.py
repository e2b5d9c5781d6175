"""The command line: the table of commands, and how every command ends."""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import io
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from specrunner import __version__
from specrunner.errors import ExitCode, SpecError, SpecrunnerError

OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""A run keeps nearly all that it makes: Python's own 700 have it search the same objects for cycles again and again."""

COMMANDS: dict[str, str] = {
    "run": "run the cases of spec files and report their verdicts",
    "validate": "check spec files without running anything",
    "list": "list the cases that spec files expand to",
    "show": "show the last run's evidence for a case",
    "golden": "show, review, accept and prune the goldens",
    "compare": "measure two captures or safetensors files against each other",
    "prove": "plant faults in the engines, and show which cases catch them",
    "calibrate": "measure the noise of legitimate variants, and print the tolerances it supports",
    "engines": "list, install and examine the inference engines",
    "cache": "show, prune, export and import what is kept of earlier runs",
    "init": "write one spec that runs at once",
    "completion": "print what lets a shell complete specrunner's commands",
}
"""Commands and their one-line help. `run` lives in `specrunner.cli.run`, and so on; a module is imported when used."""

EXAMPLES = """\
examples:
  specrunner init                                        write a first spec
  specrunner run specs/                                  run everything
  specrunner run specs/smoke -k logits                   run a part
  specrunner run 'specs/a.yaml::capital[engine=hf]'      run one case
  specrunner run specs/ --plan                           show what would run
  specrunner validate specs/                             check the specs alone
  specrunner run specs/ --html report.html               a report for people
"""

EXIT_STATUSES = """\
exit status:
  0 passed   1 a case failed   2 interrupted   3 a bug of ours   4 usage or an invalid spec
  5 nothing was verified   10 errors but no failures
"""


class _Parser(argparse.ArgumentParser):
    """argparse with our exit code for a wrong command line, and with help that begins with examples.

    Attributes:
        examples: what `--help` begins with, or "".
    """

    examples: str = ""

    def format_help(self) -> str:
        """Return the examples, and then what argparse says."""
        help_text = super().format_help()
        return f"{self.examples}\n{help_text}" if self.examples else help_text

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, and let a list of words go on after an option: `a.yaml -t x b.yaml`.

        argparse ends the list at the first option, and its `parse_intermixed_args` knows no commands.
        """
        options, rest = super().parse_known_args(args, namespace)
        listed = next((action.dest for action in self._actions if action.nargs in ("*", "+")), None)
        if listed is None or "--" in rest:
            return options, rest
        getattr(options, listed).extend(word for word in rest if not word.startswith("-"))
        return options, [word for word in rest if word.startswith("-")]

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print usage and the message, with the word that was probably meant, and exit 4."""
        self.print_usage(sys.stderr)
        advice = self._suggest(message)
        self.exit(ExitCode.USAGE, f"error: {message}\n" + (f"  help: {advice}\n" if advice else ""))

    def _suggest(self, message: str) -> str | None:
        """Return what to do about an unknown option or choice that argparse has found."""
        unknown = re.search(r"unrecognized arguments: (-[^\s=]+)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            word, known = unknown[1], sorted(self._list_options())
        elif choice:
            word, known = choice[1], re.findall(r"[\w-]+", choice[2])
        else:
            return None
        from specrunner.words import did_you_mean

        return did_you_mean(word, known)

    def _list_options(self) -> set[str]:
        """Return the options of this parser and of the commands that were declared."""
        options = {option for action in self._actions for option in action.option_strings}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                options.update(*(parser._list_options() for parser in action.choices.values()))
        return options


def make_parser(command: str | None, *, whole: bool = False) -> argparse.ArgumentParser:
    """Build the parser.

    Args:
        command: the command whose arguments are declared; only its module is imported.
        whole: declare the arguments of every command.
    """
    parser = _Parser(
        prog="specrunner",
        description="Validate what LLM inference engines compute, from cases written as YAML.",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.examples = EXAMPLES
    parser.add_argument("--version", action="version", version=f"specrunner {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if whole or name == command:
            module = importlib.import_module(f"specrunner.cli.{name}")
            subparser.examples = module.EXAMPLES
            module.add_arguments(subparser)
    return parser


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    """Declare a command below a command, with what it does in both helps."""
    return commands.add_parser(name, help=text, description=text)


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it cleans up and says so."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (DESIGN section 10)."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # `list` is a submodule here once it was imported
    command = next((word for word in arguments if word in COMMANDS), None)
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)  # the end of the process needs no search for cycles either
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a spec may hold what an ASCII terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        parser = make_parser(command)
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help()
            return ExitCode.USAGE
        with interrupt_on_sigterm():
            return int(importlib.import_module(f"specrunner.cli.{options.command}").run(options))
    except SystemExit as stop:
        return int(stop.code or 0)
    except SpecError as error:
        from specrunner.spec.diagnostics import print_diagnostics

        print_diagnostics(error.diagnostics, sys.stderr)
        return error.exit_code
    except SpecrunnerError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.help:
            print(f"  help: {error.help}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        from specrunner.reporters.console import silence_stream

        silence_stream(sys.stdout)
        return ExitCode.PASSED
    except Exception:
        import traceback

        traceback.print_exc()
        print("error: this is a bug of specrunner's own; please report it with the lines above", file=sys.stderr)
        return ExitCode.BUG
