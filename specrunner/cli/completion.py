"""`specrunner completion`: print a shell's completion script, made by shtab from the parser itself."""

from __future__ import annotations

import argparse

from specrunner.errors import ExitCode

EXAMPLES = """\
examples:
  specrunner completion zsh > "${fpath[1]}/_specrunner"
  mkdir -p ~/.local/share/bash-completion/completions
  specrunner completion bash > ~/.local/share/bash-completion/completions/specrunner
  mkdir -p ~/.config/fish/completions
  specrunner completion fish > ~/.config/fish/completions/specrunner.fish
"""

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's argument."""
    parser.add_argument("shell", choices=SHELLS, help="whose script")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from specrunner.cli import make_parser

    parser = make_parser(None, whole=True)
    complete_files(parser)
    print(shtab.complete(parser, shell=options.shell))
    return ExitCode.PASSED


def complete_files(parser: argparse.ArgumentParser) -> None:
    """Mark, in a parser and those below it, the arguments that are completed with names of files."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                complete_files(below)
        elif action.nargs != 0 and action.metavar in ("FILE", "F", "PATH", "DIR", "A", "B"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
