// The page of one case: the cause first, then everything that is known.

function casePage(detail, entry, report, neighbours) {
  return [
    make("nav", { class: "trail", "aria-label": "Cases" },
      make("a", { href: "#/", class: "back" }, "← all cases"),
      neighbours.previous ? make("a", { href: caseLink(neighbours.previous), rel: "prev" }, "previous") : null,
      neighbours.next ? make("a", { href: caseLink(neighbours.next), rel: "next" }, "next") : null),
    make("header", { class: "title" },
      make("h1", { tabindex: "-1" }, badge(detail.verdict), " ", detail.id),
      make("p", { class: "quiet" }, make("code", {}, detail.where), ` · ${detail.model.label} · took ${formatSeconds(detail.seconds)}`),
      detail.description ? make("p", {}, detail.description) : null),
    causePanel(detail, entry),
    make("div", { class: "columns" }, errorSection(detail), sourceSection(detail)),
    heatSection(detail), attentionSections(detail), tokenSections(detail), trajectorySection(detail),
    checksSection(detail), logSection(detail), attemptsSection(detail), sidesSection(detail), inputSection(detail),
    report.slim && ["passed", "skipped"].includes(detail.verdict)
      ? make("p", { class: "quiet" }, "Of what passed in a large run, this page keeps what its rules judged; the JSON report has every measurement.") : null,
  ].flat().filter(Boolean);
}

function caseLink(entry) {
  return "#/case/" + encodeURIComponent(entry.nodeId);
}

function causePanel(detail, entry) {
  const first = detail.checks[detail.first_failed];
  const lines = [];
  if (detail.verdict === "passed") lines.push(make("p", {}, `Every one of ${detail.checks.length} checks holds.`));
  if (detail.verdict === "xpassed" || detail.verdict === "xfailed") {
    lines.push(make("p", {}, detail.verdict === "xfailed" ? "Fails as the spec expects: " : `${entry.message}. The spec expects: `,
      make("strong", {}, detail.xfail)));
  }
  if (detail.failure) lines.push(...failureLines(detail.failure));
  if (first) lines.push(...divergenceLines(detail, first));
  return make("section", { class: "panel cause v-edge-" + detail.verdict, "aria-label": "Cause" }, lines, sideLines(detail),
    make("div", { class: "again" }, make("code", {}, detail.command), copyButton(detail.command, "Copy")));
}

function failureLines(failure) {
  const role = failure.role ? failure.role + ": " : "";
  const tail = failure.log_tail.trimEnd().split("\n").slice(-6).join("\n");
  return [
    make("p", { class: "statement" }, make("span", { class: "kind" }, failure.kind), " ", role + failure.message),
    failure.help ? make("p", {}, make("strong", {}, "help: "), failure.help) : null,
    tail && !tail.includes(failure.message) ? make("pre", { class: "log", tabindex: "0", "aria-label": "the engine's last lines" }, tail) : null,
  ];
}

// The checks of the repeat that the case is told by, and what compares all repeats.
function tellingChecks(detail) {
  return detail.checks.filter((check) => [detail.telling, 0].includes(check.repeat));
}

function againstGolden(check) {
  return check.against === "golden" ? " against the golden" : "";
}

function divergenceLines(detail, first) {
  const diagnosis = detail.diagnosis || {};
  const subject = diagnosis.tensor || first.subject;
  const where = isNumber(diagnosis.token) ? ` at token ${diagnosis.token}` : "";
  const size = isNumber(diagnosis.factor) ? `, ${formatNumber(diagnosis.factor)} times what is allowed` : "";
  return [
    make("p", { class: "statement" }, make("code", {}, subject), ` is the first that went wrong${againstGolden(first)}${where}${size}`),
    detail.flaky ? make("p", {}, detail.flaky) : null,
    make("p", { class: "why" }, first.message),
    first.margins.map(marginLine),
    (diagnosis.findings || []).length ? make("ul", { class: "findings" }, diagnosis.findings.map((text) => make("li", {}, text))) : null,
    make("p", { class: "quiet small" }, [`${first.rule}${againstGolden(first)}${first.location ? ", " + first.location : ""}${detail.repeat > 1 ? `, repeat ${first.repeat} of ${detail.repeat}` : ""}`, detail.later,
      (detail.worst || []).join(" · ")].filter(Boolean).join(" · ")),
  ];
}

