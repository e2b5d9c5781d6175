"""Where a golden lies: folders from spec paths, file names from case ids, keys from devices."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from specrunner.spec.model import Case

SPECS = "specs"
GOLDEN = "golden"
MANIFEST = ".json"

_LONGEST_NAME = 150


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """The place of one golden.

    Attributes:
        root: the folder `golden` that it lies in.
        suite: the spec's path below `specs`, without the extension.
        case: the case's id as a file name.
        device: the device key.
    """

    root: Path
    suite: str
    case: str
    device: str

    @property
    def stem(self) -> Path:
        """The path of its files, without their extensions."""
        return self.root / self.suite / f"{self.case}@{self.device}"

    @property
    def label(self) -> str:
        """`llada2/tiny-golden/capital--engine=hf@cpu-x86_64`, for people."""
        return f"{self.suite}/{self.case}@{self.device}"

    def on(self, device: str) -> Slot:
        """Return the place of the same case's golden of another device."""
        return Slot(self.root, self.suite, self.case, device)


def find_slot(case: Case, device: str) -> Slot:
    """Return where a case's golden of a device lies: `golden/` stands beside the spec's folder `specs`.

    A spec that is under no folder `specs` has its goldens in a folder `golden` beside itself.
    """
    root, suite = find_root(case.location.path)
    owner = (case.golden.case_id if case.golden else "") or case.id
    return Slot(root, suite, name_case(owner), device)


def find_root(spec: str) -> tuple[Path, str]:
    """Return the folder of a spec's goldens, and the spec's path below `specs` without its extension."""
    path = PurePosixPath(Path(spec).as_posix())
    places = [index for index, part in enumerate(path.parts[:-1]) if part == SPECS]
    if not places:
        return Path(path.parent / GOLDEN), path.stem
    below = PurePosixPath(*path.parts[places[-1] + 1 :])
    return Path(*path.parts[: places[-1]], GOLDEN), str(below.with_suffix(""))


def name_case(case_id: str) -> str:
    """Turn `capital[engine=hf,dtype=float32]` into a file name: `capital--engine=hf,dtype=float32`.

    Different ids give different names: what a file name should not hold is percent-encoded, and a long one is cut and
    ends with a digest of the whole.
    """
    name, _, parameters = case_id.partition("[")
    text = f"{quote(name, safe='')}--{quote(parameters.removesuffix(']'), safe='=,+')}"
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[: _LONGEST_NAME - 17]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def name_device(device: str) -> str:
    """Return the device key of what a session says it ran on.

    Args:
        device: `cpu`, `cuda (NVIDIA H200)` or a GPU's name.

    Returns:
        `cpu-x86_64` (the processor's architecture), `cuda-nvidia-h200`.
    """
    if device == "cpu":
        return f"cpu-{platform.machine()}"
    return re.sub(r"[^a-z0-9_]+", "-", device.lower()).strip("-")[:80] or "unknown"


def parse_file(root: Path, file: Path) -> Slot | None:
    """Return the slot that a manifest under `root` belongs to, or None when its name is not one of ours."""
    stem, extension, _ = file.name.rpartition(MANIFEST)  # what comes before may hold one, too: a case's id
    case, at, device = stem.rpartition("@")
    if not at or not extension:
        return None
    return Slot(root, file.parent.relative_to(root).as_posix(), case, device)
