"""Settings of a run, from the command line, the environment and pyproject.toml.

What is stated first wins: command line > `SPECRUNNER_*` > case > spec defaults > profile > `[tool.specrunner]` >
built-in. Cases and spec defaults are the spec loader's; `Settings.overrides_cases` tells whether a setting stands
above them.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from specrunner.errors import ConfigurationError
from specrunner.words import did_you_mean

OUTPUT_FORMATS = ("full", "concise", "github")
COLORS = ("auto", "always", "never")
EXECUTORS = ("local", "ray")
NO_CASES = ("fail", "warn", "pass")

COMMAND_LINE = "the command line"
BUILT_IN = "the built-in default"

NAME_MAPS = "SPECRUNNER_NAME_MAPS"
"""Variable that names the folder of the project's own name maps; sessions are told by it, too."""

_NOT_SETTINGS = frozenset({"SPECRUNNER_CACHE", "SPECRUNNER_CONTROL", "SPECRUNNER_SESSION", NAME_MAPS})


@dataclass(frozen=True, slots=True)
class EngineTable:
    """`[tool.specrunner.engines.NAME]`: an interpreter of the user's own for an engine.

    Attributes:
        python: the interpreter; a relative path counts from the folder of pyproject.toml.
        env: variables to set for the engine's processes.
    """

    python: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run behaves.

    Attributes:
        jobs: engine processes at once; 2, or 1 on a machine with one core, unless stated.
        timeout: seconds one request may take.
        repeat: how many times the candidate of a case is asked.
        strict: a skipped case is an error.
        retries: how often a request that ends in an error is asked again.
        max_fail: stop after this many cases that failed, had no evidence, or xpassed; None is never.
        output_format: `full`, `concise` or `github`.
        color: `auto`, `always` or `never`.
        junit_xml: where the JUnit report goes, or None.
        json: where the JSON report goes ("-" is stdout), or None.
        html: where the HTML report goes, or None.
        no_cases: what an empty selection does: `fail`, `warn` or `pass`.
        executor: what runs the sessions: `local` or `ray`.
        ray_address: of the Ray cluster; None is one that runs on this machine, else one made for the run.
        no_cache: ask every engine anew, and keep nothing.
        no_fork: start the interpreter of each session anew, and share no import of an engine.
        cache_limit: gigabytes (10**9 bytes) of captures and verdicts that may stay when a run is over.
        engines: interpreters of the user's own, by engine.
        origins: by setting, where its value was stated.
    """

    jobs: int = field(default_factory=lambda: min(2, os.cpu_count() or 1))
    timeout: float = 600.0
    repeat: int = 1
    strict: bool = False
    retries: int = 0
    max_fail: int | None = None
    output_format: str = "full"
    color: str = "auto"
    junit_xml: str | None = None
    json: str | None = None
    html: str | None = None
    no_cases: str = "fail"
    executor: str = "local"
    ray_address: str | None = None
    no_cache: bool = False
    no_fork: bool = False
    cache_limit: float = 10.0
    engines: Mapping[str, EngineTable] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def overrides_cases(self, name: str) -> bool:
        """Tell whether a setting was stated on the command line or in the environment, and so stands above cases."""
        origin = self.origins.get(name, BUILT_IN)
        return origin == COMMAND_LINE or origin == _variable(name)


def _whole(least: int, most: int | None = None) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
            raise ValueError(
                f"a whole number from {least} to {most}" if most else f"a whole number of at least {least}"
            )
        return value

    return convert


def _number(expected: str, holds: Callable[[float], bool]) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(expected)
        try:
            number = float(value)
        except ValueError:
            raise ValueError(expected) from None
        if not holds(number):
            raise ValueError(expected)
        return number

    return convert


def _flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(value)

    return convert


def _file(value: Any) -> str:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("a file name")
    return str(value)


def _address(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the address of a Ray cluster, such as 10.0.0.1:6379")
    return value.strip()


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "jobs": _whole(1),
    "timeout": _number("a number of seconds above 0", lambda number: 0 < number < float("inf")),
    "repeat": _whole(1, 100),
    "strict": _flag,
    "retries": _whole(0),
    "max_fail": _whole(1),
    "output_format": _one_of(*OUTPUT_FORMATS),
    "color": _one_of(*COLORS),
    "junit_xml": _file,
    "json": _file,
    "html": _file,
    "no_cases": _one_of(*NO_CASES),
    "executor": _one_of(*EXECUTORS),
    "ray_address": _address,
    "no_cache": _flag,
    "no_fork": _flag,
    "cache_limit": _number("a number of gigabytes, 0 or more", lambda number: number >= 0),
}


def load_settings(cli: Mapping[str, Any], environ: Mapping[str, str], cwd: Path) -> Settings:
    """Settle every setting.

    Args:
        cli: what the command line states, by setting; None is "not stated". Other keys are left alone, but `profile`
            names the profile.
        environ: the environment; `SPECRUNNER_JOBS` states `jobs`, and `SPECRUNNER_PROFILE` the profile.
        cwd: where the search for pyproject.toml starts.

    Raises:
        ConfigurationError: an unknown key or profile, or a value of the wrong kind.
    """
    _check_variables(environ)
    file, table = find_project_table(cwd)
    stated: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def state(values: Mapping[str, Any], origin: Callable[[str], str]) -> None:
        for name, value in values.items():
            try:
                stated[name] = _CONVERTERS[name](value)
            except ValueError as error:
                raise ConfigurationError(f"{name} from {origin(name)} is {value!r}; it must be {error}") from None
            origins[name] = origin(name)

    section = "[tool.specrunner]"
    _check_keys(table, (*_CONVERTERS, "profiles", "engines", "name_maps"), section, file)
    state({name: table[name] for name in _CONVERTERS if name in table}, lambda _: f"{section} in {file}")
    profile = cli.get("profile") or environ.get("SPECRUNNER_PROFILE")
    if profile:
        values, title = _profile_table(table, profile, file)
        state(values, lambda _: f"{title} in {file}")
    state({name: environ[_variable(name)] for name in _CONVERTERS if environ.get(_variable(name))}, _variable)
    state({name: cli[name] for name in _CONVERTERS if cli.get(name) is not None}, lambda _: COMMAND_LINE)
    return Settings(**stated, engines=read_engine_tables(table, file), origins=origins)


def find_project_table(cwd: Path) -> tuple[Path | None, Mapping[str, Any]]:
    """Return the nearest pyproject.toml at or above `cwd` that has `[tool.specrunner]`, and the table; or (None, {}).

    Raises:
        ConfigurationError: a pyproject.toml on the way is not TOML, or the table is not a table.
    """
    start = cwd.absolute()
    for folder in (start, *start.parents):
        file = folder / "pyproject.toml"
        try:
            text = file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file} cannot be read: {error}") from error
        try:
            tool = tomllib.loads(text).get("tool", {})
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{file} is not valid TOML: {error}") from error
        if isinstance(tool, dict) and "specrunner" in tool:
            return file, _as_table(tool["specrunner"], "[tool.specrunner]", file)
    return None, {}


def find_name_maps(environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the folder of the project's own name maps, or None when it has none.

    Args:
        environ: the environment; what `SPECRUNNER_NAME_MAPS` states counts from `cwd`.
        cwd: where the search for pyproject.toml starts; what `name_maps` states there counts from that file's folder.

    Raises:
        ConfigurationError: what is stated is no folder.
    """
    stated: Any = environ.get(NAME_MAPS)
    origin, base = NAME_MAPS, cwd
    if not stated:
        file, table = find_project_table(cwd)
        if file is None or "name_maps" not in table:
            return None
        stated, origin, base = table["name_maps"], f"name_maps in [tool.specrunner] of {file}", file.parent
    folder = (base / Path(stated).expanduser()).absolute() if isinstance(stated, str) and stated else None
    if folder is None or not folder.is_dir():
        raise ConfigurationError(f"{origin} is {stated!r}; it must be a folder of name maps")
    return folder


