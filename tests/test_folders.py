"""Where files of other programs lie on the user's machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from specrunner.folders import hub_folder, hub_home

pytest.importorskip("huggingface_hub")

SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"XDG_CACHE_HOME": "/xdg"},
    {"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/xdg"},
    {"HF_HOME": "$SCRATCH/hf"},
    {"HUGGINGFACE_HUB_CACHE": "/older", "HF_HOME": "/hf"},
    {"HUGGINGFACE_HUB_CACHE": "~/older"},
    {"HF_HUB_CACHE": "~/$USER_FOLDER/hub", "HUGGINGFACE_HUB_CACHE": "/older"},
    {"HF_HUB_CACHE": "/here", "HF_HOME": "/hf", "XDG_CACHE_HOME": "/xdg"},
)

ASK = """
import importlib, json, os, sys
from huggingface_hub import constants

for settings in json.load(sys.stdin):
    os.environ.update(settings)
    importlib.reload(constants)
    print(json.dumps([constants.HF_HOME, constants.HF_HUB_CACHE]))
    for name in settings:
        del os.environ[name]
"""


def test_the_hub_s_cache_is_where_its_own_client_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", "SCRATCH": "/scratch", "USER_FOLDER": "mine"}.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, input=json.dumps(SETTINGS), capture_output=True, text=True, check=True)
    answers = [tuple(map(Path, json.loads(line))) for line in done.stdout.splitlines()]
    found = [(hub_home(os.environ | settings), hub_folder(os.environ | settings)) for settings in SETTINGS]
    assert found == answers and len(set(answers)) == len(SETTINGS)
