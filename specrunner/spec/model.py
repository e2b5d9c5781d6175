"""The spec's values after loading and matrix expansion: frozen, checked, free of YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DTYPES = ("float64", "float32", "bfloat16", "float16")
"""dtypes an engine can be asked to compute in; `float64` is the oracle's."""

REFERENCE_DTYPES = ("float32", "float64")
"""dtypes a noise floor can be measured from."""

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Location:
    """Where something stands in a spec file.

    Attributes:
        path: the file as the user named it, with forward slashes.
        line: from 1.
        column: from 1.
    """

    path: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Model:
    """Which checkpoint a case runs: exactly one of `id`, `path` and `recipe` is set.

    Attributes:
        id: a hub id such as `inclusionAI/LLaDA2.0-mini`.
        path: a directory in the Transformers layout; the loader makes it absolute, from the spec's directory.
        recipe: the name of a checkpoint that specrunner builds once into the user's cache, or ships.
        revision: the hub revision; None is the default branch, `$NAME` one that the environment variable NAME, not set,
            should have given.
        trust_remote_code: whether code that the checkpoint carries may run.
        allow_pickle: whether weights that are a pickle may be read, which can run any code.
    """

    id: str | None = None
    path: str | None = None
    recipe: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def label(self) -> str:
        """The shortest name a reader recognises."""
        return self.id or self.recipe or (self.path or "?").rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine with all that shapes its numbers.

    Attributes:
        engine: the engine's name, an entry point of the group `specrunner.engines`.
        dtype: one of `DTYPES`.
        device: one of `DEVICES`.
        options: keywords handed to the engine as they are.
        environment: name of the installed environment to run it in, and no other; None is what is found.
    """

    engine: str
    dtype: str
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None

    @property
    def label(self) -> str:
        """`engine/dtype`, as the reports show it."""
        return f"{self.engine}/{self.dtype}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of a case: exactly one of `text`, `messages` and `token_ids` is set.

    Attributes:
        text: plain text, tokenised by each engine on its own.
        messages: chat messages `{role, content}`, rendered by the checkpoint's chat template.
        token_ids: ids given as they are; nothing is tokenised.
        length: keep exactly the first `length` tokens (a prompt with fewer is an error), or None for all.
        add_special_tokens: whether the tokenizer may add BOS and the like to `text`.
    """

    text: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    length: int | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Decode:
    """How tokens are generated, always at temperature 0.

    Attributes:
        max_new_tokens: the most tokens to generate.
        algorithm: `greedy` (causal argmax) or `low_confidence` (block diffusion).
        block_length: tokens a diffusion block holds; None for `greedy`.
        threshold: confidence from which on a masked position is accepted; None for `greedy`.
        ignore_eos: go on after an end-of-sequence token.
        accept: `gt` compares a confidence with the threshold by `>`, `ge` by `>=`.
        fallback: what a step accepts when too few positions reach the threshold: `schedule`, `best` or `near_best`.
        steps: steps a block gets at most under `schedule`; None is one a token.
        exclude_mask_id: whether the mask token is left out before probabilities are taken.
        eos_early_stop: whether decoding stops within a block, as soon as all before an end of sequence is accepted.
    """

    max_new_tokens: int
    algorithm: str = "greedy"
    block_length: int | None = None
    threshold: float | None = None
    ignore_eos: bool = False
    accept: str = "gt"
    fallback: str = "schedule"
    steps: int | None = None
    exclude_mask_id: bool = False
    eos_early_stop: bool = False


