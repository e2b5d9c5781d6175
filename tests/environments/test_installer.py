import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from specrunner.environments import installer, locks
from specrunner.environments.installer import find_missing, install_environment
from specrunner.environments.interpreters import MARK, environment_folder, read_mark, site_folders
from specrunner.environments.pip import Pip
from specrunner.errors import EngineMissing
from tests.environments.conftest import write_wheel
from tests.waiting import wait_for

pytestmark = pytest.mark.slow  # each makes an environment


@pytest.fixture
def lock(cache, wheels, make_lock, bare_environment):
    """A lock of four packages, `alpha` the engine, whose environment has been made and is empty."""
    for name in ("alpha", "beta", "gamma", "zeta"):
        write_wheel(wheels, name, "1.0", {f"{name}/__init__.py": f"NAME = {name!r}\n"})
    made = make_lock("toy-cpu", "alpha==1.0 beta==1.0 gamma==1.0 zeta==1.0", imports="alpha")
    shutil.copytree(bare_environment, environment_folder(made), symlinks=True)
    return made


def run_elsewhere(lock: locks.Lock, batch: int = 1) -> subprocess.Popen[str]:
    """Install a lock in another process."""
    code = (
        "import sys; from pathlib import Path; from specrunner.environments import installer, locks\n"
        f"locks.FOLDER = Path({str(locks.FOLDER)!r}); installer.BATCH = {batch}\n"
        "from specrunner.cli import main; sys.exit(main(['engines', 'install', 'toy-cpu']))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_from_nothing(cache, wheels, make_lock):
    write_wheel(wheels, "alpha", "1.0", {"alpha/__init__.py": ""})
    lock = make_lock("toy-cpu", "alpha==1.0", imports="alpha")
    steps = []
    assert install_environment(lock, progress=lambda done, total, what: steps.append((done, total, what)))
    mark = read_mark(environment_folder(lock))
    assert mark["versions"]["alpha"] == "1.0"
    assert (mark["name"], mark["digest"], mark["device"]) == ("toy-cpu", lock.digest, "cpu")
    assert steps[0][:2] == (0, 1)
    assert steps[-1] == (1, 1, "importing toy")
    python = environment_folder(lock) / "bin" / "python"
    assert subprocess.run([python, "-c", "import alpha"]).returncode == 0


def test_again_is_nothing_to_do(lock):
    assert install_environment(lock)
    changed = (environment_folder(lock) / MARK).stat().st_mtime_ns
    assert not install_environment(lock)
    assert (environment_folder(lock) / MARK).stat().st_mtime_ns == changed


def test_reinstall_begins_anew(lock, bare_environment, monkeypatch):
    folder = environment_folder(lock)
    (folder / MARK).write_text("{}")
    (folder / "left-over").touch()
    assert not install_environment(lock)
    monkeypatch.setattr(Pip, "prepare", lambda self, base: shutil.copytree(bare_environment, folder, symlinks=True))
    assert install_environment(lock, reinstall=True)
    assert not (folder / "left-over").exists()
    assert find_missing(lock, folder) == []


def test_an_import_that_fails_is_not_installed(cache, wheels, make_lock, bare_environment):
    write_wheel(wheels, "alpha", "1.0", {"alpha/__init__.py": "import nowhere\n"})
    lock = make_lock("toy-cpu", "alpha==1.0", imports="alpha")
    shutil.copytree(bare_environment, environment_folder(lock), symlinks=True)
    with pytest.raises(EngineMissing, match="No module named 'nowhere'"):
        install_environment(lock)
    assert read_mark(environment_folder(lock)) is None


def test_a_package_that_is_not_to_be_had(lock, wheels):
    (wheels / "zeta-1.0-py3-none-any.whl").unlink()
    with pytest.raises(EngineMissing, match="No matching distribution found for zeta===1.0") as caught:
        install_environment(lock)
    assert "zeta" in caught.value.log_tail
    assert read_mark(environment_folder(lock)) is None
    write_wheel(wheels, "zeta", "1.0", {"zeta/__init__.py": ""})
    assert install_environment(lock)


def test_a_local_version_is_another_version(cache, wheels, make_lock, bare_environment):
    for version in ("1.0", "1.0+cpu"):
        write_wheel(wheels, "alpha", version, {"alpha/__init__.py": ""})
    lock = make_lock("toy-cpu", "alpha==1.0", imports="alpha")
    shutil.copytree(bare_environment, environment_folder(lock), symlinks=True)
    assert install_environment(lock)
    assert read_mark(environment_folder(lock))["versions"]["alpha"] == "1.0"


def test_torch_for_cpus_has_its_own_advice(cache, wheels, make_lock, bare_environment):
    lock = make_lock("toy-cpu", "torch==1.0+cpu")
    shutil.copytree(bare_environment, environment_folder(lock), symlinks=True)
    with pytest.raises(EngineMissing) as caught:
        install_environment(lock)
    assert "PIP_EXTRA_INDEX_URL" in caught.value.help


def test_a_build_of_torch_for_the_wrong_device(cache, wheels, make_lock, bare_environment):
    source = "__version__ = '1.0'\nclass version: cuda = '13.0'\nclass cuda:\n    init = staticmethod(lambda: 1 / 0)\n"
    write_wheel(wheels, "torch", "1.0", {"torch/__init__.py": source})
    lock = make_lock("toy-cpu", "torch==1.0", imports="torch")
    shutil.copytree(bare_environment, environment_folder(lock), symlinks=True)
    with pytest.raises(EngineMissing, match="torch 1.0 is a CUDA 13.0 build"):
        install_environment(lock)


def test_goes_on_after_it_was_killed(lock):
    folder = environment_folder(lock)
    process = run_elsewhere(lock)
    # Of three that pip has begun to write, two are finished.
    wait_for(lambda: len(list(folder.glob("lib/*/*/*-1.0.dist-info/RECORD"))) >= 3, "three packages are there")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_mark(folder) is None
    kept = 4 - len(find_missing(lock, folder))
    assert 2 <= kept < 4
    steps = []
    assert install_environment(lock, progress=lambda done, total, what: steps.append((done, what)))
    assert next(done for done, what in steps if "waiting" not in what) == kept
    assert read_mark(folder) is not None


def test_a_package_that_was_left_half_done_is_installed_again(lock):
    assert install_environment(lock)
    folder = environment_folder(lock)
    (folder / MARK).unlink()
    [site] = site_folders(folder / "bin" / "python")
    record = site / "beta-1.0.dist-info" / "RECORD"
    lines = record.read_text().splitlines()
    record.write_text("\n".join(line for line in lines if "INSTALLER" not in line))
    (site / "beta" / "__init__.py").unlink()
    assert find_missing(lock, folder) == ["beta"]
    assert install_environment(lock)
    assert (site / "beta" / "__init__.py").exists()


def test_two_at_once(lock):
    processes = [run_elsewhere(lock, batch=2) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    said = sorted(out.split(" in ")[0].strip() for out, _ in outputs)
    assert said == ["toy-cpu is already installed", "toy-cpu is installed"]
    assert any("waiting for another installation" in err for _, err in outputs)
    log = (environment_folder(lock) / "install.log").read_text()
    assert log.count("Successfully installed") == 2, "every batch was installed once"


@pytest.mark.parametrize("number, name", [(9, "SIGKILL"), (40, "signal 40")])
def test_a_pip_that_is_killed_is_said_to_be(lock, number, name):
    folder = environment_folder(lock)
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").write_text(
        '#!/bin/sh\necho "pip 1.0"\n[ "$3" = --version ] || kill -' + f"{number} $$\n"
    )
    (folder / "bin" / "python").chmod(0o755)
    with pytest.raises(EngineMissing, match=f"pip was killed by {name}") as caught:
        install_environment(lock)
    assert caught.value.help == "to go on where it stopped: specrunner engines install toy-cpu"


def test_too_little_space(cache, make_lock, monkeypatch):
    lock = make_lock("toy-cpu", "alpha==1.0")
    huge = locks.Lock(lock.name, lock.engine, lock.device, lock.pins, megabytes=10**9)
    with pytest.raises(EngineMissing, match="GB free"):
        install_environment(huge)
    assert not environment_folder(huge).exists()


def test_an_interpreter_that_cannot(cache, make_lock):
    lock = make_lock("toy-cpu", "alpha==1.0")
    with pytest.raises(EngineMissing, match="cannot make a virtual environment"):
        install_environment(lock, python=Path("/bin/false"))
    assert read_mark(environment_folder(lock)) is None


def test_mark_is_written_last(lock, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("power cut")

    monkeypatch.setattr(installer, "_verify", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        install_environment(lock)
    assert not find_missing(lock, environment_folder(lock))
    assert not (environment_folder(lock) / MARK).exists()
