// The list of all cases: filters, search, and only those rows that are on the screen.

let order = [];
const view = { cases: [], shown: [], words: "", verdicts: new Set(), engine: "", suite: "", tag: "", sort: "worst", focused: 0 };

function buildOverview(cases, report) {
  view.cases = cases;
  document.getElementById("filters").replaceChildren(...filterBar(cases, report));
  document.getElementById("facts").replaceChildren(...runSections(report));
  applyFilters();
  addEventListener("scroll", () => requestAnimationFrame(showRows), { passive: true });
  addEventListener("resize", () => requestAnimationFrame(showRows));
}

function filterBar(cases, report) {
  const search = make("input", { type: "text", role: "searchbox", id: "search", placeholder: "Search  ( / )", "aria-label": "Search cases",
    oninput: (event) => { view.words = event.target.value.toLowerCase(); applyFilters(); } });
  const chips = order.filter((verdict) => report.counts[verdict]).map((verdict) => make("button", {
    type: "button", class: "chip v-" + verdict, "aria-pressed": "false", "data-verdict": verdict,
    onclick: (event) => {
      const button = event.currentTarget;
      if (!view.verdicts.delete(verdict)) view.verdicts.add(verdict);
      button.setAttribute("aria-pressed", String(view.verdicts.has(verdict)));
      applyFilters();
    },
  }, `${report.counts[verdict].toLocaleString("en")} ${verdict}`));
  const choose = (field, label, values) => {
    const options = [...new Set(values)].sort();
    if (options.length < 2) return null;
    return make("select", { "aria-label": label, onchange: (event) => { view[field] = event.target.value; applyFilters(); } },
      make("option", { value: "" }, label), options.map((value) => make("option", { value }, value)));
  };
  const sort = make("select", { "aria-label": "Order", onchange: (event) => { view.sort = event.target.value; applyFilters(); } },
    make("option", { value: "worst" }, "worst first"), make("option", { value: "plan" }, "in the spec's order"),
    make("option", { value: "slow" }, "slowest first"));
  return [
    make("div", { class: "chips", role: "group", "aria-label": "Verdicts" }, chips),
    make("div", { class: "choices" }, search,
      choose("engine", "every engine", cases.map((entry) => entry.engine)),
      choose("suite", "every spec", cases.map((entry) => entry.suite)),
      choose("tag", "every tag", cases.flatMap((entry) => entry.tags)), sort),
    make("p", { class: "quiet small", id: "shown", role: "status" }),
  ];
}

function applyFilters() {
  const words = view.words.split(/\s+/).filter(Boolean);
  view.shown = view.cases.filter((entry) =>
    (!view.verdicts.size || view.verdicts.has(entry.verdict)) && (!view.engine || entry.engine === view.engine)
    && (!view.suite || entry.suite === view.suite) && (!view.tag || entry.tags.includes(view.tag))
    && words.every((word) => entry.haystack.includes(word)));
  if (view.sort === "worst") view.shown.sort((one, two) => order.indexOf(one.verdict) - order.indexOf(two.verdict) || one.index - two.index);
  if (view.sort === "slow") view.shown.sort((one, two) => two.seconds - one.seconds);
  const total = `${view.cases.length.toLocaleString("en")} ${view.cases.length === 1 ? "case" : "cases"}`;
  const all = view.shown.length === view.cases.length;
  document.getElementById("shown").textContent = all ? total : `${view.shown.length.toLocaleString("en")} of ${total}`;
  view.focused = 0;
  showRows(true);
}

function rowHeight() {
  return matchMedia("(max-width: 640px)").matches ? 74 : 50;
}

function showRows(anew) {
  const list = document.getElementById("list");
  if (document.getElementById("overview").hidden) return;
  const height = rowHeight();
  list.style.height = `${Math.max(1, view.shown.length) * height}px`;
  const above = -list.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(above / height) - 6);
  const last = Math.min(view.shown.length, Math.ceil((above + innerHeight) / height) + 6);
  if (anew === true) list.replaceChildren();
  const kept = new Map();
  for (const row of [...list.children]) {
    const place = Number(row.dataset.place);
    if (place >= first && place < last || row === document.activeElement) kept.set(place, row);
    else row.remove();
  }
  let before = null;
  for (let place = first; place < last; place += 1) {
    const row = kept.get(place) || caseRow(view.shown[place], place, height);
    if (!kept.has(place)) list.insertBefore(row, before ? before.nextSibling : list.firstChild);
    before = row;
  }
  if (!view.shown.length) list.replaceChildren(make("p", { class: "quiet" }, "No case fits."));
}

function caseRow(entry, place, height) {
  const row = make("a", { class: "row", role: "listitem", href: caseLink(entry), "data-place": place,
    "aria-setsize": view.shown.length, "aria-posinset": place + 1 },
  badge(entry.verdict),
  make("span", { class: "names" }, make("span", { class: "id" }, entry.id), make("span", { class: "quiet small" }, entry.suite)),
  make("span", { class: "message" }, entry.message),
  make("span", { class: "quiet small seconds" }, formatSeconds(entry.seconds)));
  row.style.transform = `translateY(${place * height}px)`;
  row.addEventListener("focus", () => { view.focused = place; });
  return row;
}

function moveFocus(place) {
  if (!view.shown.length) return;
  view.focused = Math.max(0, Math.min(view.shown.length - 1, place));
  const list = document.getElementById("list");
  const height = rowHeight();
  const top = list.getBoundingClientRect().top + scrollY + view.focused * height;
  if (top < scrollY + 60 || top + height > scrollY + innerHeight) scrollTo(0, Math.max(0, top - innerHeight / 2));
  showRows();
  const row = list.querySelector(`[data-place="${view.focused}"]`);
  if (row) row.focus({ preventScroll: true });
}

function runSections(report) {
  const { run, environment, sessions } = report;
  const rows = sessions.map((session) => make("tr", { class: session.end || session.failed ? "wrong" : "" },
    make("td", { class: "whole" }, session.label), make("td", {}, formatSeconds(session.load_seconds) || (session.kept ? "not loaded" : "never ready")),
    make("td", {}, `${session.answered} of ${session.requests - session.kept}`), make("td", {}, String(session.kept)), make("td", {}, formatNumber(session.tensors)),
    make("td", {}, formatNumber(session.tokens)), make("td", {}, String(session.starts)), make("td", {}, session.end || "")));
  return [
    section("Sessions", table(["engine process", "load", "requests", "kept", "tensors", "tokens", "starts", "ended because"], rows, { label: "sessions" })),
    section("Run", facts([["command", run.command.join(" ")], ["started", run.started_at], ["took", formatSeconds(run.seconds)],
      ["ended", run.complete ? (run.interrupted ? "early, interrupted" : "in order") : "early"], ["exit status", run.exit_code],
      ...flatten(environment)])),
  ];
}
