"""What the schema cannot say about a case: each mistake alone, with what its carets mark, and its sound neighbour."""

from __future__ import annotations

import pytest

from specrunner.spec import consistency
from specrunner.spec.loader import read_spec
from specrunner.spec.source import parse_text

HEAD = "version: 1\nmodel: {recipe: glass-0.8m}\nengines: [hf]\nreference: {engine: vllm}\n"
LOGITS = "tolerance: {logits: exact}\n"
HASH = "abcdef0123" * 4
DENOISE = "algorithm: low_confidence, block_length: 4, threshold: 0.5"


def read(fields: str, head: str = HEAD) -> list[tuple[str, str, str]]:
    """Return code, marked text and message of what is wrong with a case."""
    text = f"{head}cases:\n  - name: c\n" + "".join(f"    {line}\n" for line in fields.splitlines())
    cases, found = read_spec(parse_text(text, "x.yaml"), "x", ("hf", "oracle", "vllm"), ("glass-0.8m",))
    assert bool(cases) != bool(found), "a case, or what is wrong with it"
    marked = []
    for one in found:
        start = one.location.column - 1
        marked.append((one.code, one.line_text[start : start + one.width], one.message))
    return marked


@pytest.mark.parametrize("name", ["trust_remote_code", "allow_pickle"])
@pytest.mark.parametrize(
    ("revision", "marked", "said"),
    [
        ("", "true", "no revision is stated"),
        (", revision: main", "main", "`main`"),
        (f", revision: {HASH}", "", ""),
        (f", revision: {HASH}0", f"{HASH}0", f"`{HASH}0`"),
        (f", revision: {HASH[1:]}", HASH[1:], f"`{HASH[1:]}`"),
        (", revision: $COMMIT", "", ""),
        (", revision: $PINNED", "", ""),
        (", revision: $BRANCH", "$BRANCH", "`BRANCH` is `main`"),
    ],
)
def test_code_of_the_hub_is_pinned(
    name: str, revision: str, marked: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMMIT", raising=False)
    monkeypatch.setenv("PINNED", HASH)
    monkeypatch.setenv("BRANCH", "main")
    head = HEAD.replace("{recipe: glass-0.8m}", f"{{id: a/b, {name}: true{revision}}}")
    found = read("prompt: hi\n" + LOGITS, head)
    if not said:
        assert found == []
        return
    assert found == [("unpinned-code", marked, f"`{name}` needs the full hash of a commit: {said}")]
    assert read("prompt: hi\n" + LOGITS, head.replace("true", "false")) == []


def test_code_of_ones_own_folder_needs_no_hash() -> None:
    head = HEAD.replace("{recipe: glass-0.8m}", "{path: m, trust_remote_code: true, allow_pickle: true}")
    assert read("prompt: hi\n" + LOGITS, head) == []


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("options: {hf: {trust_remote_code: true}}", 1),
        ("options: {hf: {a: 1}, vllm: {trust_remote_code: false}}", 1),
        ("reference: {engine: vllm, options: {trust_remote_code: true}}", 1),
        ("reference: {engine: vllm, peer: {options: {trust_remote_code: true}}}", 1),
        ("options: {hf: {trust_remote_code: true}, vllm: {trust_remote_code: true}}", 2),
        ("options: {hf: {a: 1}}", 0),
    ],
)
def test_trust_is_stated_in_one_place(where: str, count: int) -> None:
    found = read(f"prompt: hi\n{LOGITS}{where}")
    assert found == [("conflicting-keys", "trust_remote_code", "`trust_remote_code` belongs to the model")] * count


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("{geometry: causal}", []),
        ("{geometry: bidirectional}", []),
        ("{geometry: block_causal, block_length: 4}", []),
        ("{geometry: sliding_window, window: 3}", []),
        ('{geometry: matrix, matrix: ["10", "11"]}', []),
        ("{geometry: block_causal}", [("missing-key", "block_causal", "geometry `block_causal` needs `block_length`")]),
        ("{geometry: sliding_window}", [("missing-key", "sliding_window", "geometry `sliding_window` needs `window`")]),
        ("{geometry: matrix}", [("missing-key", "matrix", "geometry `matrix` needs `matrix`")]),
        (
            "{geometry: causal, window: 3}",
            [("conflicting-keys", "window", "`window` means nothing to the geometry `causal`")],
        ),
        (
            "{geometry: sliding_window, window: 3, block_length: 4}",
            [("conflicting-keys", "block_length", "`block_length` means nothing to the geometry `sliding_window`")],
        ),
        (
            '{geometry: matrix, matrix: ["10", "1", "111"]}',
            [
                ("bad-value", '"10"', "row 0 of the matrix has 2 columns, and there are 3 rows"),
                ("bad-value", '"1"', "row 1 of the matrix has 1 columns, and there are 3 rows"),
            ],
        ),
    ],
)
def test_a_geometry_has_what_it_needs_and_nothing_else(attention: str, expected: list[tuple[str, str, str]]) -> None:
    assert read(f"prompt: hi\nattention: {attention}") == expected


