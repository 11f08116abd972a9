// The page: prompt and dials in, chips, bars and heat maps out. The model is in model.js, the choice of tokens in generation.js.

import { Writer, shapeProbs } from "./generation.js";
import { loadModel, softmax } from "./model.js";
import { EOT, makeTokenizer } from "./tokenizer.js";

const $ = (id) => document.getElementById(id);
const MOST = 400; // tokens on the page
const BARS = 10; // tokens in the table
const GLYPHS = { " ": "·", "\n": "↵", "\t": "→", [EOT]: "⊣" };
const NAMES = { " ": "space", "\n": "new line", "\t": "tab", [EOT]: "end of text" };

let model, tok, manifest, writer;
let nPrompt = 0; // tokens that the reader gave
let chosen = 0; // position of the chosen token
let head = { layer: 0, head: 0 };
let running = false;
let turn = 0; // whose turn it is to write: a loop whose number is no longer this one stops
let left = 0; // tokens that a pause left to be written

// --- small words ---

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const percent = (p) => `${p === 0 ? "0" : p < 0.001 ? "<0.1" : (100 * p).toFixed(1)}\u00a0%`;
const textOf = (id) => tok.decode([id]);
const glyph = (id) => [...textOf(id)].map((c) => GLYPHS[c] ?? c).join("").replace(EOT, GLYPHS[EOT]);
const nameOf = (id) => NAMES[textOf(id)] ?? `“${textOf(id)}”`;

function say(words, wrong = false) {
  $("status").textContent = words;
  $("status").classList.toggle("wrong", wrong);
}

// --- the dials ---

function dials() {
  const value = (id) => Number($(id).value);
  const V = model.cfg.vocab_size;
  return {
    temperature: $("greedy").checked ? 0 : value("temperature"),
    topK: value("top-k") >= V ? null : value("top-k"),
    topP: value("top-p") >= 1 ? null : value("top-p"),
    seed: value("seed"),
  };
}

function showDials() {
  const { topK, topP } = dials();
  $("temperature-out").value = Number($("temperature").value).toFixed(2);
  $("top-k-out").value = topK ?? "all";
  $("top-p-out").value = topP?.toFixed(2) ?? "all";
  $("seed-out").value = $("seed").value;
  for (const id of ["temperature", "top-k", "top-p", "seed"]) $(id).disabled = $("greedy").checked;
}

// --- the text ---

// the reader's prompt as tokens; an empty one is the beginning of a document
function readPrompt() {
  const ids = tok.encode($("prompt").value);
  const size = model.cfg.block_size;
  if (ids.length > size) say(`The prompt has ${ids.length} tokens: the model sees its last ${size}.`);
  if (!ids.length) say("The prompt is empty: the model begins a new document.");
  return ids.length ? ids.slice(-size) : [tok.eotToken];
}

function restart() {
  halt();
  say("");
  try {
    const ids = readPrompt();
    writer = new Writer(model, ids);
    nPrompt = ids.length;
    chosen = ids.length - 1;
    show();
  } catch (error) {
    writer = null;
    say(`${error.message[0].toUpperCase()}${error.message.slice(1)}.`, true);
  }
  for (const name of ["text", "next", "look"]) document.querySelector(`.${name}`).inert = !writer; // what they show is of another prompt
  enable();
}

function add(id) {
  writer.push(id);
  chosen = writer.ids.length - 1;
}

const full = () => writer.ids.length >= MOST || (writer.ids.length > nPrompt && writer.ids.at(-1) === tok.eotToken);

// end the loop that writes, if one does, and forget what it had left
function halt() {
  turn++;
  running = false;
  left = 0;
}

function step() {
  if (full()) return;
  halt();
  add(writer.choose(dials()));
  show();
  told();
}

function told() {
  const n = writer.ids.length - nPrompt;
  const why = writer.ids.length >= MOST ? " The page is full: start over for more." : full() ? " The model ended its text." : left ? ` Paused, ${left} to go.` : "";
  say(`${n} token${n === 1 ? "" : "s"} written.${why}`);
}

// how many tokens the reader wants; what is no such number is put right where they see it
function wanted() {
  const asked = Math.round(Number($("length").value)) || 1;
  return Number(($("length").value = Math.min(MOST, Math.max(1, asked))));
}

async function generate() {
  if (running) {
    const rest = left;
    halt();
    left = rest;
    told();
    return show();
  }
  const mine = ++turn;
  running = true;
  left ||= wanted();
  while (left && !full()) {
    add(writer.choose(dials()));
    left--;
    show();
    if (left) await new Promise((resume) => setTimeout(resume, 16)); // the page draws and listens
    if (turn !== mine) return; // paused meanwhile, or the prompt has changed
  }
  halt();
  told();
  show();
}

