"""What there is room for in SGLang, decided without SGLang."""

from __future__ import annotations

import pytest

from specrunner.engines.sglang.room import check_room, check_served, check_whole
from specrunner.errors import CaptureIncomplete, ModelUnsupported


@pytest.mark.parametrize(("context", "cache", "fits"), [(64, 128, True), (65, 128, False), (64, 129, False)])
def test_both_the_context_and_the_cache_have_to_hold_a_request(context: int, cache: int, fits: bool) -> None:
    described = {"context_length": 64, "max_total_tokens": 128}
    if fits:
        check_room(described, 60, 4, context, cache)
        return
    with pytest.raises(ModelUnsupported) as caught:
        check_room(described, 60, 4, context, cache)
    said = "60 prompt tokens and 4 new ones are more than sglang's room for 64 (context of 64, cache of 128)"
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("context", "cache", "page", "block", "prompt", "most"),
    [
        (128, 2048, 1, None, 100, 26),
        (2048, 128, 1, None, 100, 25),
        (2048, 256, 64, None, 100, 62),
        (2048, 82, 1, 16, 32, 31),
        (64, 2048, 1, 16, 40, 22),
        (63, 2048, 1, 16, 40, 8),
    ],
)
def test_the_scheduler_keeps_its_reserve(
    context: int, cache: int, page: int, block: int | None, prompt: int, most: int
) -> None:
    described = {"context_length": context, "max_total_tokens": cache, "page_size": page}
    check_served(described, prompt, most, block)
    with pytest.raises(ModelUnsupported, match="sglang's room"):
        check_served(described, prompt, most + 1, block)


def test_a_generation_cut_short_is_an_error() -> None:
    with pytest.raises(CaptureIncomplete, match="ended at 2 tokens of 3 by a limit of its own"):
        check_whole([1, 2], "length", 3)
    for output, reason in (([1, 2, 3], "length"), ([1, 2, 3, 4], "length"), ([1], "stop"), ([1], None)):
        check_whole(output, reason, 3)