function sideLines(detail) {
  const side = (name) => detail[name]
    ? [name, [`${detail[name].engine}/${detail[name].dtype}`, ...detail[name].words, describeOptions(detail[name].options)].filter(Boolean).join(" · ")]
    : [name, ""];
  return facts([["prompt", describePrompt(detail.prompt || {})], side("candidate"), side("reference"), ["golden", detail.golden]]);
}

function describeOptions(options) {
  return Object.entries(options || {}).map(([name, value]) => `${name}=${formatNumber(value)}`).join(", ");
}

function describePrompt(prompt) {
  const cut = (text) => text.length > 160 ? text.slice(0, 159) + "…" : text;
  if (typeof prompt.text === "string") return `“${cut(prompt.text)}”`;
  if (Array.isArray(prompt.messages)) {
    const last = prompt.messages[prompt.messages.length - 1] || {};
    return `${prompt.messages.length === 1 ? "1 message" : prompt.messages.length + " messages, the last"}: “${cut(String(last.content || ""))}”`;
  }
  return Array.isArray(prompt.token_ids) ? `${prompt.token_ids.length} token ids ${formatNumber(prompt.token_ids)}` : "";
}

function sourceSection(detail) {
  if (!detail.source) return null;
  const { path, start, lines, marks } = detail.source;
  return section("Spec", make("p", { class: "quiet small" }, make("code", {}, path)),
    make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "the spec's text" },
      make("ol", { class: "source", start }, lines.map((line, index) =>
        make("li", { class: marks.includes(start + index) ? "mark" : "", "data-line": start + index }, line || " ")))));
}

function logSection(detail) {
  const log = detail.failure ? detail.failure.log_tail.trimEnd() : "";
  if (!log) return null;
  const count = log.split("\n").length;
  return section(`Engine log, the last ${count} lines`, make("pre", { class: "log tall", tabindex: "0", "aria-label": "engine log" }, log));
}

function attemptsSection(detail) {
  if (!detail.attempts.length) return null;
  return section("Earlier attempts", make("ol", {}, detail.attempts.map((attempt) => {
    const wrong = attempt.checks.find((check) => check.gates && !check.passed);
    const text = attempt.failure ? attempt.failure.message : wrong ? `${wrong.subject}: ${wrong.message}` : "";
    return make("li", {}, badge(attempt.verdict), " ", text);
  })));
}

function sidesSection(detail) {
  const sides = ["candidate", "reference"].filter((side) => detail[side]);
  const flat = sides.map((side) => flatten({ ...detail[side].options, device: detail[side].device, ...detail[side].facts }));
  const names = [...new Set(flat.flatMap((values) => [...values.keys()]))];
  const rows = names.map((name) => {
    const shown = flat.map((values) => values.has(name) ? formatNumber(values.get(name)) : "");
    const differs = shown.length > 1 && shown[0] !== shown[1];
    return make("tr", { class: differs ? "changed" : "" }, make("th", { scope: "row" }, name), shown.map((text) => make("td", {}, text)));
  });
  return section("What ran", table(["", ...sides.map((side) => `${side} ${detail[side].engine}/${detail[side].dtype}`)], rows,
    { class: "sides", label: "what ran" }));
}

function flatten(value, prefix = "", into = new Map()) {
  for (const [name, item] of Object.entries(value || {})) {
    if (name === "trajectory") continue;
    if (item !== null && typeof item === "object" && !Array.isArray(item)) flatten(item, prefix + name + ".", into);
    else into.set(prefix + name, item);
  }
  return into;
}

function inputSection(detail) {
  const parts = [];
  if (detail.prompt && Object.keys(detail.prompt).length) {
    const { text, messages, token_ids: ids } = detail.prompt;
    parts.push(make("pre", { class: "log", tabindex: "0", "aria-label": "prompt" }, text || JSON.stringify(messages || ids || detail.prompt, null, 1)));
  }
  if (detail.benchmark) parts.push(facts(Object.entries(detail.benchmark)));
  if (detail.decode) parts.push(facts(Object.entries(detail.decode)));
  return section("Input", parts);
}
