// The checks of a case: each measurement beside its limit.

function gauge(share) {
  const width = 120;
  const limit = 80;
  const reach = share <= 0 ? 0 : share <= 1 ? limit * share : Math.min(width, limit + 10 * Math.log2(share) + 4);
  return draw("svg", { class: "gauge", viewBox: `0 0 ${width} 10`, width, height: 10, role: "img",
    "aria-label": `${formatNumber(share)} of what the limit allows` },
  draw("rect", { class: "gauge-track", x: 0, y: 2, width, height: 6, rx: 3 }),
  draw("rect", { class: share > 1 ? "gauge-over" : "gauge-within", x: 0, y: 2, width: Math.max(reach, share > 0 ? 2 : 0), height: 6, rx: 3 }),
  draw("path", { class: "gauge-limit", d: `M${limit} 0V10` }));
}

function marginLine([name, measured, limit, relation, share]) {
  return make("div", { class: "margin" },
    make("span", { class: "measured" }, `${name} ${formatNumber(measured)}`),
    make("span", { class: "quiet" }, ` ${relation} ${formatNumber(limit)}`),
    isNumber(share) ? gauge(share) : null,
    make("span", { class: share > 1 ? "distance wrong" : "distance quiet" }, describeShare(share)));
}

function describeShare(share) {
  if (!isNumber(share)) return "";
  if (share > 1) return `${formatNumber(Number(share.toPrecision(3)))} times what the limit allows`;
  return `${formatNumber(Number((100 * share).toPrecision(3)))} % of what the limit allows`;
}

// One row for what several repeats of a case found alike, to the last digit, with the numbers of all of them.
function foldRepeats(checks) {
  const rows = new Map();
  for (const check of checks) {
    const key = JSON.stringify({ ...check, repeat: null });
    if (rows.has(key)) rows.get(key).repeats.push(check.repeat);
    else rows.set(key, { ...check, repeats: [check.repeat] });
  }
  return [...rows.values()];
}

function nameRepeats(check, repeats) {
  if (repeats === 1 || !check.repeat) return "";
  return `, repeat${check.repeats.length > 1 ? "s" : ""} ${check.repeats.join(", ")}`;
}

function checkRow(check, repeats) {
  const words = check.fails ? ["FAIL", "failed"] : check.passed ? ["ok", "passed"] : ["trend", "skipped"];
  const limits = check.margins.length ? check.margins.map(marginLine)
    : [make("span", { class: "quiet" }, Object.keys(check.limits).length ? formatNumber(check.limits) : "")];
  const numbers = Object.entries(check.measurements).filter(([name]) => !["expected", "found", "token_errors"].includes(name));
  const more = make("details", {}, make("summary", {}, `${numbers.length} measurements`));
  more.addEventListener("toggle", () => {
    if (more.open && more.children.length === 1) more.append(facts(numbers));
  });
  return make("tr", { class: check.fails ? "wrong" : "" },
    make("td", {}, make("span", { class: "badge v-" + words[1] }, words[0])),
    make("td", {}, make("code", {}, check.subject), make("div", { class: "quiet small" }, check.rule + againstGolden(check) + nameRepeats(check, repeats))),
    make("td", {}, check.message ? make("div", { class: check.fails ? "why" : "quiet" }, check.message) : null, limits,
      numbers.length ? more : null),
    make("td", { class: "quiet small" }, check.location));
}

function checksSection(detail) {
  if (!detail.checks.length) return null;
  const failed = detail.checks.filter((check) => check.fails);
  const body = make("div");
  const most = 60;
  const show = (judged, all) => {
    const checks = foldRepeats(judged);
    const shown = all ? checks : checks.slice(0, most);
    body.replaceChildren(table(["", "what", "measured, and its limit", "rule at"], shown.map((check) => checkRow(check, detail.repeat)), { class: "checks", label: "checks" }));
    if (shown.length < checks.length) {
      body.append(make("button", { type: "button", onclick: () => show(judged, true) }, `show all ${checks.length}`));
    }
  };
  const some = failed.length > 0 && failed.length < detail.checks.length;
  const box = make("input", { type: "checkbox", onchange: (event) => show(event.target.checked ? failed : detail.checks) });
  show(detail.checks);
  return section(`Checks: ${failed.length} of ${detail.checks.length} failed`,
    some ? make("label", { class: "check" }, box, " only those that failed") : null, body);
}