@dataclass(frozen=True, slots=True)
class DenoisingState:
    """A state in the midst of a block-diffusion decode: all tokens up to the end of a block, before one of its steps.

    Attributes:
        block: which generated block, from 0.
        step: which of its steps, from 0.
    """

    block: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The questions of a benchmark and how they are put: all that shapes the answers.

    Attributes:
        tasks: names in `catalogue.tasks.TASKS`.
        metric: `metric` or `metric,filter`; None is each task's first.
        samples: how many questions to draw over a task's whole set, or explicit indices into it; None is all.
        seed: of the draw.
        num_fewshot: shots before each question; None is each task's own number.
        file: a JSONL file of the questions, absolute; None takes them from the data package.
        shots_file: a JSONL file of the questions that shots are taken from, absolute, or None.
        hub: whether the questions, and the shots, come from the Hugging Face hub.
        chat_template: whether the checkpoint's chat template is applied.
        add_bos_token: whether special tokens are added to texts; None leaves it to the tokenizer.
        max_length: tokens that a prompt and its answer may have; None takes the model's limit.
        max_gen_toks: the most tokens to generate; None takes the task's limit.
        mask_samples: masks a block that log-likelihoods of a diffusion model are estimated by; None estimates none.
        mask_block: tokens of a block, for them.
        mask_token_id: the mask's token, for them; None takes the checkpoint's.
    """

    tasks: tuple[str, ...]
    metric: str | None = None
    samples: int | tuple[int, ...] | None = None
    seed: int = 0
    num_fewshot: int | None = None
    file: str | None = None
    shots_file: str | None = None
    chat_template: bool = False
    add_bos_token: bool | None = None
    max_length: int | None = None
    max_gen_toks: int | None = None
    mask_samples: int | None = None
    mask_block: int = 32
    mask_token_id: int | None = None
    hub: bool = False


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a benchmark's score is held against, where that is no engine of the run.

    Attributes:
        score: a recorded score, or None.
        samples: the number of questions behind it, or None.
        file: a record of single answers that an earlier run has left, absolute, or None.
    """

    score: float | None = None
    samples: int | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark and the question that its score has to answer (DESIGN section 8).

    Attributes:
        evaluation: what is asked.
        mode: `absolute` (against `threshold`), `recorded` (against the baseline's score, which has noise of its own)
            or `paired` (question by question, against the reference or the baseline's file).
        alpha: the chance of a false alarm, over all tasks of the case.
        threshold: the lowest score for `absolute`, else None.
        tolerance: a drop that does not matter; None asks only whether there is a drop.
        max_abs_ll_diff: the largest difference of a log-likelihood for `paired`, or None.
        baseline: recorded figures, or None.
    """

    evaluation: Evaluation
    mode: str
    alpha: float = 0.05
    threshold: float | None = None
    tolerance: float | None = None
    max_abs_ll_diff: float | None = None
    baseline: Baseline | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One comparison rule, e.g. `allclose` with `{rtol: 1e-5, atol: 1e-6, outliers: 0.0}`.

    `parameters` are complete: the loader fills every default in.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_peer(self) -> bool:
        """Whether the rule's limit is measured on the peer's run."""
        if self.name == "routing":
            return self.parameters["decisive"] is not None and self.parameters["noise"] is None
        return self.name == "noise_floor"


@dataclass(frozen=True, slots=True)
class Attention:
    """The geometry that an engine's attention must turn out to have.

    Attributes:
        geometry: `causal`, `bidirectional`, `block_causal`, `sliding_window` or `matrix`.
        block_length: tokens in a block, counted from position 0; for `block_causal`, else None.
        window: how many tokens a token sees, itself included; for `sliding_window`, else None.
        matrix: a row of "0" and "1" for each prompt token (the query); for `matrix`, else None.
    """

    geometry: str
    block_length: int | None = None
    window: int | None = None
    matrix: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The rules for all tensors that `pattern` selects; the first pattern that matches a tensor wins."""

    pattern: str
    rules: tuple[Rule, ...]
    location: Location


@dataclass(frozen=True, slots=True)
class Xfail:
    """A known difference: the case is expected to fail on `engines` (all, when empty). Strict: a pass is a failure."""

    reason: str
    engines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GoldenChoice:
    """How a case keeps its golden.

    Attributes:
        full_tokens: a tensor of at most so many rows is kept in full; a longer one is made compact, unless it is small.
        top_k: largest logits that a compact golden keeps of each row, with the row's logsumexp.
        projections: random projections that a compact golden keeps of each row.
        fallback: device keys whose golden serves where the machine's own has none, best first.
        case_id: whose golden it is, when a planted fault made another case of it; "" is the case's own.
    """

    full_tokens: int = 0
    top_k: int = 32
    projections: int = 640
    fallback: tuple[str, ...] = ()
    case_id: str = ""

    @property
    def settings(self) -> dict[str, int]:
        """How much a compact golden keeps, as its manifest states it."""
        return {"full_tokens": self.full_tokens, "top_k": self.top_k, "projections": self.projections}


@dataclass(frozen=True, slots=True)
class Case:
    """One case: one JUnit testcase.

    Attributes:
        suite: the spec's path without its extension, e.g. `specs/llada2/tiny-embeddings`.
        name: the name under `cases`.
        parameters: what expansion chose, in order: always `engine` first, then the matrix axes as written.
        location: the case's entry in its spec file.
        candidate: the engine under test.
        reference: what it is held against, or None when no check needs one.
        model: the checkpoint both run.
        prompt: the input.
        tensors: patterns of the tensors to compare.
        tolerance: rules by pattern.
        decode: the generation to do, or None.
        tokens: the rule for generated tokens (`exact` or `near_tie`), or None.
        attention: the geometry to find by probing, or None.
        trajectory: the rule for the steps of a block-diffusion decode (`sampler` or `exact`), or None.
        at: the state of the reference's decode at which the tensors are taken; None is the prompt.
        batch: prompts that the candidate gets in one batch with the case's own; () is none.
        tags: for `-t`.
        requires: `{device, memory_gb, engines, packages}` as stated.
        timeout: seconds one request of this case may take.
        repeat: how many times the candidate is asked, each answer being judged.
        xfail: the known difference, or None.
        peer: the run that shows the noise floor, or None when no rule is `noise_floor`.
        description: one line for reports, or "".
        golden: how its golden is kept, or None when it has none.
        benchmark: the benchmark to run instead of a prompt, or None.
        marks: where each field was written, by dotted name; no part of the case's identity.
    """

    suite: str
    name: str
    parameters: tuple[tuple[str, str], ...]
    location: Location
    candidate: EngineChoice
    reference: EngineChoice | None
    model: Model
    prompt: Prompt
    tensors: tuple[str, ...] = ()
    tolerance: tuple[Tolerance, ...] = ()
    decode: Decode | None = None
    tokens: Rule | None = None
    attention: Attention | None = None
    trajectory: Rule | None = None
    at: DenoisingState | None = None
    batch: tuple[Prompt, ...] = ()
    tags: tuple[str, ...] = ()
    requires: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0
    repeat: int = 1
    xfail: Xfail | None = None
    peer: EngineChoice | None = None
    description: str = ""
    golden: GoldenChoice | None = None
    benchmark: Benchmark | None = None
    marks: Mapping[str, Location] = field(default_factory=dict, compare=False, repr=False)

    @property
    def id(self) -> str:
        """`name[engine=vllm,dtype=bfloat16]`: stable, unique within its suite."""
        return f"{self.name}[{','.join(f'{key}={value}' for key, value in self.parameters)}]"

    @property
    def node_id(self) -> str:
        """`specs/x.yaml::name[engine=hf]`: what can be pasted after `specrunner run`."""
        return f"{self.location.path}::{self.id}"

    @property
    def expected_to_fail(self) -> bool:
        """Whether `xfail` speaks of this case's engine."""
        return self.xfail is not None and (not self.xfail.engines or self.candidate.engine in self.xfail.engines)
