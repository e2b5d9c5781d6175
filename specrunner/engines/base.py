"""What every engine is: a name, its capabilities, and an adapter that loads one model and answers requests.

An engine is a class named by an entry point of the group `specrunner.engines`. Its module must import without torch
or the engine itself, since the plan asks for `capabilities` in the caller's process; everything heavy is imported in
`load`, which runs in the worker, under the engine's own interpreter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from specrunner.errors import ModelUnsupported
from specrunner.requests import Request
from specrunner.spec.model import Decode, Prompt
from specrunner.spec.tensor_names import PASSES

if TYPE_CHECKING:
    from specrunner.requests import Session


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, stated without starting it.

    Attributes:
        dtypes: dtypes it computes in, by device (`cpu`, `cuda`).
        algorithms: decoding algorithms, of `greedy` and `low_confidence`.
        packages: import names that must be present in its environment.
        environments: names of the lock files that can provide it, best first; empty: the caller's own interpreter.
        install_hint: the command that makes it available.
        led: whether `capture_led` works, so that a failure can be traced to the layer that causes it.
        batches: whether several prompts can be answered in one batch.
        lasting: whether nothing changes a capture's tensors once it was returned, so that it can be written to disk
            while the next request is worked on; False is safe for tensors that are views of the engine's buffers.
        model_options: options that say what the spec's `model` says, with its field: a spec cannot set them. Dotted
            where they are keys of a mapping. `revision`, `trust_remote_code` and the like are refused of every engine.
        case_options: options that say what a case says, with its field: a spec cannot set them.
        checkpoint_options: options that name further checkpoints, with the option that states their revision ("" where
            there is none): what holds for the model's files and its pinning holds for theirs.
        preload: modules that every load imports, whatever the model: sessions of a run that are on a CPU share one
            import of them, since they are forked from a process that did it. It must compute nothing and start no
            thread.
        code_options: options that take code from a hub where their value is `owner/name` or true: the model has to be
            allowed to run code, and the name to carry its commit, `owner/name@REVISION`.
    """

    dtypes: Mapping[str, tuple[str, ...]]
    algorithms: tuple[str, ...] = ("greedy",)
    packages: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    install_hint: str = ""
    led: bool = False
    batches: bool = False
    lasting: bool = False
    model_options: Mapping[str, str] = field(default_factory=dict)
    case_options: Mapping[str, str] = field(default_factory=dict)
    checkpoint_options: Mapping[str, str] = field(default_factory=dict)
    code_options: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


GPU_OPTIONS = (
    ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    ("tp_size", "pp_size", "dp_size"),
)
"""Options, of vLLM and of SGLang, whose product is the number of GPUs that an engine takes."""

