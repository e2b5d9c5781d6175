import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from specrunner.config import EngineTable
from specrunner.engines.base import Capabilities
from specrunner.environments.interpreters import (
    MARK,
    environment_folder,
    find_environment,
    installed_versions,
    site_folders,
)
from specrunner.environments.locks import Lock, choose_lock, list_locks, read_lock
from specrunner.errors import ConfigurationError, EngineMissing

PLAIN = Capabilities(dtypes={"cpu": ("float32",)}, packages=("yaml",))
ABSENT = Capabilities(dtypes={"cpu": ("float32",)}, packages=("no_such_package",), install_hint="pip install nosuch")
LOCKED = Capabilities(dtypes={"cpu": ("float32",)}, packages=("no_such_package",), environments=("toy-cuda", "toy-cpu"))


def put_environment(lock: Lock, versions: dict[str, str]) -> Path:
    """Make it look as if `lock` had been installed."""
    folder = environment_folder(lock)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / MARK).write_text(json.dumps({"name": lock.name, "versions": versions}))
    return folder


class TestOwn:
    def test_is_taken_when_it_has_the_packages(self, cache):
        found = find_environment("toy", PLAIN, "cpu", config={})
        assert (found.source, found.name, found.python) == ("own", "toy", Path(sys.executable))
        assert found.digest
        assert found.env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)

    def test_missing_packages_name_the_command(self, cache):
        with pytest.raises(EngineMissing, match="no_such_package") as caught:
            find_environment("toy", ABSENT, "cpu", config={})
        assert caught.value.help == "run: pip install nosuch"

    def test_falls_back_to_an_installed_environment_of_its_name(self, cache, make_lock):
        lock = make_lock("toy", "alpha==1.0")
        put_environment(lock, {})
        assert find_environment("toy", ABSENT, "cpu", config={}).source == "installed"

    def test_oracle_falls_back_to_hf(self, cache, make_lock):
        put_environment(make_lock("hf", "alpha==1.0", engine="hf"), {})
        assert find_environment("oracle", ABSENT, "cpu", config={}).name == "hf"


