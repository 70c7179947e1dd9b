"use strict";
/* One prompt under several levels. No library; texts of the model are never HTML. */

const byId = (id) => document.getElementById(id);
const BEYOND = 0.5; // how far sliders reach beyond the first and the last level
const columns = [];
let info = null;
let controller = null;

/** Send a request; on an error, throw its message. */
async function send(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (byId("key").value) headers.Authorization = `Bearer ${byId("key").value}`;
  const response = await fetch(path, { headers, ...options });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  if (response.status === 401) {
    byId("key-field").hidden = false;
    byId("options").open = true;
  }
  throw new Error(body?.error?.message ?? `HTTP status ${response.status}`);
}

function showAlert(message) {
  byId("alert").textContent = message;
  byId("alert").hidden = !message;
}

const rounded = (number) => Math.round(number * 1000) / 1000;
const levelName = (attribute, level) => (attribute.name ? `${attribute.name}=${level}` : level);

/** Return the weights of an attribute's levels at a place: 0 = first level, 1 = last level. */
function weightsAt(attribute, place) {
  const last = attribute.levels.length - 1;
  if (last === 0) return { [levelName(attribute, attribute.levels[0])]: 1 };
  const steps = place * last;
  const lower = Math.min(Math.max(Math.floor(steps), 0), last - 1);
  const share = rounded(steps - lower);
  const weights = {};
  if (share !== 1) weights[levelName(attribute, attribute.levels[lower])] = rounded(1 - share);
  if (share !== 0) weights[levelName(attribute, attribute.levels[lower + 1])] = share;
  return weights;
}

/** Whether the levels between two others lie between them: with an order, or where there are two. */
const isScale = (attribute) => info.takes_mixes && (attribute.is_ordered || attribute.levels.length === 2);

class Slider {
  constructor(attribute, place, isUsed, onChange) {
    this.attribute = attribute;
    this.element = byId("slider").content.cloneNode(true).firstElementChild;
    this.input = this.element.querySelector(".place");
    this.checkbox = this.element.querySelector(".use input");
    this.output = this.element.querySelector("output");
    const name = attribute.name || "level";
    const last = Math.max(attribute.levels.length - 1, 1);
    const margin = isScale(attribute) ? BEYOND : 0;
    this.element.querySelector("legend").textContent = name;
    const isAlone = info.attributes.length === 1; // the heading of the column has its name and level
    for (const part of ["legend", ".use", "output"]) this.element.querySelector(part).hidden = isAlone;
    this.input.setAttribute("aria-label", name);
    Object.assign(this.input, { min: -margin, max: 1 + margin, step: isScale(attribute) ? 0.05 : 1 / last, value: place });
    this.checkbox.checked = isUsed;
    const ends = this.element.querySelector(".ends");
    const percent = (value) => ((value + margin) / (1 + 2 * margin)) * 100;
    const safe = info.dial[attribute.name];
    if (safe) {
      const low = Math.max(safe.low, -margin);
      const span = document.createElement("span");
      span.className = "safe";
      span.style.left = `${percent(low)}%`;
      span.style.width = `${percent(Math.min(safe.high, 1 + margin)) - percent(low)}%`;
      ends.append(span);
    }
    const shown = attribute.levels.length > 5 ? [0, last] : attribute.levels.map((_, index) => index);
    for (const index of shown) {
      const span = document.createElement("span");
      span.textContent = attribute.levels[index];
      span.style.left = `${percent(index / last)}%`;
      ends.append(span);
    }
    this.element.addEventListener("input", () => { this.update(); onChange(); });
    this.update();
  }

  /** The level's name, or the place on the attribute's scale. */
  get title() {
    const isNamed = Object.keys(this.weights).length === 1;
    return isNamed ? this.output.textContent : `${this.attribute.name} ${this.place}`.trim();
  }
  get place() { return rounded(Number(this.input.value)); }
  get isUsed() { return this.checkbox.checked; }
  get weights() { return weightsAt(this.attribute, this.place); }
  /** The level at the other end, which guidance moves away from. */
  get opposite() { return weightsAt(this.attribute, this.place > 0.5 ? 0 : 1); }

  update() {
    const names = Object.keys(this.weights);
    const isNamed = names.length === 1;
    const index = Math.round(this.place * (this.attribute.levels.length - 1));
    const text = isNamed ? this.attribute.levels[index] : String(this.place);
    this.output.textContent = this.isUsed ? text : "no effect";
    this.input.disabled = !this.isUsed;
    this.input.setAttribute("aria-valuetext", isNamed ? text : Object.entries(this.weights).map(([name, weight]) => `${name} ${weight}`).join(", "));
  }
}

class Column {
  constructor(places) {
    this.element = byId("reply").content.cloneNode(true).firstElementChild;
    this.part = (name) => this.element.querySelector(name);
    this.sliders = info.attributes.map((attribute, index) => new Slider(attribute, places[index].place, places[index].isUsed, () => this.describe()));
    this.part(".sliders").append(...this.sliders.map((slider) => slider.element));
    this.part(".remove").addEventListener("click", () => this.remove());
    this.part(".up").addEventListener("click", () => this.rate(true));
    this.part(".down").addEventListener("click", () => this.rate(false));
    this.part(".undo").addEventListener("click", () => this.undo());
    this.part(".copy-curl").addEventListener("click", (event) => copy(event.target, this.curl()));
    this.part(".copy-python").addEventListener("click", (event) => copy(event.target, this.python()));
    this.reply = null;
    this.rating = null;
    columns.push(this);
    byId("replies").append(this.element);
    this.describe();
  }

