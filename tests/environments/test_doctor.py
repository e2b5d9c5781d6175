import json
import re
import shutil
import sys
import venv
from pathlib import Path

import pytest

from specrunner.cli import main
from specrunner.engines.base import Capabilities
from specrunner.environments import doctor, inventory
from specrunner.environments.doctor import compare_packages, examine_build, examine_driver, examine_lock
from specrunner.environments.interpreters import MARK, Environment, environment_folder, site_folders
from specrunner.environments.inventory import find_examinations, take_inventory
from specrunner.environments.locks import list_locks
from specrunner.errors import UsageError

CPU = {"version": "2.0+cpu", "cuda": None, "available": False, "devices": [], "problem": ""}
CUDA = {"version": "2.0", "cuda": "13.0", "available": False, "devices": [], "problem": "RuntimeError: driver too old"}


@pytest.fixture
def lock(cache, make_lock):
    """A lock of two packages, as if they had been installed; `alpha` imports, and needs `beta`."""
    made = make_lock("toy-cpu", "alpha==1.0 beta==1.0", imports="alpha")
    folder = environment_folder(made)
    venv.create(folder, symlinks=True)
    [site] = site_folders(folder / "bin" / "python")
    for name in ("alpha", "beta"):
        (site / name).mkdir(parents=True)
        (site / f"{name}-1.0.dist-info").mkdir()
    (site / "alpha" / "__init__.py").write_text("import beta")
    (site / "beta" / "__init__.py").touch()
    (folder / MARK).write_text(json.dumps({"name": "toy-cpu", "versions": {"alpha": "1.0"}}))
    return made


def messages(lock) -> list[str]:
    return [problem.message for problem in examine_lock(lock).problems]


def test_a_sound_one(lock):
    found = examine_lock(lock)
    assert found.problems == ()
    assert found.facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert [module["name"] for module in found.facts["modules"]] == ["alpha"]


def test_not_installed(cache, make_lock):
    [problem] = examine_lock(make_lock("toy-cpu", "alpha==1.0")).problems
    assert (problem.message, problem.remedy) == ("not installed", "run: specrunner engines install toy-cpu")


def test_not_finished(lock):
    (environment_folder(lock) / MARK).unlink()
    assert messages(lock) == ["the installation was not finished"]


def test_the_base_interpreter_is_gone(lock):
    python = environment_folder(lock) / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    [problem] = examine_lock(lock).problems
    assert problem.message == "its base interpreter /nowhere/python3 is gone"
    assert problem.remedy.endswith("--reinstall")


def test_a_missing_package_is_named_twice_over(lock):
    [site] = site_folders(environment_folder(lock) / "bin" / "python")
    shutil.rmtree(site / "beta")
    shutil.rmtree(site / "beta-1.0.dist-info")
    assert messages(lock) == [
        "missing packages: beta",
        "cannot import alpha: ModuleNotFoundError: No module named 'beta'",
    ]
    assert all(problem.remedy.endswith("--reinstall") for problem in examine_lock(lock).problems)


def test_a_changed_package(lock):
    [problem] = compare_packages(lock, {"alpha": "1.1", "beta": "1.0"})
    assert problem.message == "changed since it was installed: alpha is 1.1, not 1.0"


def test_a_module_that_ends_the_interpreter(lock):
    [site] = site_folders(environment_folder(lock) / "bin" / "python")
    (site / "beta" / "__init__.py").write_text("import os; print('no such CPU', flush=True); os._exit(3)")
    assert messages(lock) == ["the interpreter ended with status 3 while importing: no such CPU"]


