"""What a worker says of an exception, and what it leaves in its log."""

from __future__ import annotations

import pytest

from specrunner.errors import EngineError, ModelUnavailable
from specrunner.sessions.worker import describe_error


def raise_from(error: Exception, cause: Exception | None) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


@pytest.mark.parametrize(
    ("error", "cause", "advice"),
    [
        (EngineError("could not load it"), ImportError("No module named 'torch'"), "specrunner engines doctor"),
        (ModuleNotFoundError("No module named 'torch'"), None, "specrunner engines doctor"),
        (EngineError("could not load it"), TypeError("f() got an unexpected keyword argument 'atn'"), "`options`"),
        (EngineError("could not load it", help="sell it"), ImportError("torch"), "sell it"),
        (EngineError("could not load it"), TypeError("not callable"), None),
    ],
)
def test_a_known_cause_brings_its_remedy(error: Exception, cause: Exception | None, advice: str | None) -> None:
    told = describe_error(raise_from(error, cause))["help"]
    assert told is None if advice is None else advice in told


def test_an_expected_error_alone_leaves_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe_error(raise_from(ModelUnavailable("no directory x"), None))["message"] == "no directory x"
    assert capsys.readouterr().err == ""
    describe_error(raise_from(ModelUnavailable("could not read it"), OSError("broken")))
    assert "OSError: broken" in capsys.readouterr().err
