// Maps drawn cell by cell: errors by token, and attention geometry.

function cellMap(columns, rows, paint, describe, label) {
  const canvas = make("canvas", { class: "map", role: "img", tabindex: "0", "aria-label": label });
  const size = Math.max(2, Math.min(22, Math.floor(760 / columns)));
  const tall = Math.max(4, Math.min(18, Math.floor(480 / rows)));
  const side = describe.square ? Math.max(2, Math.min(18, Math.floor(340 / Math.max(columns, rows)))) : 0;
  const [wide, high] = side ? [side, side] : [size, tall];
  canvas.width = columns * wide;
  canvas.height = rows * high;
  const gap = Math.min(wide, high) > 5 ? 1 : 0;
  const repaint = () => {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        context.fillStyle = paint(row, column);
        context.fillRect(column * wide, row * high, wide - gap, high - gap);
      }
    }
  };
  repaint();
  document.addEventListener("themechange", repaint);
  const cursor = { row: 0, column: 0 };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    cursor.column = Math.min(columns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * columns)));
    cursor.row = Math.min(rows - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * rows)));
    describe.show(cursor.row, cursor.column);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    cursor.row = Math.min(rows - 1, Math.max(0, cursor.row + move[0]));
    cursor.column = Math.min(columns - 1, Math.max(0, cursor.column + move[1]));
    describe.show(cursor.row, cursor.column);
  });
  return canvas;
}

function heatSection(detail) {
  const seen = new Map();
  for (const check of tellingChecks(detail).filter((one) => [detail.side, ""].includes(one.against))) {
    const errors = check.measurements.token_errors;
    if (errors && errors.largest && !seen.has(check.subject)) seen.set(check.subject, errors);
  }
  const groups = new Map();
  for (const [name, errors] of seen) {
    const key = errors.tokens + "/" + errors.tokens_per_number;
    groups.set(key, [...(groups.get(key) || []), [name, errors]]);
  }
  if (!groups.size) return null;
  return section("Error by token", make("p", { class: "quiet" },
    "Relative L2 error of each token, of the tensors that failed; the scale is logarithmic."),
  [...groups.values()].map(heatMap));
}

function heatMap(entries) {
  const [, shape] = entries[0];
  const values = entries.flatMap(([, errors]) => errors.largest).filter((value) => isNumber(value) && value > 0);
  const low = values.length ? Math.log10(Math.min(...values)) : 0;
  const high = values.length ? Math.log10(Math.max(...values)) : 1;
  const readout = make("p", { class: "readout quiet" },
    `from ${formatNumber(10 ** low)} (pale) to ${formatNumber(10 ** high)} (dark); point at a cell, or use the arrow keys`);
  const per = shape.tokens_per_number;
  const show = (row, column) => {
    const [name, errors] = entries[row];
    const peer = errors.peer ? ` · noise floor ${formatNumber(errors.peer[column])}` : "";
    const last = Math.min(shape.tokens, (column + 1) * per) - 1;
    const where = per === 1 ? `token ${column}` : `worst of tokens ${column * per} to ${last}`;
    readout.textContent = `${name}, ${where}: ${formatNumber(errors.largest[column])}${peer}`;
  };
  const paint = (row, column) => {
    const value = entries[row][1].largest[column];
    if (!isNumber(value)) return colour("bad");
    if (value <= 0) return colour("cell");
    return heatColour(high > low ? (Math.log10(value) - low) / (high - low) : 1);
  };
  const columns = shape.largest.length;
  const label = `Heat map: ${entries.length} tensors by ${columns} tokens`;
  return make("div", { class: "mapped" },
    make("div", { class: "scroll" }, cellMap(columns, entries.length, paint, { show }, label)),
    make("ol", { class: "rownames", "aria-label": "rows, from the top" }, entries.map(([name]) => make("li", {}, name))), readout);
}

function heatColour(share) {
  const from = colour("heat-low").split(" ").map(Number);
  const to = colour("heat-high").split(" ").map(Number);
  return `rgb(${from.map((value, index) => Math.round(value + (to[index] - value) * share)).join(" ")})`;
}

function attentionSections(detail) {
  return tellingChecks(detail).filter((check) => Array.isArray(check.measurements.expected)
    && Array.isArray(check.measurements.found) && check.measurements.expected.length
    && check.measurements.expected.every((row) => typeof row === "string")).map((check) => {
    const { expected, found, mismatches, first } = check.measurements;
    const readout = make("p", { class: "readout quiet" }, "Filled: the query (row) sees the key (column). Red: not as expected.");
    const differs = (row, column) => (expected[row] || "")[column] !== (found[row] || "")[column];
    const side = (grid, name) => {
      const columns = Math.max(1, ...grid.map((row) => row.length));
      const paint = (row, column) => {
        const seen = (grid[row] || "")[column] === "1";
        if (grid === found && differs(row, column)) return colour(seen ? "bad" : "bad-pale");
        return seen ? colour("seen") : colour("cell");
      };
      const show = (row, column) => {
        const word = (value) => value === "1" ? "seen" : "not seen";
        readout.textContent = `query ${row}, key ${column}: expected ${word((expected[row] || "")[column])}, found ${word((found[row] || "")[column])}`;
      };
      return make("figure", {}, make("figcaption", {}, name),
        make("div", { class: "scroll" }, cellMap(columns, grid.length, paint, { show, square: true }, `${name} attention, ${grid.length} queries`)));
    };
    const wrong = mismatches ? `${formatNumber(mismatches)} pairs differ` : "no pair differs";
    const start = Array.isArray(first) ? `, the first at query ${first[0]}, key ${first[1]}` : "";
    return section("Attention geometry", make("p", {}, wrong + start),
      make("div", { class: "pair" }, side(expected, "expected"), side(found, "found")), readout);
  });
}
