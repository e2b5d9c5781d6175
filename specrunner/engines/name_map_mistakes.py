"""What is wrong in a name map, and where it stands: people write these files by hand."""

from __future__ import annotations

from functools import cache

from specrunner.spec.diagnostics import Diagnostic, sort_diagnostics
from specrunner.spec.merge import span_at
from specrunner.spec.schema import Check, Compiler, load_schema
from specrunner.spec.source import Source
from specrunner.spec.tree import Map

SCHEMA = "name-map.schema.json"


def find_mistakes(source: Source) -> tuple[Diagnostic, ...]:
    """Return what is wrong in a map, in the order of its lines: what breaks the schema, in the words of specs."""
    if source.diagnostics and source.diagnostics[0].code != "empty-file":
        return source.diagnostics
    if not isinstance(source.root, Map):
        example = "a map begins with `architectures: [NameForCausalLM]` and lists its `tensors`"
        return (source.diagnose("wrong-type", "a name map must be a mapping", (0, 1), example),)
    if _compile_schema()(source.root):
        return ()
    from specrunner.spec.explain import explain

    found = []
    for finding in explain(None, source.root, SCHEMA):
        span, _ = span_at(source.root, finding.path, finding.at_key)
        found.append(source.diagnose(finding.code, finding.message, span, finding.help))
    return sort_diagnostics(found)


@cache
def _compile_schema() -> Check:
    schema = load_schema(SCHEMA)
    return Compiler(schema).compile(schema)