class TestWhatAWorkerCanImport:
    """A toy engine in one place at a time."""

    TOY = Capabilities(dtypes={"cpu": ("float32",)}, packages=("toy_engine",))

    @pytest.fixture
    def toy(self, tmp_path, cache) -> Path:
        folder = tmp_path / "unpacked"
        (folder / "toy_engine").mkdir(parents=True)
        (folder / "toy_engine" / "__init__.py").touch()
        (folder / "toy_engine-1.0.dist-info").mkdir()
        return folder

    def find(self, **env: str) -> str:
        """Return where the toy is found, and the version that is told of it."""
        try:
            found = find_environment("toy", self.TOY, "cpu", config={"toy": EngineTable(None, env)})
        except EngineMissing as error:
            assert "toy needs toy_engine" in error.message
            return "nowhere"
        return f"{found.source} {found.versions['toy-engine']}"

    @pytest.mark.parametrize("entry", ["", "absolute"])
    def test_not_what_lies_in_the_start_folder(self, toy, monkeypatch, entry):
        monkeypatch.chdir(toy)
        monkeypatch.setattr(sys, "path", [str(toy) if entry else "", *sys.path])
        assert importlib.util.find_spec("toy_engine") is not None, "the caller itself can import it"
        assert self.find() == "nowhere"

    def test_not_what_a_relative_pythonpath_names(self, toy, monkeypatch):
        monkeypatch.chdir(toy.parent)
        monkeypatch.setenv("PYTHONPATH", "unpacked")
        monkeypatch.setattr(sys, "path", [str(toy), *sys.path])
        assert self.find() == "nowhere", "it counts from the worker's folder"

    def test_an_absolute_pythonpath(self, toy, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", str(toy))
        assert self.find() == "own 1.0"
        assert self.find(PYTHONPATH="/nowhere") == "nowhere", "what is set for the engine takes its place"

    def test_a_pythonpath_that_is_set_for_the_engine(self, toy):
        assert self.find() == "nowhere"
        assert self.find(PYTHONPATH=str(toy)) == "own 1.0"

    def test_a_site_directory_and_what_its_pth_files_add(self, toy, monkeypatch):
        monkeypatch.setattr(sys, "path", [*sys.path, str(toy)])
        assert self.find() == "own 1.0"

    def test_an_editable_install_with_a_finder_of_its_own(self, toy, tmp_path, monkeypatch):
        class Finder:
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return PathFinder.find_spec(name, [str(toy)]) if name == "toy_engine" else None

        site = tmp_path / "site"
        site.mkdir()
        (toy / "toy_engine-1.0.dist-info").rename(site / "toy_engine-1.0.dist-info")
        monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
        assert self.find() == "nowhere"
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
        assert self.find() == "own 1.0"

    def test_an_installed_package_is_not_hidden_by_its_sources(self, toy, tmp_path, monkeypatch):
        older = tmp_path / "older"
        shutil.copytree(toy, older)
        (older / "toy_engine-1.0.dist-info").rename(older / "toy_engine-0.9.dist-info")
        monkeypatch.setattr(sys, "path", [str(older), *sys.path, str(toy)])
        assert self.find() == "own 1.0", "the worker has this one"


class TestInstalled:
    def test_is_taken_with_its_versions(self, cache, make_lock):
        lock = make_lock("toy-cpu", "alpha==1.0")
        folder = put_environment(lock, {"torch": "2.0", "alpha": "1.0"})
        found = find_environment("toy", LOCKED, "cpu", config={})
        assert (found.name, found.source, found.digest) == ("toy-cpu", "installed", lock.digest)
        assert found.python == folder / "bin" / "python"
        assert found.versions == {"torch": "2.0"}

    def test_flavour_follows_the_device(self, cache, make_lock):
        put_environment(make_lock("toy-cpu", "alpha==1.0"), {})
        put_environment(make_lock("toy-cuda", "alpha==2.0", device="cuda"), {})
        assert find_environment("toy", LOCKED, "cuda", config={}).name == "toy-cuda"
        assert find_environment("toy", LOCKED, "cpu", config={}).name == "toy-cpu"

    def test_missing_names_the_command(self, cache, make_lock):
        make_lock("toy-cpu", "alpha==1.0")
        with pytest.raises(EngineMissing) as caught:
            find_environment("toy", LOCKED, "cpu", config={})
        assert caught.value.help == "run: specrunner engines install toy-cpu"

    def test_without_a_mark_it_is_not_whole(self, cache, make_lock):
        lock = make_lock("toy-cpu", "alpha==1.0")
        (put_environment(lock, {}) / MARK).unlink()
        with pytest.raises(EngineMissing, match="not whole"):
            find_environment("toy", LOCKED, "cpu", config={})

    def test_a_mark_without_an_interpreter_counts_for_nothing(self, cache, make_lock):
        lock = make_lock("toy-cpu", "alpha==1.0")
        (put_environment(lock, {}) / "bin" / "python").unlink()
        with pytest.raises(EngineMissing):
            find_environment("toy", LOCKED, "cpu", config={})

    def test_of_another_lock_is_not_taken(self, cache, make_lock):
        put_environment(make_lock("toy-cpu", "alpha==1.0"), {})
        make_lock("toy-cpu", "alpha==1.1")
        with pytest.raises(EngineMissing, match="not installed"):
            find_environment("toy", LOCKED, "cpu", config={})

    def test_by_name(self, cache, make_lock):
        put_environment(make_lock("other", "alpha==1.0"), {})
        assert find_environment("toy", PLAIN, "cpu", config={}, name="other").name == "other"
        with pytest.raises(EngineMissing, match="environment elsewhere is not installed"):
            find_environment("toy", PLAIN, "cpu", config={}, name="elsewhere")

    def test_by_name_the_flavour_follows_the_device(self, cache, make_lock):
        for device in ("cpu", "cuda"):
            put_environment(make_lock(f"older-{device}", "alpha==1.0", device=device), {})
            assert find_environment("toy", PLAIN, device, config={}, name="older").name == f"older-{device}"
        with pytest.raises(EngineMissing, match="environment older-cpu is not installed"):
            find_environment("toy", PLAIN, "cuda", config={}, name="older-cpu")

    def test_no_lock_for_the_device(self, cache, make_lock):
        make_lock("toy-cpu", "alpha==1.0")
        with pytest.raises(EngineMissing, match="no environment for toy on cuda") as caught:
            find_environment("toy", LOCKED, "cuda", config={})
        assert "[tool.specrunner.engines.toy]" in caught.value.help


class TestConfigured:
    @pytest.fixture
    def interpreter(self, tmp_path) -> Path:
        site = tmp_path / "theirs" / "lib" / "python3.11" / "site-packages"
        for name in ("torch-2.1.0+cpu.dist-info", "Toy_Engine-3.dist-info"):
            (site / name).mkdir(parents=True)
        (tmp_path / "theirs" / "bin").mkdir()
        (tmp_path / "theirs" / "pyvenv.cfg").touch()
        python = tmp_path / "theirs" / "bin" / "python"
        python.symlink_to(sys.executable)
        return python

    def test_comes_first(self, cache, make_lock, interpreter):
        put_environment(make_lock("toy-cpu", "alpha==1.0"), {})
        table = EngineTable(interpreter, {"TOY": "1"})
        found = find_environment("toy", LOCKED, "cpu", config={"toy": table})
        assert (found.source, found.python, found.env["TOY"]) == ("configured", interpreter, "1")
        assert found.versions == {"torch": "2.1.0+cpu"}

    def test_may_be_the_folder(self, cache, interpreter):
        config = {"toy": EngineTable(interpreter.parent.parent)}
        assert find_environment("toy", LOCKED, "cpu", config=config).python == interpreter

    def test_other_packages_have_another_digest(self, cache, interpreter):
        config = {"toy": EngineTable(interpreter)}
        before = find_environment("toy", LOCKED, "cpu", config=config).digest
        assert find_environment("toy", LOCKED, "cpu", config=config).digest == before
        (site_folders(interpreter)[0] / "more-1.dist-info").mkdir()
        assert find_environment("toy", LOCKED, "cpu", config=config).digest != before

    def test_cpu_build_does_not_run_on_cuda(self, cache, interpreter):
        with pytest.raises(EngineMissing, match="CPU build"):
            find_environment("toy", LOCKED, "cuda", config={"toy": EngineTable(interpreter)})

    def test_that_is_not_there_is_a_wrong_setting(self, cache, tmp_path):
        with pytest.raises(ConfigurationError, match="not there"):
            find_environment("toy", LOCKED, "cpu", config={"toy": EngineTable(tmp_path / "gone")})

    def test_is_read_from_pyproject(self, cache, interpreter, tmp_path, monkeypatch):
        (tmp_path / "pyproject.toml").write_text('[tool.specrunner.engines.toy]\npython = "theirs/bin/python"\n')
        monkeypatch.chdir(tmp_path)
        assert find_environment("toy", LOCKED, "cpu").python == tmp_path / "theirs" / "bin" / "python"

    def test_variables_alone_go_to_whatever_is_found(self, cache, make_lock):
        put_environment(make_lock("toy-cpu", "alpha==1.0"), {})
        found = find_environment("toy", LOCKED, "cpu", config={"toy": EngineTable(None, {"TOY": "1"})})
        assert (found.source, found.env["TOY"]) == ("installed", "1")


def test_versions_come_from_folder_names(tmp_path):
    for name in ("Foo_Bar-1.2.dist-info", "old-0.1.egg-info", "not_one", "zope.interface-5.0+local.dist-info"):
        (tmp_path / name).mkdir()
    assert installed_versions([tmp_path, tmp_path / "gone"]) == {
        "foo-bar": "1.2",
        "old": "0.1",
        "zope-interface": "5.0+local",
    }


class TestLocks:
    def test_digest_is_of_the_pins_alone(self, make_lock):
        first = make_lock("toy-cpu", "alpha==1.0 Beta==2")
        assert make_lock("toy-cpu", "beta==2 alpha==1.0", imports="alpha").digest == first.digest
        assert make_lock("toy-cpu", "beta==2 alpha==1.1").digest != first.digest

    @pytest.mark.parametrize(
        "text", ["alpha==1", "# engine: a\n# device: gpu\nalpha==1", "# engine: a\n# device: cpu\n"]
    )
    def test_header_is_required(self, tmp_path, text):
        file = tmp_path / "x.txt"
        file.write_text(text)
        with pytest.raises(ValueError, match="header"):
            read_lock(file)

    def test_only_pins(self, tmp_path):
        file = tmp_path / "x.txt"
        file.write_text("# engine: a\n# device: cpu\nalpha>=1\n")
        with pytest.raises(ValueError, match="not a pin"):
            read_lock(file)

    @pytest.mark.parametrize(("cuda", "name"), [(True, "toy-cuda"), (False, "toy-cpu")])
    def test_flavour_for_this_machine(self, make_lock, monkeypatch, cuda, name):
        make_lock("toy-cpu", "alpha==1.0")
        make_lock("toy-cuda", "alpha==1.0", device="cuda")
        monkeypatch.setattr("specrunner.environments.locks.has_cuda", lambda: cuda)
        assert choose_lock("toy").name == name
        assert choose_lock("toy-cuda").name == "toy-cuda"

    def test_shipped(self):
        shipped = list_locks()
        assert list(shipped) == [
            "hf-llada2-cpu",
            "hf-llada2-cuda",
            "hf",
            "sglang-cpu",
            "sglang-cuda",
            "vllm-cpu",
            "vllm-cuda",
        ]
        for lock in shipped.values():
            assert {"torch", "safetensors", "pyyaml"} <= set(lock.pins), f"{lock.name}: the worker needs these"
            assert lock.pins["torch"].endswith("+cpu") == (lock.device == "cpu")
            assert lock.imports
            assert all(folder.is_dir() for folder in lock.standins)
            assert lock.megabytes

    def test_hf_is_what_the_tests_run_with(self):
        root = Path(__file__).parents[2]
        lines = (root / "constraints.txt").read_text().splitlines()
        constraints = {
            name.lower().replace("_", "-"): version for name, _, version in (x.partition("==") for x in lines)
        }
        pins = {name: version.removesuffix("+cpu") for name, version in list_locks()["hf"].pins.items()}
        assert {name: constraints.get(name) for name in pins} == pins


def test_finding_imports_nothing_heavy():
    code = (
        "import sys; from specrunner.engines.base import Capabilities\n"
        "from specrunner.environments.interpreters import find_environment\n"
        "find_environment('x', Capabilities(dtypes={}, packages=('yaml',)), 'cpu')\n"
        "print(*sorted({'torch', 'numpy', 'transformers', 'jsonschema'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
