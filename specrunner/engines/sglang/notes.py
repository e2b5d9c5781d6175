"""What the process with SGLang's model tells the adapter: orders, notes, and tensors put together from notes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrunner.engines.hooks import finish_tensors, gather_ranks
from specrunner.engines.name_maps import Entry, HookPoint
from specrunner.engines.served_routers import BIAS
from specrunner.errors import ENGINE_ERRORS, CaptureIncomplete, EngineError
from specrunner.spec.tensor_names import match_name

if TYPE_CHECKING:
    import torch

ORDER_FILE = "order.json"
NOTES_FOLDER = "notes"


@dataclass(frozen=True, slots=True)
class Order:
    """What to note of the next request.

    Attributes:
        number: counts the session's requests.
        patterns: tensor patterns to read off the prompt's forwards (none of `passes.*`).
        prompt_length: tokens in the prompt.
        keep_logits: whether the logits of denoising passes are wanted.
        threshold: confidence above which a masked position is accepted, or None to leave the algorithm's own.
        fault: the planted bug that the model has until the next order (`specrunner.faults`), or None.
        judged: the request to note in a batch, by its id; None where a request comes alone.
    """

    number: int
    patterns: tuple[str, ...]
    prompt_length: int
    keep_logits: bool = False
    threshold: float | None = None
    fault: str | None = None
    judged: str | None = None

    @property
    def request_ids(self) -> Callable[[int], str]:
        """Return what names the prompts of the order, the judged one being number 0."""
        return lambda number: f"{self.judged or self.number}{f'-{number}' if number else ''}"

    @property
    def wants_logits(self) -> bool:
        """Whether the logits of prompt tokens are wanted; SGLang computes them on request only."""
        return any(match_name(pattern, "logits") for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class Note:
    """What was seen of one forward or denoising step.

    Attributes:
        kind: `prompt` (tensors of prompt rows), `pass` (a denoising step), `refresh` (a forward over a finished block,
            for its keys and values), or `failure`.
        facts: JSON values.
        tensors: by name; copies, on the CPU.
    """

    kind: str
    facts: dict[str, Any]
    tensors: dict[str, Any] = field(default_factory=dict)


def failure_note(error: EngineError) -> Note:
    """Carry an engine error to the adapter."""
    return Note("failure", {"kind": error.kind, "message": error.message, "help": error.help})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, so that a reader sees all of it or the one before."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


class Mailbox:
    """Orders and notes as files of a folder, between the adapter and SGLang's scheduler processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp = (0, 0)
        self._order: Order | None = None
        self._written = 0

    def read_order(self) -> Order | None:
        """Return the order in force; the file is read again when it has changed."""
        try:
            found = (self._folder / ORDER_FILE).stat()
        except FileNotFoundError:
            return None
        stamp = (found.st_ino, found.st_mtime_ns)
        if stamp != self._stamp:
            values = json.loads((self._folder / ORDER_FILE).read_text(encoding="utf-8"))
            self._order = Order(**{**values, "patterns": tuple(values["patterns"])})
            self._stamp = stamp
        return self._order

    def put_order(self, order: Order) -> None:
        """Put an order in force."""
        (self._folder / NOTES_FOLDER / str(order.number)).mkdir(parents=True)
        write_json(self._folder / ORDER_FILE, asdict(order))

    def write_note(self, note: Note, rank: int) -> None:
        """Write a note of the order in force: tensors first, then the JSON file that completes it."""
        from safetensors.torch import save_file

        assert self._order is not None
        self._written += 1
        path = self._folder / NOTES_FOLDER / str(self._order.number) / f"rank{rank:04d}-{self._written:08d}.json"
        if note.tensors:
            save_file(note.tensors, str(path.with_suffix(".safetensors")))
        write_json(path, {"kind": note.kind, "facts": note.facts, "tensors": sorted(note.tensors)})

    def take_notes(self, order: Order) -> list[list[Note]]:
        """Return the notes of an order, in the order of writing, for each rank; their files are removed."""
        from safetensors.torch import load_file

        folder = self._folder / NOTES_FOLDER / str(order.number)
        ranks: dict[str, list[Note]] = {}
        for path in sorted(folder.glob("rank*.json")):
            values = json.loads(path.read_text(encoding="utf-8"))
            tensors = load_file(str(path.with_suffix(".safetensors"))) if values["tensors"] else {}
            ranks.setdefault(path.name.split("-")[0], []).append(Note(values["kind"], values["facts"], tensors))
        for path in folder.iterdir():
            path.unlink()
        return [ranks[name] for name in sorted(ranks)]