  get used() { return this.sliders.filter((slider) => slider.isUsed); }
  get level() {
    const weights = Object.assign({}, ...this.used.map((slider) => slider.weights));
    const names = Object.keys(weights);
    if (names.length === 1 && weights[names[0]] === 1) return names[0];
    return names.length ? weights : null;
  }
  get title() { return this.used.map((slider) => slider.title).join(", ") || "default level"; }

  /** Return the body of the request, as the code and the page send it. */
  body() {
    const guidance = Number(byId("guidance").value);
    const body = { model: info.model, messages: [{ role: "user", content: byId("prompt").value }] };
    if (this.level !== null) body.level = this.level;
    if (guidance) Object.assign(body, { guidance, against: Object.assign({}, ...this.used.map((slider) => slider.opposite)) });
    const temperature = Number(byId("temperature").value);
    Object.assign(body, { temperature, max_tokens: Number(byId("max-tokens").value) });
    if (temperature) body.seed = Number(byId("seed").value);
    return body;
  }

  curl() {
    const quoted = JSON.stringify(this.body()).replaceAll("'", "'\\''");
    const key = byId("key").value ? " \\\n  -H \"Authorization: Bearer $API_KEY\"" : "";
    return `curl ${location.origin}/v1/chat/completions \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${quoted}'`;
  }

  python() {
    const { model, messages, level, guidance, against, ...rest } = this.body();
    const extra = { level, guidance, against };
    const literal = (value) => JSON.stringify(value);
    const lines = ["from openai import OpenAI", "", `client = OpenAI(base_url=${literal(`${location.origin}/v1`)}, api_key="none")`];
    lines.push("reply = client.chat.completions.create(", `    model=${literal(model)},`, `    messages=${literal(messages)},`);
    for (const [name, value] of Object.entries(rest)) lines.push(`    ${name}=${literal(value)},`);
    if (Object.values(extra).some((value) => value !== undefined)) lines.push(`    extra_body=${literal(extra)},`);
    return [...lines, ")", "print(reply.choices[0].message.content)"].join("\n");
  }

  describe() {
    this.part("h2").textContent = this.title;
    this.part(".text").setAttribute("aria-label", `Reply at ${this.title}`);
    this.part(".curl").textContent = this.curl();
    this.part(".python").textContent = this.python();
    for (const column of columns) column.part(".remove").hidden = columns.length === 1;
  }

  remove() {
    columns.splice(columns.indexOf(this), 1);
    this.element.remove();
    for (const column of columns) column.describe();
    byId("add").focus();
  }

  async generate(signal) {
    this.setRating(null);
    this.part(".thumbs").hidden = this.part(".scores").hidden = this.part(".warning").hidden = true;
    this.part(".text").textContent = this.part(".facts").textContent = "";
    this.element.classList.add("running");
    const body = this.body();
    const reply = { messages: body.messages, text: "", model: `${body.model}:${typeof body.level === "object" ? JSON.stringify(body.level) : body.level}` };
    const start = performance.now();
    let first = null;
    let facts = "";
    try {
      const stream = { ...body, stream: true, stream_options: { include_usage: true } };
      const response = await send("v1/chat/completions", { method: "POST", body: JSON.stringify(stream), signal });
      for await (const chunk of events(response)) {
        if (chunk.error) throw new Error(chunk.error.message);
        if (chunk.warning) this.warn(chunk.warning);
        const choice = chunk.choices[0];
        if (choice?.delta.content) {
          first ??= performance.now();
          reply.text += choice.delta.content;
          this.part(".text").textContent = reply.text;
        }
        if (choice?.finish_reason === "length") facts = ", cut at the maximum number of tokens";
        if (chunk.usage) {
          const seconds = (performance.now() - start) / 1000;
          facts = `${chunk.usage.completion_tokens} tokens in ${seconds.toFixed(1)} s${facts}`;
        }
      }
      this.reply = reply;
      this.part(".facts").textContent = facts;
      this.part(".thumbs").hidden = !reply.text;
      if (reply.text) await this.score(signal);
    } catch (error) {
      if (error.name === "AbortError") this.part(".facts").textContent = "stopped";
      else this.warn(error.message);
    } finally {
      this.element.classList.remove("running");
    }
  }

  warn(message) {
    this.part(".warning").textContent = message;
    this.part(".warning").hidden = false;
  }

