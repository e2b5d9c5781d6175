"""The evaluating process: runs lm-eval over a session that the caller holds, and writes what was answered.

It is started as `python -m specrunner.benchmarks.evaluate` with specrunner's own interpreter, since lm-eval lives there
and the engine may live elsewhere. Messages to it, JSON lines over the control channel:

    {"type": "evaluate", "evaluation": {...}, "model": {...}, "model_path": str, "record": str, "facts": {...}}
    {"type": "answers", "answers": [...], "kept": int}

and from it:

    {"type": "ask", "questions": [...], "done": int, "total": int}
    {"type": "done", "facts": {...}}
    {"type": "failed", "kind": str, "message": str, "help": str | null, "fatal": false}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specrunner.benchmark_record import BenchmarkRecord, Sample, TaskRecord, write_record
from specrunner.benchmarks.data import Rows, choose_questions, digest_questions, load_questions
from specrunner.catalogue.tasks import TASKS, Task, needs_shots
from specrunner.errors import CapabilityMissing, CaptureIncomplete, ModelUnsupported
from specrunner.sessions.answers import digest_answers
from specrunner.sessions.guardian import dismiss_guardian
from specrunner.sessions.protocol import Channel, ChannelClosed
from specrunner.sessions.worker import describe_error, open_guarded_channel

BATCH = {"context": 32, "prompt": 1}
"""Questions a message: few enough that an interrupt, or a progress display, need not wait long."""


class Asker:
    """Puts questions to the session through the caller.

    Args:
        channel: the channel to the caller.

    Attributes:
        kept: answers so far that an earlier run had got.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.kept = 0

    def ask(self, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask batch after batch; return all answers in order.

        Raises:
            CaptureIncomplete: fewer answers than questions.
        """
        answers: list[dict[str, Any]] = []
        size = BATCH["prompt" if questions and "prompt" in questions[0] else "context"]
        for start in range(0, len(questions), size):
            batch = questions[start : start + size]
            self._channel.send({"type": "ask", "questions": batch, "done": start, "total": len(questions)})
            reply = self._channel.receive()
            assert reply is not None, "receive without a deadline returned nothing"
            if len(reply["answers"]) != len(batch):
                raise CaptureIncomplete(f"{len(reply['answers'])} answers to {len(batch)} questions")
            answers += reply["answers"]
            self.kept += reply["kept"]
        return answers


def evaluate(channel: Channel, message: Mapping[str, Any]) -> dict[str, Any]:
    """Run one evaluation and write its record; return facts for the report."""
    from transformers import AutoConfig, AutoTokenizer

    from specrunner.benchmarks.model import SessionModel

    wanted, model = message["evaluation"], message["model"]
    source = {"revision": model["revision"], "trust_remote_code": model["trust_remote_code"]}
    tokenizer = AutoTokenizer.from_pretrained(message["model_path"], **source)
    config = AutoConfig.from_pretrained(message["model_path"], **source)
    records = []
    for name in wanted["tasks"]:
        asker = Asker(channel)
        session = SessionModel(
            asker.ask,
            tokenizer,
            config,
            wanted["add_bos_token"],
            wanted["max_length"],
            wanted["max_gen_toks"],
            find_masks(wanted, config),
        )
        records.append(replace(evaluate_task(TASKS[name], wanted, session), kept_answers=asker.kept))
    versions = {package: version(package) for package in ("lm-eval", "datasets", "transformers", "tokenizers")}
    provenance = {"evaluation": wanted, "model": model, "versions": versions, "session": message["facts"]}
    write_record(BenchmarkRecord(tuple(records), provenance), Path(message["record"]))
    return {
        "lm_eval": versions["lm-eval"],
        "questions": sum(len(record.samples) for record in records),
        "kept_answers": sum(record.kept_answers for record in records),
    }


def evaluate_task(task: Task, wanted: Mapping[str, Any], session: Any) -> TaskRecord:
    """Ask one task's questions through lm-eval's own evaluator, its caches off."""
    import lm_eval
    from lm_eval.api.metrics import aggregate_subtask_metrics
    from lm_eval.tasks import TaskManager

    subjects = load_questions(task, wanted["file"], wanted["shots_file"], wanted.get("hub", False))
    if needs_shots(task, wanted["num_fewshot"]) and not all(task.shots_split in s for s in subjects.values()):
        raise CapabilityMissing(f"the shots of {task.name} come from the split {task.shots_split}, which is not here")
    sizes = {subject: len(splits[task.split]) for subject, splits in subjects.items()}
    chosen = choose_questions(sizes, wanted["samples"], wanted["seed"], task.name)
    configs, samples, plain = [], {}, {}
    for subject, indices in chosen.items():
        configuration, plain[subject] = define_task(task, subject, subjects[subject])
        configs.append(configuration)
        samples[str(configuration["task"])] = indices
    results = lm_eval.simple_evaluate(
        session,
        tasks=configs,
        num_fewshot=wanted["num_fewshot"],
        samples=samples,
        log_samples=True,
        bootstrap_iters=0,
        use_cache=None,
        cache_requests=False,
        apply_chat_template=wanted["chat_template"],
        task_manager=TaskManager(include_defaults=False),
    )
    metric, _, kind = wanted["metric"].partition(",") if wanted["metric"] else task.metrics[0].partition(",")
    key = f"{metric},{kind or 'none'}"
    names = list(samples)
    scores = [float(results["results"][name][key]) for name in names]
    weights = [len(samples[name]) for name in names]
    score = scores[0] if len(names) == 1 else aggregate_subtask_metrics(scores, weights, True)
    rows = []
    for subject, name in zip(chosen, names, strict=True):
        asked = [row for row in results["samples"][name] if row["filter"] == (kind or "none")]
        if sorted(row["doc_id"] for row in asked) != chosen[subject]:
            raise CaptureIncomplete(f"{name}: {len(asked)} of {len(chosen[subject])} questions were answered")
        rows += [describe_sample(task, subject, row, metric, session) for row in asked]
    template = session.chat_template(True) if wanted["chat_template"] else ""
    return TaskRecord(
        task=task.name,
        metric=key if kind else metric,
        score=float(score),
        population=sum(sizes.values()),
        data=digest_questions(subjects),
        definition=digest([version("lm-eval"), plain, wanted["num_fewshot"], *sorted(session.masks.items())]),
        template=digest(template) if template else "",
        samples=tuple(rows),
    )


def find_masks(wanted: Mapping[str, Any], config: Any) -> dict[str, int]:
    """Return what a log-likelihood question to a diffusion model has beside its ids; nothing for a causal model.

    Raises:
        ModelUnsupported: the checkpoint's configuration names no mask token.
    """
    if wanted["mask_samples"] is None:
        return {}
    mask = getattr(config, "mask_token_id", None) if wanted["mask_token_id"] is None else wanted["mask_token_id"]
    if mask is None:
        raise ModelUnsupported(
            "the model's config names no mask token, which an estimate of log-likelihoods needs",
            help="state it: `likelihood: {mask_token_id: ...}`",
        )
    return {"mask_samples": wanted["mask_samples"], "block_length": wanted["mask_block"], "mask_id": int(mask)}


def define_task(task: Task, subject: str, splits: Mapping[str, Rows]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return lm-eval's own definition of a task with our questions put in, and the definition as plain values."""
    import lm_eval
    from datasets import Dataset, DatasetDict
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / task.definition.replace("*", subject)
    definition = {name: value for name, value in load_yaml(path).items() if name not in ("tag", "group")}
    plain = load_yaml(path, resolve_func=False)
    rows = dict(splits)
    for split in (definition.get("training_split"), definition.get("fewshot_split")):
        if split is not None and split not in rows:
            # lm-eval looks at the split even when no shot is taken from it; `needs_shots` refuses the other case.
            rows[split] = rows[task.split][:1]
    data = DatasetDict({split: Dataset.from_list(split_rows) for split, split_rows in rows.items()})
    changes = {"custom_dataset": lambda **_: data, "dataset_path": None, "dataset_name": None, "dataset_kwargs": None}
    folder = str(Path(lm_eval.__file__).parent)
    return {**definition, **changes}, json.loads(json.dumps(plain, default=str).replace(folder, ""))


def describe_sample(task: Task, subject: str, row: Mapping[str, Any], metric: str, session: Any) -> Sample:
    """Turn lm-eval's log of one question into ours.

    Raises:
        CaptureIncomplete: its score is neither 0 nor 1.
    """
    score = float(row[metric])
    if score not in (0.0, 1.0):
        raise CaptureIncomplete(f"{task.name}: question {row['doc_id']} has the score {score}, neither 0 nor 1")
    name = f"{subject}/{row['doc_id']}" if subject else str(row["doc_id"])
    texts = [list(arguments) for arguments in row["arguments"]]
    if not task.likelihood:
        tokens = ((session.prompts[texts[0][0]], 0),)
        answer = str(row["filtered_resps"][0])
        return Sample(name, digest(texts), score, answer, str(row["target"]), tokens)
    logprobs = tuple(float(response[0]) for response in row["filtered_resps"])
    tokens = tuple(session.tokens[context, continuation] for context, continuation in texts)
    lengths = [len(continuation.removeprefix(" ")) if metric == "acc_norm" else 1 for _, continuation in texts]
    ranked = sorted(logprob / length for logprob, length in zip(logprobs, lengths, strict=True))
    best = max(range(len(logprobs)), key=lambda index: logprobs[index] / lengths[index])
    margin = ranked[-1] - ranked[-2] if len(ranked) > 1 else None
    return Sample(name, digest(texts), score, str(best), str(row["target"]), tokens, logprobs, margin)


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value."""
    return digest_answers(value)[:16]


def serve(channel: Channel) -> None:
    """Serve one evaluation."""
    message = channel.receive()
    assert message is not None, "receive without a deadline returned nothing"
    try:
        answer: dict[str, Any] = {"type": "done", "facts": evaluate(channel, message)}
    except ChannelClosed:
        raise
    except Exception as error:
        answer = describe_error(error)
    channel.send(answer)


def main() -> None:
    """Be the process."""
    control, guardian = open_guarded_channel()
    try:
        serve(control)
    except ChannelClosed:
        sys.exit(1)
    finally:
        dismiss_guardian(guardian)


if __name__ == "__main__":
    main()
