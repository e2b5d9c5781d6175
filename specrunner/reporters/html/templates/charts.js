// The error through the model: one point a tensor in model order, on a log scale, over the noise floor.

const STREAM = /^(embeddings|layers\.\d+\.output|final_norm|logits|passes\.\d+\.logits)$/;
const CHART = { width: 720, height: 270, left: 58, right: 14, top: 14, bottom: 40 };

function errorSection(detail) {
  const rows = detail.growth || [];
  if (rows.length < 2) return null;
  const first = rows.find((row) => row.failed);
  const stream = rows.filter((row) => STREAM.test(row.tensor) || row === first);
  const holder = make("div");
  const readout = make("p", { class: "readout quiet" }, "Relative L2 error; point at a tensor, or use the arrow keys.");
  const local = new Map(((detail.diagnosis || {}).local || []).map((row) => [row.tensor, row.error]));
  const show = (shown) => holder.replaceChildren(errorChart(shown, local, readout), legend(shown, local));
  const all = stream.length > 1 && stream.length < rows.length;
  show(all ? stream : rows);
  const box = make("input", { type: "checkbox", onchange: (event) => show(event.target.checked ? rows : stream) });
  return section("Error through the model", holder, readout,
    all ? make("label", { class: "check" }, box, ` every tensor (${rows.length})`) : null);
}

function legend(rows, local) {
  const entry = (kind, text) => make("span", { class: "key" },
    draw("svg", { viewBox: "0 0 22 10", width: 22, height: 10, "aria-hidden": "true" },
      draw("path", { class: "line-" + kind, d: "M0 5H22" })), text);
  return make("p", { class: "legend" }, entry("error", "candidate"),
    rows.some((row) => isNumber(row.floor)) ? entry("floor", "noise floor (the peer)") : null,
    rows.some((row) => isNumber(row.limit)) ? entry("limit", "limit") : null,
    local.size ? entry("local", "local error (fed with the reference's input)") : null,
    make("span", { class: "key" }, make("span", { class: "dot-failed", "aria-hidden": "true" }), "outside its limit"));
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

function errorChart(rows, local, readout) {
  const { width, height, left, right, top, bottom } = CHART;
  const values = rows.flatMap((row) => [row.error, row.floor, row.limit, local.get(row.tensor)])
    .filter((value) => isNumber(value) && value > 0);
  let low = values.length ? Math.floor(Math.log10(Math.min(...values))) : -8;
  let high = values.length ? Math.ceil(Math.log10(Math.max(...values))) : 0;
  if (high === low) { high += 1; low -= 1; }
  const x = (index) => left + (width - left - right) * (rows.length === 1 ? 0.5 : index / (rows.length - 1));
  const plotBottom = height - bottom;
  const y = (value) => {
    if (!isNumber(value)) return top;
    if (value <= 0) return plotBottom;
    return plotBottom - (plotBottom - top) * (Math.log10(value) - low) / (high - low);
  };
  const svg = draw("svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0",
    "aria-label": "Relative L2 error of each tensor in model order, log scale",
  });
  for (const value of scaleTicks(low, high)) {
    svg.append(draw("path", { class: "grid", d: `M${left} ${y(value)}H${width - right}` }),
      draw("text", { class: "tick", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toExponential(0).replace("+", "")));
  }
  nameTensors(svg, rows, x, plotBottom);
  svg.append(draw("path", { class: "line-floor", d: trace(rows.map((row) => row.floor), x, y) }),
    draw("path", { class: "line-limit", d: trace(rows.map((row) => row.limit), x, y) }),
    draw("path", { class: "line-local", d: trace(rows.map((row) => local.get(row.tensor)), x, y) }),
    draw("path", { class: "line-error", d: trace(rows.map((row) => isNumber(row.error) ? row.error : 10 ** high), x, y) }));
  rows.forEach((row, index) => svg.append(draw("circle", {
    class: row.failed ? "point failed" : "point", cx: x(index), cy: y(row.error), r: row.failed ? 5 : 3,
  }, draw("title", {}, describeRow(row, local)))));
  makeReadable(svg, rows, x, readout, local);
  return svg;
}

function scaleTicks(low, high) {
  const step = Math.max(1, Math.ceil((high - low) / 7));
  const ticks = [];
  for (let power = low; power <= high; power += step) {
    for (const digit of high - low <= 2 && power < high ? [1, 2, 5] : [1]) ticks.push(digit * 10 ** power);
  }
  return ticks;
}

function nameTensors(svg, rows, x, bottom) {
  const most = 9;
  const first = rows.findIndex((row) => row.failed);
  rows.forEach((row, index) => {
    const spaced = rows.length <= most || index % Math.ceil(rows.length / most) === 0;
    const near = first >= 0 && index !== first && Math.abs(index - first) < rows.length / most;
    if (index !== first && (!spaced || near)) return;
    const anchor = index === 0 ? "start" : index === rows.length - 1 ? "end" : "middle";
    svg.append(draw("text", { class: row.failed ? "tick wrong" : "tick", x: x(index), y: bottom + 18, "text-anchor": anchor },
      row.tensor.replace(/^layers\.(\d+)\.output$/, "layer $1").replace(/^layers\./, "")));
  });
}

function trace(values, x, y) {
  let path = "";
  let open = false;
  values.forEach((value, index) => {
    if (!isNumber(value)) { open = false; return; }
    path += (open ? "L" : "M") + x(index).toFixed(1) + " " + y(value).toFixed(1);
    open = true;
  });
  return path;
}

function describeRow(row, local) {
  const parts = [`${row.tensor}: ${formatNumber(row.error)}`];
  if (row.floor !== null && row.floor !== undefined) {
    parts.push(`noise floor ${formatNumber(row.floor)}`);
    if (isNumber(row.error) && isNumber(row.floor) && row.floor > 0) parts.push(`${(row.error / row.floor).toPrecision(3)} times it`);
  }
  if (isNumber(row.limit)) parts.push(`limit ${formatNumber(row.limit)}`);
  if (local.has(row.tensor)) parts.push(`local ${formatNumber(local.get(row.tensor))}`);
  if (row.failed) parts.push("outside its limit");
  return parts.join(" · ");
}

function makeReadable(svg, rows, x, readout, local) {
  const cursor = draw("path", { class: "cursor", d: "" });
  svg.append(cursor);
  let at = -1;
  const show = (index) => {
    at = Math.max(0, Math.min(rows.length - 1, index));
    cursor.setAttribute("d", `M${x(at)} ${CHART.top}V${CHART.height - CHART.bottom}`);
    readout.textContent = describeRow(rows[at], local);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) * CHART.width / box.width;
    show(Math.round((place - x(0)) / Math.max(1, x(rows.length - 1) - x(0)) * (rows.length - 1)));
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -rows.length, End: rows.length }[event.key];
    if (step) { event.preventDefault(); show(at + step); }
  });
}
