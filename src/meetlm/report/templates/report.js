// Shows the cells under "Examples". Texts go in as text nodes only, never as HTML.
"use strict";
(() => {
  // Paper cannot be unfolded: what is folded is printed open.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
  });
})();
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const PAGE = 6;
  const OUTCOMES = { w: "win", l: "loss", t: "tie", o: "not asked" };
  const control = Object.fromEntries(
    ["system", "evaluator", "outcome", "search", "status", "cells", "more"].map((id) => [id, document.getElementById(id)]),
  );
  let found = [];
  let shown = 0;
  let words = [];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // A text with what was searched for marked.
  function marked(text) {
    if (!text.trim()) return element("p", { class: "text empty" }, text ? "(only white space)" : "(empty)");
    const paragraph = element("p", { class: "text" });
    if (!words.length) {
      paragraph.append(text);
      return paragraph;
    }
    const pattern = new RegExp("(" + words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")", "gi");
    text.split(pattern).forEach((part, place) => paragraph.append(place % 2 ? element("mark", {}, part) : part));
    return paragraph;
  }

  const promptTexts = data.prompts.map((prompt) =>
    typeof prompt === "string" ? [["prompt", prompt]] : prompt.map((turn) => [turn.role, turn.content]),
  );
  const searched = new Map(); // cell -> all its texts, lower case; filled when first needed
  function textsOf(cell) {
    if (!searched.has(cell)) {
      const place = data.cells[cell][0];
      const texts = [data.ids[place], data.chosen[place] ?? "", ...promptTexts[place].map((turn) => turn[1])];
      for (const system of data.systems) texts.push(data.completions[system][cell]);
      searched.set(cell, texts.join("\n").toLowerCase());
    }
    return searched.get(cell);
  }

  const signed = (value) => (value > 0 ? "+" : "") + String(value).replace("-", "\u2212");

  function completion(system, cell, note) {
    const scores = data.measures
      .filter((measure) => (measure.values[system] ?? [])[cell] != null)
      .map((measure) => `${measure.name} ${String(measure.values[system][cell]).replace("-", "\u2212")}`);
    return element(
      "div", {},
      element("h4", {}, system + note),
      marked(data.completions[system][cell]),
      element("p", { class: "scores" }, scores.join(" \u00b7 ")),
    );
  }

  function card(cell, system) {
    const [place, seed] = data.cells[cell];
    const badges = element("ul", { class: "badges", "aria-label": `Outcomes of ${system}` });
    for (const one of data.comparisons.filter((comparison) => comparison.system === system)) {
      const outcome = one.outcomes[cell];
      const margin = one.margins[cell];
      const said = `${one.evaluator}: ${OUTCOMES[outcome] ?? one.none}` + (margin == null ? "" : ` (${signed(margin)})`);
      badges.append(element("li", { class: "-o".includes(outcome) ? "none" : outcome }, said));
    }
    const prompt = element("div", { class: "prompt", tabindex: "0", role: "group", "aria-label": "Prompt" });
    for (const [role, text] of promptTexts[place]) prompt.append(element("h4", {}, role), marked(text.replace(/^\s*\n|\s+$/g, "")));
    const pair = element(
      "div", { class: "pair" },
      completion(system, cell, ""), completion(data.baseline, cell, " (baseline)"),
    );
    const rest = element("div", { class: "pair" });
    if (data.chosen[place] != null) rest.append(element("div", {}, element("h4", {}, "preferred in the data"), marked(data.chosen[place])));
    for (const other of data.systems) if (other !== system && other !== data.baseline) rest.append(completion(other, cell, ""));
    const details = element("details", {}, element("summary", {}, "The reply preferred in the data, other systems"), rest);
    if (words.length && [...rest.querySelectorAll("mark")].length) details.open = true;
    return element(
      "article", {},
      element("h3", {}, `Prompt ${place + 1} of ${data.prompts.length} (${data.ids[place]}), seed ${seed}`),
      badges, prompt, pair, ...(rest.childElementCount ? [details] : []),
    );
  }

  function showMore() {
    const system = control.system.value;
    const next = found.slice(shown, shown + PAGE);
    control.cells.append(...next.map((cell) => card(cell, system)));
    shown += next.length;
    control.more.hidden = shown >= found.length;
    control.status.textContent = found.length
      ? `${shown.toLocaleString("en")} of ${found.length.toLocaleString("en")} shown`
      : "Nothing found.";
  }

  function update() {
    const comparison = data.comparisons.find(
      (one) => one.system === control.system.value && one.evaluator === control.evaluator.value,
    );
    words = control.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const outcome = control.outcome.value;
    // Where an evaluator has no outcome of a system at all, its completions are still there to be read.
    const order = comparison ? comparison.order : data.cells.map((_, cell) => cell);
    found = order.filter(
      (cell) =>
        (!outcome || (comparison ? comparison.outcomes[cell] : "-") === outcome) &&
        (!words.length || words.every((word) => textsOf(cell).includes(word))),
    );
    shown = 0;
    control.cells.replaceChildren();
    showMore();
  }

  // What is looked at stands in the address, so that it can be sent to somebody: #system=...&search=...
  const KEPT = ["system", "evaluator", "outcome", "search"];
  function remember() {
    const kept = new URLSearchParams(KEPT.filter((id) => control[id].value).map((id) => [id, control[id].value]));
    history.replaceState(null, "", "#" + kept);
  }
  function recall() {
    const asked = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const id of KEPT) if (asked.has(id)) control[id].value = asked.get(id);
    update();
    if (asked.size) {
      chosen();
      document.getElementById("examples").scrollIntoView();
    }
  }

  // Cards that somebody chose are printed; until then the largest win, loss and closest tie of every system are.
  function chosen() {
    document.getElementById("examples").classList.add("chosen");
  }

  const distinct = (values) => [...new Set(values)];
  const choices = {
    system: data.systems.filter((name) => name !== data.baseline),
    evaluator: distinct(data.comparisons.map((one) => one.evaluator)),
  };
  for (const [id, names] of Object.entries(choices))
    control[id].append(...(names.length ? names : ["none"]).map((name) => element("option", { value: name }, name)));
  let waiting;
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filters").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { update(); remember(); chosen(); }, 150);
  });
  control.more.addEventListener("click", () => { chosen(); showMore(); });
  recall();
})();