class SeenPass:
    """A denoising pass as the plugin noted it; the fields of `denoising.Pass`."""

    def __init__(self, note: Note) -> None:
        import torch

        self.block_start: int = note.facts["block_start"]
        self.tokens_before = torch.tensor(note.facts["tokens_before"])
        self.tokens_after = torch.tensor(note.facts["tokens_after"])
        self.accepted = torch.tensor(note.facts["accepted"])
        self.logits = note.tensors.get("logits")


def raise_failure(notes: Sequence[Sequence[Note]]) -> None:
    """Raise the first failure that the plugin noted.

    Raises:
        EngineError: of the class that was noted.
    """
    for note in (note for rank in notes for note in rank):
        if note.kind == "failure":
            error_class = ENGINE_ERRORS.get(note.facts["kind"], CaptureIncomplete)
            raise error_class(note.facts["message"], help=note.facts["help"])


def check_notes(notes: Sequence[Sequence[Note]]) -> None:
    """Check that the plugin has seen a prompt.

    Raises:
        EngineError: the first failure that was noted, of its class.
        CaptureIncomplete: nothing was noted of the prompt.
    """
    raise_failure(notes)
    if not any(note.kind == "prompt" for rank in notes for note in rank):
        raise CaptureIncomplete("no forward over the prompt was seen: the hook on sglang's ModelRunner did not fire")


def assemble_tensors(
    notes: Sequence[Sequence[Note]], patterns: Sequence[str], tokens: int, described: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Turn the notes of a prompt's forwards into tensors with one row a prompt token.

    Args:
        notes: of each tensor-parallel rank, in its order.
        patterns: what the request asks for.
        tokens: the prompt's length.
        described: what was loaded, see `describe_model`.

    Raises:
        CaptureIncomplete: tokens that no forward, or more than one, has computed; or a hook that did not fire.
    """
    ranks = [[note for note in rank if note.kind == "prompt"] for rank in notes]
    for prompt in ranks:
        check_rows(prompt, tokens)
    gathers: dict[str, str | None] = {name: gather for name, _, gather in ranks[0][0].facts["points"]}
    points = [HookPoint(name, module, Entry(module)) for name, module, _ in ranks[0][0].facts["points"]]
    records: dict[str, list[torch.Tensor]] = {}
    for parts in zip(*ranks, strict=True):
        for name in (name for name in parts[0].tensors if not name.endswith(BIAS)):
            replicas = 1
            if name.endswith(("attention.key", "attention.value")):
                replicas = max(1, len(ranks) // described["kv_heads"])
            shards = [part.tensors[name] for part in parts]
            records.setdefault(name, []).append(gather_ranks(shards, gathers[name], replicas))
    biases = {name: tensor for name, tensor in ranks[0][0].tensors.items() if name.endswith(BIAS)}
    return finish_tensors(records, points, patterns, tokens) | biases


def check_rows(prompt: Sequence[Note], tokens: int) -> None:
    """Check that a prompt's forwards cover each of its tokens once, in order.

    Raises:
        CaptureIncomplete: they do not.
    """
    seen = 0
    for note in prompt:
        if note.facts["start"] != seen:
            raise CaptureIncomplete(f"a forward began at token {note.facts['start']}, where {seen} was expected")
        seen += note.facts["rows"]
    if seen != tokens:
        raise CaptureIncomplete(f"forwards over {seen} tokens were seen for a prompt of {tokens}")