@pytest.mark.parametrize(
    ("decode", "expected"),
    [
        (f"{{max_new_tokens: 4, {DENOISE}, steps: 4}}", []),
        (f"{{max_new_tokens: 4, {DENOISE}, steps: 1, fallback: schedule}}", []),
        (f"{{max_new_tokens: 4, {DENOISE}, steps: 5}}", [("bad-value", "5", "5 steps for a block of 4 tokens")]),
        (
            f"{{max_new_tokens: 4, {DENOISE}, steps: 2, fallback: best}}",
            [("conflicting-keys", "steps", "`steps` means nothing to the fallback `best`")],
        ),
        (f"{{max_new_tokens: 4, {DENOISE}, fallback: best}}", []),
        (f"{{{DENOISE}}}", [("missing-key", "decode", "`decode` lacks `max_new_tokens`")]),
        (
            "{max_new_tokens: 4, algorithm: low_confidence, threshold: 1}",
            [("missing-key", "low_confidence", "algorithm `low_confidence` needs `block_length`")],
        ),
        (
            "{max_new_tokens: 4, algorithm: low_confidence}",
            [("missing-key", "low_confidence", "algorithm `low_confidence` needs `block_length` and `threshold`")],
        ),
        *(
            (
                f"{{max_new_tokens: 4, {name}: {value}}}",
                [("conflicting-keys", name, f"`{name}` means nothing to the algorithm `greedy`")],
            )
            for name, value in (
                *(("block_length", 4), ("threshold", 0.5), ("accept", "ge"), ("fallback", "best"), ("steps", 2)),
                *(("exclude_mask_id", "true"), ("eos_early_stop", "true")),
            )
        ),
    ],
)
def test_a_decode_has_what_its_algorithm_needs(decode: str, expected: list[tuple[str, str, str]]) -> None:
    assert read(f"prompt: hi\ntokens: exact\ndecode: {decode}") == expected


def test_the_matrix_may_choose_the_algorithm() -> None:
    fields = f"prompt: hi\ntokens: exact\ndecode: {{max_new_tokens: 4, {DENOISE}}}\nmatrix: {{decode.algorithm: ALL}}"
    assert read(fields.replace("ALL", "[greedy, low_confidence]")) == []
    labels = "matrix: {how: {a: {decode: {algorithm: greedy}}, b: {decode: {ignore_eos: true}}}}"
    assert read(fields.partition("matrix")[0] + labels) == []


