"""Puts a run into the page: the template, its style and script, and the run's data, compressed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from specrunner.reporters.escape import escape_line
from specrunner.reporters.html.payload import CHUNK, describe_run, list_cases, make_details
from specrunner.reporters.record import RunRecord
from specrunner.reporters.wording import VERDICT_WORDS, describe_counts
from specrunner.results import Verdict
from specrunner.words import plural

_PARTS = ("data", "elements", "charts", "maps", "tokens", "checks", "case", "overview", "main")
SCRIPTS = tuple(f"{name}.js" for name in _PARTS)
"""The page's script, in the order in which its parts are joined."""

STYLES = ("page.css", "evidence.css")


def render_page(run: RunRecord) -> bytes:
    """Return the report of a run as one HTML file in UTF-8.

    The cases' data stand in it as JSON, compressed and in base64, so that nothing in it can be taken for markup; a
    content security policy allows the page's own script and style and nothing else.

    Args:
        run: the run, as the JSON report tells it.
    """
    script = _join(SCRIPTS)
    style = _join(STYLES)
    details = make_details(run)
    blobs = {"run": _pack(describe_run(run)), "cases": _pack(list_cases(run))}
    for start in range(0, len(details), CHUNK):
        blobs[f"details-{start // CHUNK}"] = _pack(details[start : start + CHUNK])
    environment = Environment(
        loader=PackageLoader("specrunner.reporters.html"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=escape_line(shlex.join(run.command)) or "specrunner",
        summary=", ".join(words for _, words in describe_counts(run.counts)) or "no cases",
        headline=describe_headline(run),
        bar=[(verdict.value, run.counts[verdict]) for verdict in VERDICT_WORDS if run.counts[verdict]],
        total=len(run.cases),
        blobs=blobs,
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
    )
    return page.encode("utf-8", "backslashreplace")


def describe_headline(run: RunRecord) -> str:
    """Return what a reader has to know first, one sentence."""
    counts = run.counts
    wrong = counts[Verdict.FAILED] + counts[Verdict.XPASSED]
    if not run.cases:
        return "There was no case to run"
    if not wrong and not counts[Verdict.ERROR]:
        verified = counts[Verdict.PASSED] + counts[Verdict.XFAILED]
        return f"All {plural(verified, 'case')} that ran hold" if verified else "Nothing was verified"
    parts = [plural(wrong, "case gives wrong numbers", "cases give wrong numbers")] if wrong else []
    if counts[Verdict.ERROR]:
        parts.append(plural(counts[Verdict.ERROR], "case has no evidence", "cases have no evidence"))
    return " · ".join(parts)


def _join(names: tuple[str, ...]) -> str:
    folder = files("specrunner.reporters.html") / "templates"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _pack(value: Any) -> str:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), compresslevel=6, mtime=0)).decode("ascii")


def _hash(text: str) -> str:
    """Return the source expression of the text for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