def test_a_module_that_hangs(lock, monkeypatch):
    [site] = site_folders(environment_folder(lock) / "bin" / "python")
    (site / "beta" / "__init__.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "IMPORT_TIMEOUT", 1.0)
    assert messages(lock) == ["importing alpha took longer than 1 s"]


def test_what_the_caller_has_on_its_path_does_not_help(lock, monkeypatch, tmp_path):
    [site] = site_folders(environment_folder(lock) / "bin" / "python")
    shutil.rmtree(site / "beta")
    (tmp_path / "beta.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert messages(lock) == ["cannot import alpha: ModuleNotFoundError: No module named 'beta'"]


@pytest.mark.parametrize(
    ("torch", "device", "message"),
    [
        (CPU, "cpu", None),
        (CUDA, "cuda", None),
        (CPU, None, None),
        (None, "cpu", None),
        (CUDA, "cpu", "torch 2.0 is a CUDA 13.0 build, the environment is for CPUs"),
        (CPU, "cuda", "torch 2.0+cpu is a CPU build, the environment is for CUDA"),
    ],
)
def test_builds_of_torch(torch, device, message):
    assert [problem.message for problem in examine_build(torch, device)] == ([message] if message else [])


@pytest.mark.parametrize(
    ("driver", "torch", "message"),
    [
        (False, CUDA, "no NVIDIA driver on this machine"),
        (True, CUDA, "the driver and torch 2.0 do not go together: RuntimeError: driver too old"),
        (True, {**CUDA, "available": True}, None),
    ],
)
def test_drivers(monkeypatch, driver, torch, message):
    monkeypatch.setattr(doctor, "has_cuda", lambda: driver)
    found = examine_driver(torch)
    assert [problem.message for problem in found] == ([message] if message else [])
    assert all(problem.remedy for problem in found)


@pytest.mark.parametrize("error", ["libcuda.so.1: cannot open", "libcudart.so.13: x", "version `GLIBC_2.38' not found"])
def test_well_known_import_errors_have_a_remedy(error):
    assert doctor.explain_import_error(f"ImportError: {error}")


class ToyEngine:
    @classmethod
    def capabilities(cls):
        return Capabilities(dtypes={"cpu": ("float32",)}, packages=("no_such_package",), environments=("toy-cpu",))


@pytest.fixture
def engines(monkeypatch, tmp_path):
    """One engine, `toy`, and no pyproject.toml."""
    monkeypatch.setattr(inventory, "engine_names", lambda: ("toy",))
    monkeypatch.setattr(inventory, "find_engine", lambda name: ToyEngine)
    monkeypatch.chdir(tmp_path)


class TestInventory:
    def test_ready(self, lock, engines):
        [row] = take_inventory()
        assert (row.engine, row.environment, row.device, row.state) == ("toy", "toy-cpu", "cpu", "ready")
        assert row.python == environment_folder(lock) / "bin" / "python"

    def test_unfinished_and_missing_have_a_remedy(self, lock, engines):
        (environment_folder(lock) / MARK).unlink()
        [row] = take_inventory()
        assert (row.state, row.remedy) == ("unfinished", "specrunner engines install toy-cpu")
        shutil.rmtree(environment_folder(lock))
        assert [row.state for row in take_inventory()] == ["not installed"]

    def test_outdated(self, lock, make_lock, engines):
        make_lock("toy-cpu", "alpha==1.1")
        assert [(row.state, row.environment) for row in take_inventory()] == [
            ("not installed", "toy-cpu"),
            ("outdated", "toy-cpu"),
        ]

    def test_configured(self, cache, make_lock, engines, tmp_path):
        make_lock("toy-cpu", "alpha==1.0")
        (tmp_path / "pyproject.toml").write_text(f"[tool.specrunner.engines.toy]\npython = {sys.executable!r}\n")
        first, second = take_inventory()
        assert (first.environment, first.state, first.python) == ("configured", "ready", Path(sys.executable))
        assert second.state == "not installed"

    def test_configured_wrongly(self, cache, make_lock, engines, tmp_path):
        make_lock("toy-cpu", "alpha==1.0")
        (tmp_path / "pyproject.toml").write_text('[tool.specrunner.engines.toy]\npython = "gone"\n')
        assert take_inventory()[0].state == "broken"
        [(label, examine), *_] = list(find_examinations([]))
        assert label == "toy (configured)"
        assert "not there" in examine().problems[0].message

    def test_doctor_of_an_absent_engine_says_how_to_get_it(self, cache, make_lock, engines):
        make_lock("toy-cpu", "alpha==1.0")
        assert list(find_examinations([])) == []
        [(_, examine)] = list(find_examinations(["toy"]))
        assert examine().problems[0].remedy == "run: specrunner engines install toy-cpu"

    def test_doctor_of_nothing_known(self, cache, make_lock, engines):
        make_lock("toy-cpu", "alpha==1.0")
        with pytest.raises(UsageError, match="'toi'") as caught:
            list(find_examinations(["toi"]))
        assert caught.value.help == "did you mean `toy`?"

    def test_a_name_that_is_like_none_is_answered_with_all_of_them(self, make_lock, engines):
        make_lock("toy-cpu", "alpha==1.0")
        make_lock("toy", "alpha==1.0")
        with pytest.raises(UsageError) as caught:
            list(find_examinations(["nope"]))
        assert caught.value.help == "known: toy, toy-cpu"


class TestCommands:
    def test_doctor(self, lock, engines, capsys):
        assert main(["engines", "doctor"]) == 0
        assert "toy-cpu: works" in capsys.readouterr().out
        [site] = site_folders(environment_folder(lock) / "bin" / "python")
        shutil.rmtree(site / "beta")
        assert main(["engines", "doctor", "toy-cpu"]) == 1
        out = capsys.readouterr().out
        assert "toy-cpu: does not work" in out
        assert "    help: run: specrunner engines install toy-cpu --reinstall" in out

    def test_doctor_json(self, lock, engines, capsys):
        assert main(["engines", "doctor", "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)
        assert (found["name"], found["problems"]) == ("toy-cpu", [])

    def test_list(self, lock, engines, capsys):
        assert main(["engines", "list"]) == 0
        header, line = capsys.readouterr().out.splitlines()
        assert header.split() == ["ENGINE", "ENVIRONMENT", "DEVICE", "STATE", "WHAT"]
        assert line.split()[:4] == ["toy", "toy-cpu", "cpu", "ready"]
        assert main(["engines", "list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["state"] == "ready"

    def test_list_calls_optional_what_an_engine_runs_without(self, lock, make_lock, engines, capsys, monkeypatch):
        make_lock("toy-cuda", "alpha==1.0")
        stated = Capabilities(dtypes={}, packages=("no_such_package",), environments=("toy-cpu", "toy-cuda"))
        monkeypatch.setattr(ToyEngine, "capabilities", lambda: stated)
        assert main(["engines", "list"]) == 0
        ready, other = sorted(capsys.readouterr().out.splitlines()[1:])
        assert "/bin/python (" in ready
        assert "optional: specrunner engines install toy-cuda" in other

    def test_the_help_of_install_names_every_flavour(self, capsys):
        names = [lock.name for lock in list_locks().values()]
        assert main(["engines", "install", "--help"]) == 0
        words = re.findall(r"[\w-]+", capsys.readouterr().out.split("Flavours:")[1].split(".")[0])
        assert sorted({*words} - {"and"}) == sorted(names)

    def test_install_of_what_is_there(self, lock, engines, capsys):
        assert main(["engines", "install", "toy"]) == 0
        assert capsys.readouterr().out.startswith("toy-cpu is already installed in ")

    def test_install_of_nothing_known(self, lock, engines, capsys):
        assert main(["engines", "install", "toy-cpv"]) == 4
        assert "did you mean `toy-cpu`?" in capsys.readouterr().err


def test_an_interpreter_of_the_users_own(tmp_path):
    found = doctor.examine_environment(Environment("toy", Path(sys.executable)), ("json", "no_such_package"))
    assert [problem.message for problem in found.problems] == [
        "cannot import no_such_package: ModuleNotFoundError: No module named 'no_such_package'"
    ]
    assert str(sys.executable) in found.problems[0].remedy
