// Tokens: where two runs part, near ties, experts, and the way a diffusion decode took.

function tokenSections(detail) {
  return tellingChecks(detail).flatMap((check) => [windowSection(check), tieSection(check), routingSection(check)]);
}

function windowSection(check) {
  const { candidate_window: ours, reference_window: theirs, window_start: start, first_mismatch: at } = check.measurements;
  if (!Array.isArray(ours) || !Array.isArray(theirs) || !isNumber(start)) return null;
  const length = Math.max(ours.length, theirs.length);
  const row = (name, ids) => make("tr", {}, make("th", { scope: "row" }, name), Array.from({ length }, (_, index) => {
    const differs = ours[index] !== theirs[index];
    const mark = start + index === at ? " first" : "";
    return make("td", { class: (differs ? "differs" : "same") + mark }, index < ids.length ? String(ids[index]) : "end");
  }));
  return section((check.subject === "tokens" ? "Token ids around the first mismatch" : `Token ids of ${check.subject}`) + againstGolden(check),
    table(["position", ...Array.from({ length }, (_, index) => String(start + index))],
      [row(check.against || "reference", theirs), row("candidate", ours)], { class: "tokens", label: "token ids" }));
}

function tieSection(check) {
  const ties = check.measurements.ties;
  if (!Array.isArray(ties) || !ties.length) return null;
  const used = (gap, limit) => isNumber(gap) && isNumber(limit) && limit > 0 ? gauge(gap / limit) : null;
  const rows = ties.map((tie) => make("tr", { class: tie.is_tie === false ? "wrong" : "" },
    make("td", {}, formatNumber(tie.position)), make("td", {}, formatNumber(tie.reference_token)),
    make("td", {}, formatNumber(tie.candidate_token)),
    make("td", {}, `${formatNumber(tie.reference_gap)} of ${formatNumber(tie.reference_limit)}`, used(tie.reference_gap, tie.reference_limit)),
    make("td", {}, `${formatNumber(tie.candidate_gap)} of ${formatNumber(tie.candidate_limit)}`, used(tie.candidate_gap, tie.candidate_limit)),
    make("td", {}, tie.is_tie ? "a tie" : "no tie: the tokens are told apart")));
  const share = check.measurements.share;
  return section("Where the tokens differ",
    isNumber(share) ? make("p", { class: "quiet" }, `share of ties: ${formatNumber(share)}`) : null,
    table(["position", "reference", "candidate", "reference's margin", "candidate's margin", "verdict"], rows, { label: "near ties" }));
}

function routingSection(check) {
  const differing = check.measurements.differing;
  if (!Array.isArray(differing) || !differing.length || typeof differing[0] !== "object") return null;
  const { tokens, agreement, decisive_tokens: decisive, decisive_agreement: sure } = check.measurements;
  const experts = (ids, others) => make("td", {}, (ids || []).map((id) =>
    make("span", { class: (others || []).includes(id) ? "expert" : "expert differs" }, String(id))));
  const rows = differing.map((entry) => make("tr", { class: entry.decisive ? "wrong" : "" },
    make("td", {}, formatNumber(entry.token)), experts(entry.reference, entry.candidate), experts(entry.candidate, entry.reference),
    make("td", {}, formatNumber(entry.expert_margin)), make("td", {}, formatNumber(entry.group_margin)),
    make("td", {}, entry.decisive ? "decisive" : "within the noise")));
  return section(`Experts chosen: ${check.subject}`,
    facts([["tokens", tokens], ["agreement", agreement], ["decisive tokens", decisive], ["agreement of those", sure]]),
    table(["token", "reference", "candidate", "expert margin", "group margin", ""], rows, { label: "experts" }));
}

function trajectorySection(detail) {
  const found = (side) => detail[side] && ((detail[side].facts.request || {}).trajectory || detail[side].facts.trajectory);
  const sides = ["candidate", "reference"].filter((side) => Array.isArray(found(side)) && found(side).length);
  if (!sides.length) return null;
  const ways = Object.fromEntries(sides.map((side) => [side, readTrajectory(found(side))]));
  return section("Denoising, pass by pass",
    make("p", { class: "quiet" }, "In which pass each position was filled, and with which token. Red: another token or another pass than the other side."),
    sides.map((side) => {
      const other = ways[side === "candidate" ? "reference" : "candidate"];
      return make("div", {}, make("h3", {}, `${side}: ${found(side).length} passes`), trajectoryTable(ways[side], other));
    }));
}

function readTrajectory(trajectory) {
  const filled = new Map();
  trajectory.forEach((pass, number) => (pass.accepted || []).forEach((position, index) => {
    filled.set(position, { number, token: (pass.accepted_token_ids || [])[index] });
  }));
  return filled;
}

function trajectoryTable(filled, other) {
  const positions = [...filled.keys()].sort((one, two) => one - two);
  const last = Math.max(1, ...[...filled.values()].map((entry) => entry.number));
  const row = (name, cell) => make("tr", {}, make("th", { scope: "row" }, name), positions.map(cell));
  const differs = (position, field) => other && (other.get(position) || {})[field] !== filled.get(position)[field];
  return table(["position", ...positions.map(String)], [
    row("pass", (position) => {
      const { number } = filled.get(position);
      const kind = differs(position, "number") ? "differs" : "pass-" + Math.min(7, Math.floor(8 * number / (last + 1)));
      return make("td", { class: kind }, String(number));
    }),
    row("token", (position) => make("td", { class: differs(position, "token") ? "differs" : "" }, String(filled.get(position).token))),
  ], { class: "tokens", label: "denoising" });
}