function enable() {
  const ready = Boolean(writer);
  for (const id of ["prompt", "length", "reset", "greedy"]) $(id).disabled = false;
  $("generate").disabled = !ready || (!running && full());
  $("generate").textContent = running ? "Pause" : left ? "Go on" : "Generate";
  $("step").disabled = !ready || running || full();
  $("back").disabled = !ready || running || writer.ids.length < 2 || writer.ids.length <= nPrompt;
}

// --- what is shown ---

function show() {
  showChips();
  showProbs();
  showMaps();
  enable();
}

// attention of one head at one position over the tokens of the window, oldest first
function sharesOf(position, { layer, head }) {
  const row = writer.cache.shares[layer][position - writer.start];
  if (!row) return null; // before the window
  const S = row.length / model.cfg.n_head;
  return row.subarray(head * S, (head + 1) * S);
}

function showChips() {
  const row = () => element("div", { class: "row", role: "presentation" }), word = () => element("span", { class: "word", role: "presentation" });
  const rows = [row()];
  let last = word(); // the word that grows: lines break between words, not inside
  rows[0].append(last);
  writer.ids.forEach((id, i) => {
    const label = glyph(id), written = i >= nPrompt;
    const chip = element("span", { class: written ? "chip new" : "chip", role: "option", id: `chip-${i}`, "aria-selected": i === chosen });
    chip.append(GLYPHS[textOf(id)] ? element("span", { class: "gap" }, label) : label);
    chip.setAttribute("aria-label", `${i + 1}: ${nameOf(id)}${written ? ", written" : ""}`);
    if (written) chip.style.setProperty("--p", softmax(writer.after[i - 1])[id].toFixed(3));
    if (/^\s+\S/.test(textOf(id))) rows.at(-1).append((last = word()));
    last.append(chip);
    if (textOf(id).endsWith("\n")) rows.push(row());
    if (/\s$/.test(textOf(id))) rows.at(-1).append((last = word()));
  });
  $("chips").replaceChildren(...rows);
  $("plain").textContent = tok.decode(writer.ids);
  markChosen();
}