def read_engine_tables(table: Mapping[str, Any], file: Path | None) -> dict[str, EngineTable]:
    """Read `[tool.specrunner.engines.*]`.

    Raises:
        ConfigurationError: an unknown key, or a value of the wrong kind.
    """
    tables = {}
    for name, content in _as_table(table.get("engines", {}), "[tool.specrunner.engines]", file).items():
        title = f"[tool.specrunner.engines.{name}]"
        content = _as_table(content, title, file)
        _check_keys(content, [entry.name for entry in fields(EngineTable)], title, file)
        python, env = content.get("python"), _as_table(content.get("env", {}), f"{title} env", file)
        if python is not None and not (isinstance(python, str) and python):
            raise ConfigurationError(f"python in {title} of {file} must be the path of an interpreter")
        for key, value in env.items():
            if not isinstance(value, str):
                raise ConfigurationError(f"env.{key} in {title} of {file} is {value!r}; it must be a string")
        assert file is not None
        tables[name] = EngineTable(file.parent / Path(python).expanduser() if python else None, dict(env))
    return tables


def is_ci(environ: Mapping[str, str]) -> bool:
    """Tell whether a CI system says, by the variable `CI`, that it runs us."""
    return environ.get("CI", "").strip().lower() not in ("", "0", "false", "no")


def _variable(name: str) -> str:
    return f"SPECRUNNER_{name.upper()}"


def _check_variables(environ: Mapping[str, str]) -> None:
    """Refuse a `SPECRUNNER_*` variable that looks like a misspelt setting; others may be anyone's."""
    known = {_variable(name) for name in (*_CONVERTERS, "profile")} | _NOT_SETTINGS
    for name in sorted(environ):
        if name.startswith("SPECRUNNER_") and name not in known:
            meant = did_you_mean(name, known, cutoff=0.85)
            if meant:
                raise ConfigurationError(f"the environment variable {name} is not a setting", help=meant)


def _profile_table(table: Mapping[str, Any], profile: str, file: Path | None) -> tuple[Mapping[str, Any], str]:
    profiles = _as_table(table.get("profiles", {}), "[tool.specrunner.profiles]", file)
    title = f"[tool.specrunner.profiles.{profile}]"
    if profile not in profiles:
        known = f"the profiles are {', '.join(profiles)}" if profiles else f"add {title} to pyproject.toml"
        raise ConfigurationError(f"no profile {profile!r}", help=did_you_mean(profile, profiles) or known)
    values = _as_table(profiles[profile], title, file)
    _check_keys(values, _CONVERTERS, title, file)
    return values, title


def _as_table(value: Any, title: str, file: Path | None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{title} in {file} must be a table, not {value!r}")
    return value


def _check_keys(table: Mapping[str, Any], known: Iterable[str], title: str, file: Path | None) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            raise ConfigurationError(
                f"unknown key {key!r} in {title} of {file}",
                help=did_you_mean(key, known) or f"the keys are {', '.join(known)}",
            )
