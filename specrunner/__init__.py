"""specrunner: does this inference engine still compute the right thing?

What a program may use is named here, and nothing else is promised to stay. Each name is imported when it is first
used, so that `import specrunner` brings neither torch, numpy nor a YAML library.

    import specrunner

    cases = specrunner.check_capabilities(specrunner.load_specs(["specs"])).require_valid()
    run = specrunner.run_specs("specs/smoke", parameters={"engine": "hf"})
    for case in run.record.cases:
        print(case.node_id, case.verdict, case.message)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specrunner.comparing import Differences, compare
    from specrunner.engines.base import Capabilities, Capture, Engine
    from specrunner.engines.prompts import encode_prompt
    from specrunner.errors import (
        CaptureIncomplete,
        ConfigurationError,
        EngineError,
        EngineOutOfMemory,
        ExitCode,
        ModelUnavailable,
        ModelUnsupported,
        NothingVerified,
        SpecError,
        SpecrunnerError,
        UsageError,
    )
    from specrunner.plan.build import make_plan
    from specrunner.plan.capabilities import check_capabilities
    from specrunner.plan.model import Plan
    from specrunner.reporters.json import read_run
    from specrunner.reporters.record import CaseRecord, RunRecord
    from specrunner.requests import Request, Session
    from specrunner.results import CheckResult, Verdict
    from specrunner.spec.diagnostics import Diagnostic
    from specrunner.spec.loader import LoadedSpecs, load_specs
    from specrunner.spec.model import Case
    from specrunner.spec.tensor_names import match_name
    from specrunner.testing import SpecRun, run_specs

__version__ = "0.1.0.dev0"

__all__ = [
    "Capabilities",
    "Capture",
    "CaptureIncomplete",
    "Case",
    "CaseRecord",
    "CheckResult",
    "ConfigurationError",
    "Diagnostic",
    "Differences",
    "Engine",
    "EngineError",
    "EngineOutOfMemory",
    "ExitCode",
    "LoadedSpecs",
    "ModelUnavailable",
    "ModelUnsupported",
    "NothingVerified",
    "Plan",
    "Request",
    "RunRecord",
    "Session",
    "SpecError",
    "SpecRun",
    "SpecrunnerError",
    "UsageError",
    "Verdict",
    "__version__",
    "check_capabilities",
    "compare",
    "encode_prompt",
    "load_specs",
    "make_plan",
    "match_name",
    "read_run",
    "run_specs",
]

_MODULES = {
    "comparing": ("Differences", "compare"),
    "engines.base": ("Capabilities", "Capture", "Engine"),
    "engines.prompts": ("encode_prompt",),
    "errors": (
        *("ConfigurationError", "ExitCode", "NothingVerified", "SpecError", "SpecrunnerError", "UsageError"),
        *("CaptureIncomplete", "EngineError", "EngineOutOfMemory", "ModelUnavailable", "ModelUnsupported"),
    ),
    "plan.build": ("make_plan",),
    "plan.capabilities": ("check_capabilities",),
    "plan.model": ("Plan",),
    "reporters.json": ("read_run",),
    "reporters.record": ("CaseRecord", "RunRecord"),
    "requests": ("Request", "Session"),
    "results": ("CheckResult", "Verdict"),
    "spec.diagnostics": ("Diagnostic",),
    "spec.loader": ("LoadedSpecs", "load_specs"),
    "spec.model": ("Case",),
    "spec.tensor_names": ("match_name",),
    "testing": ("SpecRun", "run_specs"),
}
"""Where each name lives."""


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            found = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