STATE = f"prompt: hi\ndecode: {{max_new_tokens: 4, {DENOISE}}}\n"
GREEDY = "prompt: hi\ndecode: {max_new_tokens: 4}\n"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (f"{STATE}{LOGITS}at: {{block: 0, step: 1}}", []),
        (f"{STATE}trajectory: exact", []),
        (f"{STATE}trajectory: sampler\nreference: null", []),
        (f"{GREEDY}tokens: exact\ntrajectory: sampler", [("no-decode", "trajectory", "")]),
        (f"prompt: hi\n{LOGITS}at: {{step: 1}}", [("no-decode", "at", "`at` needs block-diffusion decoding")]),
        (
            f"{STATE}trajectory: exact\nreference: null",
            [("no-reference", "exact", "case `c` compares trajectories, but has no reference")],
        ),
        (f"{STATE}at: {{step: 1}}", [("no-check", "at", "`at` says where tensors are taken, and the case has none")]),
        *(
            (
                f"{STATE}{LOGITS}at: {{step: 1}}\n{name}: {value}",
                [
                    (
                        "conflicting-keys",
                        name,
                        f"a case with `at` compares tensors of one state, and so cannot have `{name}`",
                    )
                ],
            )
            for name, value in (
                *(("tokens", "exact"), ("trajectory", "exact"), ("attention", "{geometry: causal}")),
                ("batch", "{with: [you]}"),
            )
        ),
        (
            f'{STATE}tolerance: {{"passes.*.logits": exact}}\nat: {{step: 1}}',
            [("conflicting-keys", "at", "`passes.*` tensors belong to a whole decode, and `at` names one state of it")],
        ),
    ],
)
def test_states_and_trajectories(fields: str, expected: list[tuple[str, str, str]]) -> None:
    found = read(fields)
    assert [(code, marked) for code, marked, _ in found] == [(code, marked) for code, marked, _ in expected]
    assert all(want in said for (_, _, said), (_, _, want) in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("prompt: {token_ids: [1, 2], length: 2}", []),
        ("prompt: {token_ids: [1, 2], length: 1}", []),
        ("prompt: {token_ids: [1, 2], length: 3}", [("too-short", "3")]),
        ("prompt: {length: 3}", [("no-input", "prompt")]),
        ("", [("no-input", "c")]),
        ("prompt: hi\nbatch: {with: [you, {token_ids: [1]}]}", []),
        ("prompt: hi\nbatch: {with: [you, {token_ids: [1], length: 2}]}", [("too-short", "2")]),
        ("prompt: {length: 3}\nbatch: {with: [{length: 2}]}", [("no-input", "{length: 2}"), ("no-input", "prompt")]),
    ],
)
def test_every_prompt_says_something(fields: str, expected: list[tuple[str, str]]) -> None:
    found = read(f"{fields}\n{LOGITS}".lstrip())
    assert sorted((code, marked) for code, marked, _ in found) == sorted(expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("options: {vlm: {}}", ("unknown-engine", "vlm")),
        ("environments: {vlm: x}", ("unknown-engine", "vlm")),
        ("requires: {engines: [hf, vlm]}", ("unknown-engine", "vlm")),
        ("xfail: {reason: r, engines: [vlm]}", ("unknown-engine", "vlm")),
        ("reference: {engine: vlm}", ("unknown-engine", "vlm")),
        ("reference: {engine: vllm, peer: {engine: vlm}}", ("unknown-engine", "vlm")),
        ("engines: [hf, vlm]", ("unknown-engine", "vlm")),
        ("engines: [hf]\noptions: {hf: {}}\nenvironments: {vllm: x}\nrequires: {engines: [hf]}", None),
        ("reference: {engine: hf}", ("self-comparison", "reference")),
        ("reference: {engine: hf, dtype: float64}", None),
        ("reference: {engine: hf}\nbatch: {with: [you]}", None),
        ("reference: {engine: hf, options: {a: 1}}", None),
    ],
)
def test_names_and_comparisons(fields: str, expected: tuple[str, str] | None) -> None:
    found = [(code, marked) for code, marked, _ in read(f"prompt: hi\n{LOGITS}{fields}")]
    assert found == ([] if expected is None else [expected])