// what depends on the chosen token and head alone
function markChosen() {
  const shares = sharesOf(chosen, head), most = shares ? Math.max(...shares) : 1;
  for (const chip of $("chips").querySelectorAll(".chip")) {
    const i = Number(chip.id.slice(5));
    chip.setAttribute("aria-selected", i === chosen);
    chip.style.setProperty("--look", Math.sqrt((shares?.[i - writer.start] ?? 0) / most).toFixed(3));
  }
  $("chips").setAttribute("aria-activedescendant", `chip-${chosen}`);
  const chip = $(`chip-${chosen}`), box = $("chips"), top = chip.offsetTop - box.offsetTop;
  if (top < box.scrollTop) box.scrollTop = top - 4; // inside the box only: the page stays where it is
  if (top + chip.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + chip.offsetHeight - box.clientHeight + 6;
}

function choosePosition(i) {
  chosen = Math.max(0, Math.min(writer.ids.length - 1, i));
  markChosen();
  showProbs();
  drawMap();
}

function bar(p) {
  const fill = element("div", { class: "fill" });
  fill.style.setProperty("--p", p);
  return element("td", {}, element("div", { class: "bar" }, element("div", { class: "track", "aria-hidden": "true" }, fill), element("span", {}, percent(p))));
}

function showProbs() {
  const logits = writer.after[chosen], last = chosen === writer.ids.length - 1;
  const before = softmax(logits), after = shapeProbs(logits, dials());
  const followed = last ? -1 : writer.ids[chosen + 1];
  const order = [...before.keys()].sort((a, b) => before[b] - before[a]).slice(0, BARS);
  if (followed >= 0 && !order.includes(followed)) order.push(followed);
  const kept = after.reduce((n, p) => n + (p > 0), 0);
  $("next-help").textContent =
    `After ${nameOf(writer.ids[chosen])}, token ${chosen + 1} of ${writer.ids.length}: ` +
    `${kept} of ${after.length} tokens ${kept === 1 ? "remains" : "remain"} in the draw. ` +
    (last ? "Press one to write it yourself." : `${nameOf(followed)} followed.`);
  $("probs").replaceChildren(...order.map((id) => {
    const button = element("button", { "aria-label": `${last ? "Write " : ""}${nameOf(id)}${id === followed ? ", it followed" : ""}`, "data-id": id }, glyph(id));
    button.disabled = !last || running || full();
    const classes = [id === followed ? "written" : "", after[id] === 0 ? "out" : ""].join(" ").trim();
    return element("tr", { class: classes }, element("th", { scope: "row" }, button), bar(before[id]), bar(after[id]));
  }));
}

// one head's map: row t looks at column s; the square root lets small shares be seen
function paint(canvas, which, { mark = false } = {}) {
  const n = writer.cache.length, image = new ImageData(n, n);
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--cell").split(",").map(Number);
  for (let t = 0; t < n; t++) {
    const shares = sharesOf(writer.start + t, which);
    for (let s = 0; s <= t; s++) image.data.set([...colour, 15 + 240 * Math.sqrt(shares[s])], 4 * (t * n + s));
  }
  canvas.width = canvas.height = n;
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (!mark || chosen < writer.start) return;
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--orange");
  context.fillRect(chosen - writer.start + 1, chosen - writer.start, n, 1); // beside the row: its future, which it cannot see
}

function showMaps() {
  for (const button of $("maps").querySelectorAll("button")) {
    paint(button.firstChild, { layer: Number(button.dataset.layer), head: Number(button.dataset.head) });
  }
  drawMap();
}

function drawMap() {
  paint($("map"), head, { mark: true });
  $("map-title").textContent = `Layer ${head.layer + 1}, head ${head.head + 1}`;
  const shares = sharesOf(chosen, head), from = `${nameOf(writer.ids[chosen])}, token ${chosen + 1},`;
  if (!shares) return ($("map-words").textContent = `${from} has left the model's window of ${model.cfg.block_size}.`);
  const best = [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, 4);
  const list = best.map((s) => `${nameOf(writer.ids[writer.start + s])} ${writer.start + s + 1} (${percent(shares[s])})`);
  $("map-words").textContent = `${from} looks most at ${list.join(", ")}.`;
}

function chooseHead(layer, which) {
  head = { layer, head: which };
  for (const button of $("maps").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", Number(button.dataset.layer) === layer && Number(button.dataset.head) === which);
  }
}

function buildMaps() {
  const { n_layer, n_head } = model.cfg;
  $("maps").style.setProperty("--heads", n_head);
  const heads = Array.from({ length: n_head }, (_, h) => element("span", { class: "head" }, `Head ${h + 1}`));
  $("maps").append(element("span"), ...heads);
  for (let layer = 0; layer < n_layer; layer++) {
    $("maps").append(element("span", {}, `Layer ${layer + 1}`));
    for (let h = 0; h < n_head; h++) {
      $("maps").append(element("button", { "data-layer": layer, "data-head": h, "aria-label": `Layer ${layer + 1}, head ${h + 1}` }, element("canvas", { "aria-hidden": "true" })));
    }
  }
  chooseHead(0, 0);
}

// --- what the reader does ---

function listen() {
  $("prompt").addEventListener("input", restart);
  $("reset").addEventListener("click", restart);
  $("step").addEventListener("click", step);
  $("generate").addEventListener("click", generate);
  $("length").addEventListener("input", () => {
    if (!running) left = 0; // a new wish
    enable();
  });
  $("back").addEventListener("click", () => {
    halt();
    writer.pop();
    chosen = writer.ids.length - 1;
    show();
    told();
  });
  for (const id of ["greedy", "temperature", "top-k", "top-p", "seed"]) {
    $(id).addEventListener("input", () => {
      showDials();
      if (writer) showProbs();
    });
  }
  $("chips").addEventListener("click", (event) => {
    const chip = event.target.closest(".chip");
    if (chip) choosePosition(Number(chip.id.slice(5)));
  });
  $("chips").addEventListener("keydown", (event) => {
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, ArrowUp: chosen - 10, ArrowDown: chosen + 10, Home: 0, End: Infinity }[event.key];
    if (to === undefined || !writer) return;
    event.preventDefault();
    choosePosition(to);
  });
  $("probs").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    halt();
    add(Number(button.dataset.id));
    show();
    told();
    $("probs").querySelector("button").focus();
  });
  $("maps").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || !writer) return;
    chooseHead(Number(button.dataset.layer), Number(button.dataset.head));
    markChosen();
    drawMap();
  });
  $("map").addEventListener("click", (event) => {
    if (writer) choosePosition(writer.start + Math.floor((event.offsetY / $("map").clientHeight) * writer.cache.length));
  });
  const redraw = () => writer && showMaps();
  for (const medium of ["(prefers-color-scheme: dark)", "print"]) matchMedia(medium).addEventListener("change", redraw);
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
}

async function begin() {
  try {
    ({ model, manifest } = await loadModel());
    tok = makeTokenizer(manifest.tokenizer);
  } catch (error) {
    return say(`The model did not load: ${error.message}. Reload the page to try again.`, true);
  }
  const { n_layer, n_head, n_embd, block_size, vocab_size } = model.cfg;
  $("about").textContent =
    `Type a beginning and watch a GPT-2 of ${(manifest.parameters / 1e6).toFixed(2)} million parameters (${n_layer} layers of ${n_head} heads, ` +
    `${n_embd} channels, ${vocab_size} tokens, a window of ${block_size}) choose one token after another. It was trained in this course and runs on your machine: ` +
    "nothing you type leaves this page.";
  $("top-k").max = vocab_size;
  $("top-k").value = vocab_size;
  buildMaps();
  listen();
  showDials();
  restart();
  if (writer) say("Ready: press Generate, or go one token at a time.");
}

begin();
