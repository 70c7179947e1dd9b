// Shows the pairs under "Examples". Texts are inserted as text nodes only, never as HTML.
"use strict";
(() => {
  // Folded parts are printed open.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const details of folded) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of folded) details.open = false;
  });
})();
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const PAGE_SIZE = 6;
  const OUTCOMES = { w: "win", l: "loss", t: "tie", o: "not asked" };
  const FILTERS = ["system", "evaluator", "outcome", "search"];
  const control = Object.fromEntries(
    [...FILTERS, "status", "cards", "more"].map((id) => [id, document.getElementById(id)]),
  );
  let matches = []; // pairs that pass the filters, in viewing order
  let numShown = 0;
  let words = [];

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // A paragraph with the searched words marked.
  function paragraph(text) {
    if (!text.trim()) return element("p", { class: "text empty" }, text ? "(only white space)" : "(empty)");
    const node = element("p", { class: "text" });
    if (!words.length) {
      node.append(text);
      return node;
    }
    const pattern = new RegExp("(" + words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") + ")", "gi");
    text.split(pattern).forEach((part, place) => node.append(place % 2 ? element("mark", {}, part) : part));
    return node;
  }

  const searchTexts = new Map(); // pair -> all its texts in lower case, filled when first needed
  function searchText(pair) {
    if (!searchTexts.has(pair)) {
      const prompt = data.pairs[pair][0];
      const texts = [data.ids[prompt], data.chosen[prompt] ?? "", ...data.prompts[prompt].map(([_, text]) => text)];
      for (const system of data.systems) texts.push(data.completions[system][pair]);
      searchTexts.set(pair, texts.join("\n").toLowerCase());
    }
    return searchTexts.get(pair);
  }

  const minus = (value) => String(value).replace("-", "\u2212");

  function completion(system, pair, note) {
    const scores = data.measures
      .filter((measure) => (measure.values[system] ?? [])[pair] != null)
      .map((measure) => `${measure.name} ${minus(measure.values[system][pair])}`);
    return element(
      "div", {},
      element("h4", {}, system + note),
      paragraph(data.completions[system][pair]),
      element("p", { class: "scores" }, scores.join(" \u00b7 ")),
    );
  }

  function card(pair, system) {
    const [prompt, replicate] = data.pairs[pair];
    const badges = element("ul", { class: "badges", "aria-label": `Outcomes of ${system}` });
    for (const comparison of data.comparisons.filter((each) => each.system === system)) {
      const outcome = comparison.outcomes[pair];
      const margin = comparison.margins[pair];
      const suffix = margin == null ? "" : ` (${margin > 0 ? "+" : ""}${minus(margin)})`;
      const text = `${comparison.evaluator}: ${OUTCOMES[outcome] ?? comparison.none}${suffix}`;
      badges.append(element("li", { class: "-o".includes(outcome) ? "none" : outcome }, text));
    }
    const turns = element("div", { class: "prompt", tabindex: "0", role: "group", "aria-label": "Prompt" });
    for (const [role, text] of data.prompts[prompt]) turns.append(element("h4", {}, role), paragraph(text));
    const replies = element(
      "div", { class: "pair" },
      completion(system, pair, ""), completion(data.baseline, pair, " (baseline)"),
    );
    const others = element("div", { class: "pair" });
    if (data.chosen[prompt] != null)
      others.append(element("div", {}, element("h4", {}, "preferred in the data"), paragraph(data.chosen[prompt])));
    for (const other of data.systems)
      if (other !== system && other !== data.baseline) others.append(completion(other, pair, ""));
    const details = element("details", {}, element("summary", {}, "The reply preferred in the data, other systems"), others);
    details.open = others.querySelector("mark") !== null;
    return element(
      "article", {},
      element("h3", {}, `Prompt ${prompt + 1} of ${data.prompts.length} (${data.ids[prompt]}), replicate ${replicate}`),
      badges, turns, replies, ...(others.childElementCount ? [details] : []),
    );
  }

  function showMore() {
    const next = matches.slice(numShown, numShown + PAGE_SIZE);
    control.cards.append(...next.map((pair) => card(pair, control.system.value)));
    numShown += next.length;
    control.more.hidden = numShown >= matches.length;
    control.status.textContent = matches.length
      ? `${numShown.toLocaleString("en")} of ${matches.length.toLocaleString("en")} shown`
      : "No matches.";
  }

  function update() {
    const comparison = data.comparisons.find(
      (each) => each.system === control.system.value && each.evaluator === control.evaluator.value,
    );
    words = control.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const outcome = control.outcome.value;
    // The completions of a system without any outcome by the evaluator can be read too.
    const order = comparison ? comparison.order : data.pairs.map((_, pair) => pair);
    matches = order.filter(
      (pair) =>
        (!outcome || (comparison ? comparison.outcomes[pair] : "-") === outcome) &&
        words.every((word) => searchText(pair).includes(word)),
    );
    numShown = 0;
    control.cards.replaceChildren();
    showMore();
  }

  // The filters are stored in the address, so that a view can be sent to somebody: #system=...&search=...
  function storeFilters() {
    const filters = new URLSearchParams(FILTERS.filter((id) => control[id].value).map((id) => [id, control[id].value]));
    history.replaceState(null, "", "#" + filters);
  }
  function loadFilters() {
    const filters = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const id of FILTERS) if (filters.has(id)) control[id].value = filters.get(id);
    update();
    if (filters.size) {
      markChosen();
      document.getElementById("examples").scrollIntoView();
    }
  }

  // Cards that the reader has chosen are printed; otherwise the largest win, loss and closest tie of every system.
  function markChosen() {
    document.getElementById("examples").classList.add("chosen");
  }

  const choices = {
    system: data.systems.filter((name) => name !== data.baseline),
    evaluator: [...new Set(data.comparisons.map((comparison) => comparison.evaluator))],
  };
  for (const [id, names] of Object.entries(choices))
    control[id].append(...(names.length ? names : ["none"]).map((name) => element("option", { value: name }, name)));
  let timer;
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("filters").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { update(); storeFilters(); markChosen(); }, 150);
  });
  control.more.addEventListener("click", () => { markChosen(); showMore(); });
  loadFilters();
})();