FLOOR = "prompt: hi\ndtype: bfloat16\ntolerance: {logits: {noise_floor: 2}}\n"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("{engine: vllm}", None),
        ("{engine: vllm, dtype: float64}", None),
        ("{engine: vllm, dtype: float16}", ("bad-value", "float16")),
        ("{engine: hf}", ("self-comparison", "{engine: hf}")),
        ("{engine: hf, peer: {options: {a: 1}}}", None),
        ("{engine: hf, peer: {dtype: float32}}", ("self-comparison", "peer")),
    ],
)
def test_a_noise_floor_has_a_peer_of_its_own(reference: str, expected: tuple[str, str] | None) -> None:
    found = [code for code, _, _ in read(f"{FLOOR}reference: {reference}")]
    assert found == ([] if expected is None else [expected[0]])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("tokens: exact", [("no-decode", "tokens", "`tokens` needs `decode`")]),
        ("", [("no-check", "c", "case `c` checks nothing")]),
        (
            "tolerance: {logits: exact}\nreference: null",
            [("no-reference", "c", "case `c` compares tensors, but has no reference")],
        ),
        (
            "tokens: exact\ndecode: {max_new_tokens: 2}\nreference: null",
            [("no-reference", "c", "case `c` compares tokens, but has no reference")],
        ),
        ("tokens: exact\ndecode: {max_new_tokens: 2}\nreference: null\ngolden: true", []),
        ("attention: {geometry: causal}\nreference: null", []),
        (
            "tolerance: {logits: exact}\ndecode: {max_new_tokens: 2}",
            [("unused-decode", "decode", "nothing checks what is generated")],
        ),
        (
            'tolerance: {"passes.*.logits": exact}\ndecode: {max_new_tokens: 2}',
            [("no-decode", "tolerance", "`passes.*` needs block-diffusion decoding")],
        ),
        ("tensors: [logits]\ntolerance: {}", [("empty", "tolerance", "`tolerance` is empty")]),
        (
            "tensors: [logits, embeddings]\ntolerance: {logits: exact}",
            [("no-rule", "embeddings", "`embeddings` has no rule under `tolerance`")],
        ),
        (
            'tensors: ["layers.*.output"]\ntolerance: {layers.0.output: exact}',
            [("no-rule", '"layers.*.output"', "`layers.*.output` selects `layers.1.output`, which has no rule")],
        ),
        (
            "tensors: [logits]\ntolerance: {logits: exact, embeddings: exact}",
            [("unused-rule", "embeddings", "rule for `embeddings`, but no listed tensor matches it")],
        ),
        (
            'tolerance: {"**": exact, logits: exact}',
            [("unused-rule", "logits", "the rule for `logits` is never reached: `**` comes first")],
        ),
        ("tolerance: {logit: exact}", [("impossible-pattern", "logit", "no tensor name can match `logit`")]),
    ],
)
def test_every_case_has_a_purpose(fields: str, expected: list[tuple[str, str, str]]) -> None:
    assert read(f"prompt: hi\n{fields}") == expected


@pytest.mark.parametrize(("count", "codes"), [(3, []), (4, ["too-large"])])
def test_patterns_mention_so_many_layers_at_most(count: int, codes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "MAX_NUMBERS", 3)
    rules = ", ".join(f"layers.{number}.output: exact" for number in range(count))
    assert [code for code, _, _ in read(f"prompt: hi\ntolerance: {{{rules}}}")] == codes


def test_a_rule_that_defaults_bring_may_stand_idle() -> None:
    """Only what the case itself wrote is held against it."""
    head = HEAD + "defaults: {tolerance: {logits: exact, embeddings: exact}}\n"
    assert read("prompt: hi\ntensors: [logits]", head) == []
    assert read('prompt: hi\ntolerance: {"**": exact}', head) == []
