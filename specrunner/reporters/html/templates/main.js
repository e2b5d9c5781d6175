// The page as a whole: its routes, keys and colours.

const page = { report: null, cases: [], scroll: 0 };

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser lacks DecompressionStream; one of 2023 or later has it");
  const [report, rows] = await Promise.all([unpack("run"), unpack("cases")]);
  page.report = report;
  labels = report.labels;
  order = report.order;
  page.cases = rows.map(toCase);
  buildOverview(page.cases, report);
  addEventListener("hashchange", route);
  addEventListener("keydown", handleKey);
  await route();
  document.documentElement.dataset.ready = "true";
}

async function route() {
  const wanted = location.hash.startsWith("#/case/") ? decodeURIComponent(location.hash.slice(7)) : null;
  const entry = wanted === null ? null : page.cases.find((one) => one.nodeId === wanted);
  const overview = document.getElementById("overview");
  const article = document.getElementById("case");
  if (wanted !== null && !entry) report(new Error(`this report has no case ${wanted}`));
  if (!entry) {
    const back = !article.hidden;
    article.hidden = true;
    overview.hidden = false;
    showRows(true);
    if (back) { scrollTo(0, page.scroll); moveFocus(view.focused); }
    return;
  }
  if (!overview.hidden) page.scroll = scrollY;
  const detail = await loadDetails(entry.index, page.report.chunk);
  article.replaceChildren(...casePage(detail, entry, page.report, findNeighbours(entry)));
  overview.hidden = true;
  article.hidden = false;
  document.getElementById("problem").hidden = true;
  scrollTo(0, 0);
  article.querySelector("h1").focus({ preventScroll: true });
}

function findNeighbours(entry) {
  const among = view.shown.includes(entry) ? view.shown : page.cases;
  const place = among.indexOf(entry);
  return { previous: among[place - 1], next: among[place + 1] };
}

function handleKey(event) {
  const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (writing) event.target.blur();
    else if (!document.getElementById("case").hidden) location.hash = "#/";
  } else if (!writing && event.key === "/") {
    event.preventDefault();
    if (!document.getElementById("case").hidden) location.hash = "#/";
    setTimeout(() => document.getElementById("search").focus(), 0);
  } else if (!writing && !document.getElementById("overview").hidden) {
    const inside = event.target.classList.contains("row");
    const step = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && (inside || event.key === "j" || event.key === "k")) {
      event.preventDefault();
      moveFocus(inside ? view.focused + step : view.focused);
    }
  } else if (!writing && (event.key === "j" || event.key === "k")) {
    const link = document.querySelector(`#case .trail a[rel="${event.key === "j" ? "next" : "prev"}"]`);
    if (link) link.click();
  }
}

function report(error) {
  const problem = document.getElementById("problem");
  problem.textContent = error.message;
  problem.hidden = false;
}

const THEMES = ["system", "light", "dark"];

function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  document.getElementById("theme").setAttribute("aria-label", name === "system" ? "Colours: as the system" : `Colours: ${name}`);
  document.dispatchEvent(new Event("themechange"));
}

document.getElementById("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || "system";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  setTheme(next);
  say(`Colours: ${next}`);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
start().catch(report);
