"""The store: what is damaged is found, what is interrupted leaves old or new, what is refused leaves the old."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrunner.errors import ExitCode, UsageError
from specrunner.golden import store
from specrunner.golden.check import find_golden
from specrunner.golden.kept import read_golden
from specrunner.golden.keys import Slot, find_root, find_slot, name_case, name_device, parse_file
from specrunner.golden.manifest import GoldenError, Manifest, describe_decode, digest_case
from specrunner.golden.record import write_new
from specrunner.golden.store import State, accept, exists, list_slots, manifest_path, refuse_under_ci, reject, remove
from specrunner.spec.model import Decode, DenoisingState, GoldenChoice, Model, Prompt
from tests.golden.builders import FACTS, keep, make, make_capture, make_case


def test_a_golden_comes_back_as_it_was_written(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    written = keep(case, make_capture(), make_capture())
    golden = read_golden(written.slot)
    manifest = golden.manifest
    assert written.slot.stem.parent == tmp_path / "golden/a/spec"
    assert (manifest.engine, manifest.dtype, manifest.model_digest) == ("hf", "float32", FACTS["model_digest"])
    assert manifest.tokenizer_digest == FACTS["tokenizer_digest"]
    assert (manifest.repeats, manifest.agreement, manifest.reason) == (2, "bitwise", "first")
    assert manifest.facts["versions"] == {"torch": "2.13.0"}
    assert manifest.prompt_token_ids == tuple(range(1, 13))
    assert manifest.output_token_ids == (5, 6, 7, 8)
    assert manifest.tensors["embeddings"].form == "full"
    assert manifest.tensors["logits"].form == "compact"
    assert set(golden.tensors["logits"].parts()) == {"norms", "projections", "top_values", "top_ids", "logsumexp"}
    assert str(tmp_path) not in manifest_path(written.slot).read_text()
    assert manifest_path(written.slot, State.ANCHOR).read_text() == manifest_path(written.slot).read_text()


@pytest.mark.parametrize("cut", [0, 1, 200, -1, -200])
def test_a_truncated_manifest_is_an_error_with_a_remedy(tmp_path: Path, cut: int) -> None:
    slot = keep(make_case(tmp_path)).slot
    path = manifest_path(slot)
    path.write_bytes(path.read_bytes()[: cut - 1 if cut < 0 else cut])
    with pytest.raises(GoldenError) as caught:
        read_golden(slot)
    assert caught.value.help
    assert "\n" not in caught.value.help
    assert caught.value.kind == "golden-damaged"


@pytest.mark.parametrize("digest", ["0" * 64, "f" * 64, "", None])
def test_any_other_digest_is_an_error(tmp_path: Path, digest: str | None) -> None:
    path = manifest_path(keep(make_case(tmp_path)).slot)
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": digest}))
    with pytest.raises(GoldenError, match="its digest does not match"):
        Manifest.from_text(path.read_text(), path.name)


def test_a_manifests_digest_stays_what_it_was(tmp_path: Path) -> None:
    """Goldens live in version control: what was written years ago must be read."""
    manifest = replace(keep(make_case(tmp_path)).manifest, reason="für später", tensors={}, facts={"b": 1, "a": (2,)})
    content = json.loads(manifest.to_text())
    digest = content.pop("digest")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert text.isascii()
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert Manifest.from_text(manifest.to_text(), "x").reason == "für später"


def test_a_manifest_holds_no_number_that_json_has_not(tmp_path: Path) -> None:
    manifest = replace(keep(make_case(tmp_path)).manifest, facts={"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        manifest.to_text()


@pytest.mark.parametrize("text", ["[]", "3", '{"digest": "x"}', '{"version": 1}', "[" * 100_000])
def test_what_is_no_manifest_is_an_error(text: str) -> None:
    with pytest.raises(GoldenError, match="the golden x is not whole"):
        Manifest.from_text(text, "x")


def test_long_names_are_cut_to_what_a_file_may_be_called() -> None:
    whole = name_case(f"{'a' * 140}[engine=h]")
    assert whole == f"{'a' * 140}--engine=h" and len(whole) == 150
    cut = name_case(f"{'a' * 140}[engine=hf]")
    text = f"{'a' * 140}--engine=hf"
    assert cut == f"{text[:133]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    assert len(cut) == 150


def test_a_golden_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    golden = keep(case)
    for name in ("../x.safetensors", "/x.safetensors", "a\\b.safetensors", "x.json"):
        text = replace(golden.manifest, tensors_file=name).to_text()
        manifest_path(golden.slot).write_text(text)
        with pytest.raises(GoldenError, match="names a file elsewhere"):
            read_golden(golden.slot)
    outside = replace(golden.slot, suite="../../elsewhere")
    with pytest.raises(GoldenError, match="leads out of") as caught:
        store.write_golden(outside, State.NEW, golden.manifest, b"")
    assert caught.value.kind == "golden-refused"
    assert not (tmp_path.parent / "elsewhere").exists()


def test_a_manifest_changed_by_hand_is_an_error(tmp_path: Path) -> None:
    slot = keep(make_case(tmp_path)).slot
    path = manifest_path(slot)
    path.write_text(path.read_text().replace("[5, 6, 7, 8]", "[5, 6, 7, 9]"))
    with pytest.raises(GoldenError, match="its digest does not match"):
        read_golden(slot)


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_tensors_are_an_error(tmp_path: Path, damage: str) -> None:
    golden = keep(make_case(tmp_path))
    path = golden.slot.stem.with_name(golden.manifest.tensors_file)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(GoldenError, match=r"do not match their digest|cannot be read"):
        read_golden(golden.slot)


def test_a_golden_of_a_later_layout_is_an_error(tmp_path: Path) -> None:
    slot = keep(make_case(tmp_path)).slot
    path = manifest_path(slot)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(GoldenError, match="layout 2"):
        read_golden(slot)


def test_a_golden_of_another_model_is_an_error(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    keep(case)
    assert find_golden(case, FACTS).manifest.engine == "hf"
    with pytest.raises(GoldenError, match="another checkpoint") as caught:
        find_golden(case, {**FACTS, "model_digest": "f" * 16})
    assert caught.value.kind == "golden-stale"
    assert "--update-goldens" in str(caught.value.help)


def test_a_golden_of_another_revision_or_prompt_is_an_error(tmp_path: Path) -> None:
    keep(make_case(tmp_path))
    for changes in ({"model": Model(recipe="glass-0.8m", revision="abc")}, {"prompt": Prompt(text="ho")}):
        with pytest.raises(GoldenError, match="than the spec states"):
            find_golden(make_case(tmp_path, **changes), FACTS)


def test_options_do_not_make_another_golden(tmp_path: Path) -> None:
    from specrunner.spec.model import EngineChoice

    keep(make_case(tmp_path))
    case = make_case(tmp_path, candidate=EngineChoice("hf", "float32", options={"num_threads": 2}))
    assert find_golden(case, FACTS)


def test_the_exact_device_comes_before_the_fallbacks(tmp_path: Path) -> None:
    case = make_case(tmp_path, golden=GoldenChoice(fallback=("cuda-b", "cuda-a")))
    keep(case, facts={"device": "cuda (A)"})
    with pytest.raises(GoldenError, match="no golden for cuda-c") as caught:
        find_golden(make_case(tmp_path), {**FACTS, "device": "cuda (C)"})
    assert caught.value.kind == "golden-missing"
    assert "--update-goldens" in str(caught.value.help)
    assert find_golden(case, {**FACTS, "device": "cuda (C)"}).slot.device == "cuda-a"
    keep(case, facts={"device": "cuda (B)"})
    assert find_golden(case, {**FACTS, "device": "cuda (C)"}).slot.device == "cuda-b"
    keep(case, facts={"device": "cuda (C)"})
    assert find_golden(case, {**FACTS, "device": "cuda (C)"}).slot.device == "cuda-c"


def test_the_first_accepted_golden_stays_the_anchor(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    slot = keep(case).slot
    first = manifest_path(slot, State.ANCHOR).read_bytes()
    keep(case, make_capture(1e-6))
    assert manifest_path(slot, State.ANCHOR).read_bytes() == first
    assert manifest_path(slot).read_bytes() != first
    assert len(list(slot.stem.parent.glob("*.safetensors"))) == 2
    write_new(make(case, make_capture(1e-5)))
    accept(slot, "meant", new_anchor=True)
    assert manifest_path(slot, State.ANCHOR).read_bytes() == manifest_path(slot).read_bytes()
    assert len(list(slot.stem.parent.glob("*.safetensors"))) == 1
    read_golden(slot, State.ANCHOR)


def test_reject_and_remove_leave_nothing_behind(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    slot = keep(case).slot
    before = {file.name: file.read_bytes() for file in slot.stem.parent.iterdir()}
    write_new(make(case, make_capture(1e-3)))
    reject(slot)
    assert {file.name: file.read_bytes() for file in slot.stem.parent.iterdir()} == before
    remove(slot)
    assert [file.name for file in (tmp_path / "golden").iterdir()] == [".lock"]


@pytest.mark.parametrize("step", range(6))
def test_an_interrupt_leaves_old_or_new(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rename and deletion of a refresh is a place to be killed at."""
    case = make_case(tmp_path)
    slot = keep(case).slot
    calls = 0

    def interrupted(real: object) -> object:
        def wrapper(*arguments: object, **keywords: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise KeyboardInterrupt
            return real(*arguments, **keywords)  # type: ignore[operator]

        return wrapper

    monkeypatch.setattr(Path, "replace", interrupted(Path.replace))
    monkeypatch.setattr(Path, "unlink", interrupted(Path.unlink))
    new = make(case, make_capture(1e-3))
    finished = False
    try:
        write_new(new)
        accept(slot, "second")
        finished = True
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    reason = read_golden(slot).manifest.reason
    assert reason in ("first", "second")
    assert reason == "second" or not finished
    if exists(slot, State.NEW):
        read_golden(slot, State.NEW)
    read_golden(slot, State.ANCHOR)
    assert calls > step or finished


def test_a_full_disk_keeps_the_old(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    slot = keep(case).slot
    before = sorted(file.name for file in slot.stem.parent.iterdir())
    larger = make(case, make_capture(1e-3, rows=12))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(GoldenError, match="cannot be written under") as caught:
            write_new(larger)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "unchanged" in str(caught.value.help)
    assert sorted(file.name for file in slot.stem.parent.iterdir()) == before
    read_golden(slot)


def test_a_read_only_folder_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """root may write anywhere, so the system's refusal is played where permissions cannot give it."""
    case = make_case(tmp_path)
    slot = keep(case).slot
    if os.geteuid():
        slot.stem.parent.chmod(0o500)
    else:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(GoldenError, match="cannot be written under .*: Permission denied"):
        write_new(make(case, make_capture(1e-3)))
    slot.stem.parent.chmod(0o700)
    read_golden(slot)
    monkeypatch.setattr(store, "hold_lock", lambda _: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(GoldenError, match="goldens cannot be written under"):
        reject(slot)


def refresh(folder: str, name: str, count: int) -> None:
    for number in range(count):
        case = make_case(Path(folder), f"{name}-{number}")
        keep(case, make_capture(rows=6, width=100))
        with contextlib.suppress(GoldenError):  # the other one accepted what waited: a clean refusal
            keep(make_case(Path(folder), "shared"), make_capture(number * 1e-7, rows=6, width=100))


def test_two_processes_that_refresh_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=refresh, args=(str(tmp_path), name, 6)) for name in ("one", "two")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    slots = list_slots(tmp_path / "golden")
    assert len(slots) == 13
    for slot in slots:
        read_golden(slot)
        read_golden(slot, State.ANCHOR)
        assert not exists(slot, State.NEW)
    assert not list((tmp_path / "golden").rglob("*.partial"))


def test_what_was_not_reviewed_is_not_accepted(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    reviewed = write_new(make(case, make_capture()))
    write_new(make(case, make_capture(1e-3)))
    with pytest.raises(GoldenError, match="another golden took the place"):
        accept(reviewed.slot, "seen", reviewed=reviewed.manifest)
    assert not exists(reviewed.slot)


def test_never_under_ci() -> None:
    for value in ("true", "1", "woodpecker"):
        with pytest.raises(UsageError, match="does not run under CI"):
            refuse_under_ci("it", {"CI": value})
    for value in ("", "0", "false"):
        refuse_under_ci("it", {"CI": value})
    refuse_under_ci("it", {})


def test_files_can_be_read_by_whoever_has_the_checkout(tmp_path: Path) -> None:
    slot = keep(make_case(tmp_path)).slot
    modes = {file.stat().st_mode & 0o777 for file in slot.stem.parent.iterdir()}
    assert modes == {0o644}


def test_where_goldens_lie() -> None:
    assert find_root("specs/llada2/tiny.yaml") == (Path("golden"), "llada2/tiny")
    assert find_root("/x/specs/tiny.yml") == (Path("/x/golden"), "tiny")
    assert find_root("../specs/a.b.yaml") == (Path("../golden"), "a.b")
    assert find_root("elsewhere/tiny.yaml") == (Path("elsewhere/golden"), "tiny")
    assert find_root("tiny.yaml") == (Path("golden"), "tiny")


def test_device_keys() -> None:
    assert name_device("cpu").startswith("cpu-")
    assert name_device("cuda (NVIDIA H200)") == "cuda-nvidia-h200"


_WORD = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=200)
_VALUE = st.text(st.characters(codec="utf-8", exclude_characters="[]"), max_size=60)


@given(_WORD, _WORD, _VALUE, _VALUE)
def test_different_cases_have_different_and_safe_names(one: str, two: str, a: str, b: str) -> None:
    ids = [f"{one}[engine={a}]", f"{two}[engine={b}]"]
    names = [name_case(text) for text in ids]
    assert (names[0] == names[1]) == (ids[0] == ids[1])
    for name in names:
        assert len(name) <= 150
        assert not set(name) & set("/\\[]*?\0\n @")


def test_files_lead_back_to_their_slots(tmp_path: Path) -> None:
    slot = find_slot(make_case(tmp_path), "cpu-x86_64")
    for state in State:
        assert parse_file(slot.root, manifest_path(slot, state)) == slot
    assert parse_file(slot.root, slot.root / "a/other.json") is None


@given(st.lists(st.sampled_from([".json", "@", "v1", ".new", ".json.rejected"]), max_size=5).map("".join))
def test_whatever_a_case_is_called_its_files_lead_back_to_it(name: str) -> None:
    slot = Slot(Path("golden"), "a/b", name_case(f"{name}[engine=hf]"), "cpu-x86_64")
    for state in State:
        assert parse_file(slot.root, manifest_path(slot, state)) == slot


def test_options_that_came_later_leave_the_digest_of_a_case_alone(tmp_path: Path) -> None:
    decode = Decode(4, "low_confidence", 16, 0.9)
    case = make_case(tmp_path, decode=decode)
    later = [replace(decode, accept="ge"), replace(decode, steps=8), replace(decode, eos_early_stop=True)]
    assert "accept" not in describe_decode(decode)
    assert len({digest_case(case), *(digest_case(replace(case, decode=one)) for one in later)}) == 4
    assert digest_case(replace(case, at=DenoisingState(1))) != digest_case(case)
    assert digest_case(replace(case, batch=(Prompt(text="x"),))) != digest_case(case)