ScoredPrompt = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt and continuations that end with the token after it."""


@dataclass(slots=True)
class Capture:
    """What an adapter returns for one request.

    Attributes:
        prompt_token_ids: the ids the model really saw, after `prompt.length` was applied.
        tensors: by name (DESIGN section 5), layout [tokens, ...] (or [block_length, vocabulary] for `passes.*`), CPU,
            contiguous, own storage; torch tensors or numpy arrays, in the dtype the engine computed them in.
        output_token_ids: generated ids, up to and including the first end-of-sequence, or None without `decode`.
        facts: what is worth reporting of this request (passes made, finish reason ...), JSON values only.
    """

    prompt_token_ids: list[int]
    tensors: dict[str, Any] = field(default_factory=dict)
    output_token_ids: list[int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def list_forward_patterns(request: Request) -> tuple[str, ...]:
    """Return the patterns of a request that its prompt's forward answers: those of `passes.*` come from the decode.

    Raises:
        ModelUnsupported: passes are asked for, and no decode.
    """
    patterns = tuple(pattern for pattern in request.tensors if not pattern.startswith(PASSES))
    if len(patterns) < len(request.tensors) and request.decode is None:
        raise ModelUnsupported("`passes.*` tensors come from a decode, and the request has none")
    return patterns


class Engine(ABC):
    """An adapter over one loaded model. One instance lives in one worker process.

    Args:
        session: what to load.
        model_path: the checkpoint's directory; for a hub id, the id itself, which the engine's own hub client resolves.
        workspace: an empty directory of this session, removed when it ends; engines put sockets and caches here.

    Attributes:
        stop: texts after which a greedy decode may end, since the rest will be cut off; set by `generate` alone.
    """

    name: ClassVar[str]

    def __init__(self, session: Session, model_path: str, workspace: Path) -> None:
        self.session = session
        self.model_path = model_path
        self.workspace = workspace
        self.stop: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def capabilities(cls) -> Capabilities:
        """Say what the engine can do, without importing it."""

    @classmethod
    def tensor_templates(cls, architecture: str) -> tuple[str, ...] | None:
        """Return the tensor name templates that can be captured for `architecture`, or None when it has no name map."""
        return None

    @classmethod
    def decode_algorithms(cls, architecture: str, options: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return the algorithms by which models of `architecture` decode, or None where loading them has to show it.

        Args:
            architecture: the class in the checkpoint's `architectures`.
            options: the session's options, which may change how the model attends.
        """
        return None

    @classmethod
    def decode_rules(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        """Return the values of `decode`'s options that block diffusion can follow; one that is absent can be anything.

        Args:
            options: the session's options, which may put another sampler into the engine.
        """
        return {}

    @classmethod
    def reveals_passes(cls, options: Mapping[str, Any]) -> bool:
        """Tell whether a block-diffusion decode shows its steps: what each saw and accepted, and its logits."""
        return True

    @classmethod
    def worker_environment(cls, session: Session, workspace: Path) -> dict[str, str]:
        """Return environment variables the worker must be started with."""
        return {}

    @abstractmethod
    def load(self) -> dict[str, Any]:
        """Load the model once.

        Returns:
            The facts of the session, JSON values only: `versions` {package: version, the engine's own first, of which
            reports tell two where there is no room for more}, `model_class`, `architecture`,
            `device`, `dtype`, `attention_backend`, `patches` (list of what we changed in the engine), `options`.

        Raises:
            EngineError: with the cause in one line.
        """

    @abstractmethod
    def capture(self, request: Request) -> Capture:
        """Answer one request.

        Raises:
            CaptureIncomplete: a pattern matched nothing, a hook did not fire, or rows differ from the prompt's length.
            EngineError: anything else that cost the request.
        """

    def is_causal(self) -> bool:
        """Tell whether a row of the loaded model's logits predicts the next token from those before it alone."""
        return True

    def read_logits(self, token_ids: Sequence[int]) -> Any:
        """Return the logits of one forward over a prompt, [tokens, vocabulary]; benchmarks score answers by them.

        Raises:
            CaptureIncomplete: the engine cannot give the logits of every token.
            EngineError: anything else that cost the question.
        """
        prompt = Prompt(token_ids=tuple(token_ids))
        return self.capture(Request(prompt=prompt, tensors=("logits",))).tensors["logits"]

    def generate(self, token_ids: Sequence[int], decode: Decode, stop: Sequence[str] = ()) -> list[int]:
        """Return the ids that the engine generates after a prompt; benchmarks read their answers from them.

        Block diffusion is asked for one block after the other while there are stop texts and a stated block length:
        every block is cut at the same absolute position as without, and ends the decode when a stop text is in it.

        Args:
            token_ids: the prompt.
            decode: how to generate.
            stop: texts after which the rest will be cut off, so that an engine may end there.
        """
        self.stop = tuple(text for text in stop if text)
        try:
            if not self.stop or decode.algorithm == "greedy" or decode.block_length is None:
                prompt = Prompt(token_ids=tuple(token_ids))
                return list(self.capture(Request(prompt=prompt, decode=decode)).output_token_ids or ())
            return self._generate_by_block(list(token_ids), decode, decode.block_length)
        finally:
            self.stop = ()

    def _generate_by_block(self, prompt: list[int], decode: Decode, length: int) -> list[int]:
        tokens = list(prompt)
        end = len(prompt) + decode.max_new_tokens
        while len(tokens) < end:
            wanted = min(end, (len(tokens) // length + 1) * length) - len(tokens)
            request = Request(Prompt(token_ids=tuple(tokens)), decode=replace(decode, max_new_tokens=wanted))
            capture = self.capture(request)
            new = capture.output_token_ids or ()
            tokens += new
            ended = len(new) < wanted or capture.facts.get("finish_reason") == "stop"
            if ended or self.has_stopped(tokens[len(prompt) :]):
                break
        return tokens[len(prompt) :]

    def read_text(self, token_ids: Sequence[int]) -> str | None:
        """Return the text of generated ids without special tokens, or None without a tokenizer."""
        return None

    def has_stopped(self, token_ids: Sequence[int]) -> bool:
        """Tell whether a stop text of the question is in the text of what was generated."""
        text = self.read_text(token_ids) if self.stop else None
        return text is not None and any(stop in text for stop in self.stop)

    def score_continuations(self, groups: Sequence[ScoredPrompt]) -> list[list[dict[str, Any]]] | None:
        """Score the continuations of many prompts together; None where they are to be read off the logits.

        Args:
            groups: ids of a prompt with its continuations, whose tokens but the last are the prompt's last ones.

        Returns:
            For each prompt and continuation, `logprob` and `greedy` as `engines.questions.score_continuation` has them.
        """
        return None

    def capture_led(self, request: Request, reference: Mapping[str, Any], *, routing: bool) -> Capture:
        """Answer a request with each layer fed by the reference: the errors that are left are the layers' own.

        Args:
            request: the prompt and the tensors to capture.
            reference: the reference's tensors by name; a layer whose input is not among them gets its own.
            routing: also replay the reference's choice of experts and their weights.

        Raises:
            ModelUnsupported: this engine cannot be led.
        """
        raise ModelUnsupported(f"{self.name} cannot feed its layers with the reference's inputs")

    def close(self) -> None:
        """Let go of the model. Called once, also after errors."""
