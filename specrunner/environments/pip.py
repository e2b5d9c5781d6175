"""A virtual environment's own pip, run without questions and with its output kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from specrunner.errors import EngineMissing
from specrunner.words import describe_exit

LOG = "install.log"
"""Everything that pip printed, in the environment's folder."""

_HIDDEN_VARIABLES = frozenset(
    {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"}
    | {"PIP_USER", "PIP_CONSTRAINT", "PIP_REQUIREMENT", "PIP_PYTHON", "PIP_NO_BINARY", "PIP_PROGRESS_BAR"}
    | {"PIP_QUIET", "PIP_VERBOSE"}
)
_INSTALL = ("install", "--no-deps", "--only-binary", ":all:", "--no-input", "--no-warn-script-location")
_STEP = re.compile(r"(Collecting|Downloading|Processing|Using cached|Installing collected packages:) (\S+)")


class Pip:
    """The pip of one virtual environment.

    Args:
        folder: the environment.
        descriptor: a file descriptor that pip's process inherits; a lock on it outlives us when we are killed.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._python = folder / "bin" / "python"
        self._descriptor = descriptor

    def prepare(self, base: Path) -> None:
        """Make the virtual environment with `base`, unless a usable one is there.

        Raises:
            EngineMissing: `base` cannot make one.
        """
        if self._python.exists() and self._run([self._python, "-m", "pip", "--version"])[0] == 0:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        status, output = self._run([base, "-m", "venv", self.folder])
        if status != 0:
            raise EngineMissing(
                f"{base} cannot make a virtual environment",
                help="install the venv and ensurepip modules of this Python (on Debian: apt install python3-venv)",
                log_tail="\n".join(output.splitlines()[-40:]),
            )

    def install(self, pins: Sequence[str], tell: Callable[[str], None]) -> tuple[int, str]:
        """Install exactly `pins`, from wheels alone.

        Args:
            pins: `name===version` each.
            tell: called with what pip is doing.

        Returns:
            pip's exit status and its output.
        """

        def on_line(line: str) -> None:
            if match := _STEP.match(line.strip()):
                installing = match[1].startswith("Installing")
                tell(f"unpacking {len(pins)} packages" if installing else f"{match[1].lower()} {Path(match[2]).name}")

        command: list[Path | str] = [
            self._python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            *_INSTALL,
            "--progress-bar",
            "off",
        ]
        return self._run([*command, *pins], on_line)

    def _run(
        self, command: Sequence[Path | str], on_line: Callable[[str], None] = lambda line: None
    ) -> tuple[int, str]:
        """Run a command without input; its output goes to the end of the log, too."""
        words = [str(word) for word in command]
        variables = {key: value for key, value in os.environ.items() if key not in _HIDDEN_VARIABLES}
        lines: list[str] = []
        with (self.folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
            log.write(f"$ {' '.join(words)}\n")
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env=variables,
                    pass_fds=(self._descriptor,),
                )
            except OSError as error:
                log.write(f"{error}\n")
                return 127, str(error)
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line)
                    log.write(line)
                    on_line(line)
        if process.returncode < 0:
            lines.append(f"ERROR: pip {describe_exit(process.returncode)}\n")
        return process.returncode, "".join(lines)


def explain_failure(output: str) -> str:
    """Return pip's own reason, without its prefix."""
    errors = re.findall(r"^ERROR: (.+)$", output, flags=re.MULTILINE)
    chosen = [line for line in errors if line.startswith("No matching distribution")]
    return (chosen or errors or output.strip().splitlines() or ["pip printed nothing"])[-1]


def advise(output: str) -> str:
    """Return the remedy for a failure of pip whose cause is well known, or ""."""
    if "No space left" in output:
        return "free some space, or set SPECRUNNER_CACHE to a folder on a larger disk"
    if re.search(r"No matching distribution found for torch==\S+\+cpu", output):
        return (
            "CPU builds of torch are not in the main package index: name the place that has them in "
            "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS (see PyTorch's installation page)"
        )
    if "No matching distribution found" in output:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return f"there may be no wheel for Python {version} on this machine; --python PATH takes another Python"
    return ""