  /** Show the scores by attribute, log p(reply | best level) - log p(reply | worst level) per token, and by scorer. */
  async score(signal) {
    const { messages, text } = this.reply;
    const body = JSON.stringify({ messages, completion: text });
    const { scores, scorers } = await (await send("v1/score", { method: "POST", body, signal })).json();
    const byAttribute = scores.map((score) => {
      const title = `log p(reply | ${score.best}) − log p(reply | ${score.worst}): ${score.total.toFixed(2)} nats, ${score.per_token.toFixed(2)} per token`;
      return scoreItem(`${score.worst} – ${score.best}`, signed(score.per_token), title, score.per_token);
    });
    const byScorer = scorers.map((score, index) => {
      const { description, higher_is_better: isHigherBetter } = info.scorers[index];
      const title = score.problem ?? `${description}; ${isHigherBetter ? "higher" : "lower"} is better`;
      return scoreItem(score.name.split(":").at(-1), score.value === null ? "no score" : String(rounded(score.value)), title);
    });
    this.part(".scores").replaceChildren(...byAttribute, ...byScorer);
    this.part(".scores").hidden = !byAttribute.length && !byScorer.length;
  }

  setRating(rating) {
    this.rating = rating;
    this.part(".up").setAttribute("aria-pressed", String(rating?.label === true));
    this.part(".down").setAttribute("aria-pressed", String(rating?.label === false));
    this.part(".undo").hidden = rating === null;
  }

  async rate(label) {
    try {
      if (this.rating?.label === label) return;
      if (this.rating) await this.undo();
      const { messages, text, model } = this.reply;
      const body = JSON.stringify({ messages, completion: text, label, model });
      const { id } = await (await send("v1/feedback", { method: "POST", body })).json();
      this.setRating({ id, label });
      announce(`Saved as ${label ? "good" : "bad"}`);
    } catch (error) {
      showAlert(error.message);
    }
  }

  async undo() {
    try {
      await send(`v1/feedback/${this.rating.id}`, { method: "DELETE" });
      this.setRating(null);
      announce("Feedback removed");
    } catch (error) {
      showAlert(error.message);
    }
  }
}

const signed = (number) => `${number >= 0 ? "+" : "−"}${Math.abs(number).toFixed(2)}`;

/** Return a line with a score; with `share` from -1 to 1, it has a bar from the middle. */
function scoreItem(name, text, title, share = null) {
  const item = document.createElement("li");
  const [label, bar, value] = ["span", "span", "span"].map((tag) => document.createElement(tag));
  label.textContent = name;
  value.textContent = text;
  item.title = title;
  bar.setAttribute("aria-hidden", "true");
  if (share !== null) {
    bar.className = "bar";
    const fill = document.createElement("i");
    const width = Math.max(-1, Math.min(1, share)) * 50;
    fill.style.left = `${50 + Math.min(width, 0)}%`;
    fill.style.width = `${Math.abs(width)}%`;
    bar.append(fill);
  }
  item.append(label, bar, value);
  return item;
}

/** Yield the objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied");
  } catch {
    button.textContent = "Select the text below";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

function announce(message) {
  byId("status").textContent = message;
}

async function generate(event) {
  event.preventDefault();
  if (controller || !byId("form").reportValidity()) return;
  showAlert("");
  controller = new AbortController();
  byId("generate").disabled = true;
  byId("stop").hidden = false;
  announce("Generating");
  await Promise.all(columns.map((column) => column.generate(controller.signal)));
  controller = null;
  byId("generate").disabled = false;
  byId("stop").hidden = true;
  announce("All replies are finished");
}

/** Show the values of the sampling settings, and the code that has them. */
function describeSampling() {
  for (const output of document.querySelectorAll(".options output")) output.textContent = byId(output.htmlFor[0]).value;
  const [temperature, guidance, tokens] = ["temperature", "guidance", "max-tokens"].map((id) => byId(id).value);
  byId("sampling").textContent = `temperature ${temperature}, guidance ${guidance}, at most ${tokens} tokens`;
  for (const column of columns) column.describe();
}

/** Return where the sliders of a new column stand: one attribute at `place`, the others unused. */
const placesAt = (place) => info.attributes.map((_, index) => ({ place, isUsed: index === 0 }));

async function start() {
  try {
    info = await (await send("v1/levels")).json();
  } catch (error) {
    showAlert(`The server does not answer as expected: ${error.message}`);
    return;
  }
  showAlert("");
  byId("model").textContent = info.model;
  document.title = `Playground: ${info.model}`;
  byId("dial-note").hidden = !info.attributes.some((attribute) => info.dial[attribute.name]);
  byId("score-note").hidden = !info.attributes.some((attribute) => attribute.is_ordered && attribute.levels.length > 1);
  byId("feedback").textContent = info.feedback;
  byId("max-tokens").max = info.max_tokens;
  byId("max-tokens").value = Math.min(100, info.max_tokens);
  for (const place of [0, 1]) new Column(placesAt(place));
  describeSampling();
}

byId("form").addEventListener("submit", generate);
byId("form").addEventListener("input", () => { if (info) describeSampling(); });
byId("stop").addEventListener("click", () => controller?.abort());
byId("key").addEventListener("change", () => { if (!info) start(); });
byId("add").addEventListener("click", () => {
  const column = new Column(columns.length ? columns.at(-1).sliders.map(({ place, isUsed }) => ({ place, isUsed })) : placesAt(1));
  column.part("input").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
start();
