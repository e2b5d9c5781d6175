// Makes elements. Text from a run is only ever set as text, never read as markup.

const SVG = "http://www.w3.org/2000/svg";
let labels = {};

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== "") element.append(child);
  }
  return element;
}

function badge(verdict) {
  return make("span", { class: "badge v-" + verdict }, labels[verdict] || verdict);
}

function section(title, ...children) {
  return make("section", { class: "panel" }, make("h2", {}, title), ...children);
}

function say(text) {
  document.getElementById("said").textContent = text;
}

function copyButton(text, label) {
  const button = make("button", { type: "button", class: "copy" }, label);
  button.addEventListener("click", async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      done = copyBySelection(text);
    }
    button.textContent = done ? "Copied" : "Select it and copy";
    say(button.textContent);
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

function copyBySelection(text) {
  const area = make("textarea", { class: "hidden", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? value.toLocaleString("en") : value.toExponential(3);
    if (Math.abs(value) > 0.9 && Math.abs(value) < 1.1) return String(Number(value.toPrecision(9)));
    const size = Math.abs(value);
    return size < 1e-4 || size >= 1e6 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  }
  if (Array.isArray(value)) {
    const shown = value.slice(0, 24).map(formatNumber).join(", ");
    return value.length ? "[" + shown + (value.length > 24 ? ", … " + value.length + " in all" : "") + "]" : "none";
  }
  if (typeof value === "object") {
    return Object.entries(value).map(([name, item]) => name + " " + formatNested(item)).join(", ") || "none";
  }
  return String(value);
}

function formatNested(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value)
    ? "(" + formatNumber(value) + ")" : formatNumber(value);
}

function formatSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 99.95) return seconds.toFixed(seconds < 9.995 ? 2 : 1) + " s";
  const whole = Math.round(seconds);
  if (whole < 3600) return Math.floor(whole / 60) + " min " + String(whole % 60).padStart(2, "0") + " s";
  return Math.floor(whole / 3600) + " h " + String(Math.floor((whole % 3600) / 60)).padStart(2, "0") + " min";
}

function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", { class: "facts" }, shown.flatMap(([name, value]) => [
    make("dt", {}, name), make("dd", {}, value instanceof Node ? value : formatNumber(value)),
  ]));
}

function table(head, rows, attributes = {}) {
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": attributes.label || "table" },
    make("table", { class: attributes.class },
      make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, rows)));
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}
