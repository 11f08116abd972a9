// Writing is choosing the next token again and again: gpt2_course.generation in JavaScript.

import { KVCache, softmax } from "./model.js";

export const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

// Temperature, then top-k, then top-p (Holtzman et al. 2020): logits (V) -> probabilities (V); temperature 0 is greedy
export function shapeProbs(logits, { temperature = 1, topK = null, topP = null } = {}) {
  if (!(temperature >= 0)) throw new RangeError(`the temperature is ${temperature}: give 0 (greedy) or more`);
  if (topK !== null && !(topK >= 1)) throw new RangeError(`top-k is ${topK}: give 1 or more`);
  if (topP !== null && !(topP > 0 && topP <= 1)) throw new RangeError(`top-p is ${topP}: give a share above 0, at most 1`);
  if (temperature === 0) {
    const best = argmax(logits);
    return Float64Array.from(logits, (_, i) => (i === best ? 1 : 0));
  }
  let scores = Float64Array.from(logits, (score) => score / temperature);
  if (topK !== null && topK < scores.length) {
    const kth = scores.slice().sort()[scores.length - topK]; // typed arrays sort by value, ascending
    scores = scores.map((score) => (score < kth ? -Infinity : score));
  }
  const probs = softmax(scores);
  if (topP === null || topP >= 1) return probs;
  const order = [...probs.keys()].sort((a, b) => probs[b] - probs[a]);
  let mass = 0; // of the better tokens
  for (const i of order) {
    const p = probs[i];
    if (mass >= topP) probs[i] = 0; // the first always stays
    mass += p;
  }
  const kept = probs.reduce((a, b) => a + b, 0);
  return probs.map((p) => p / kept);
}

// A number in [0, 1) that depends only on the seed and the position (mulberry32): one token or forty at once, the draw is the same
export function random(seed, position) {
  let a = (Math.imul(seed + 1, 0x9e3779b1) + Math.imul(position + 1, 0x6d2b79f5)) | 0;
  a = Math.imul(a ^ (a >>> 15), a | 1);
  a ^= a + Math.imul(a ^ (a >>> 7), a | 61);
  return ((a ^ (a >>> 14)) >>> 0) / 2 ** 32;
}

// Draw a token from probabilities (V), given a number u in [0, 1)
export function draw(probs, u) {
  let mass = 0, last = 0;
  for (let i = 0; i < probs.length; i++) {
    if (probs[i] === 0) continue;
    mass += probs[i];
    last = i; // rounding may leave the mass a little under 1: then the last one that remains
    if (u < mass) return i;
  }
  return last;
}

// A text that grows: its tokens, the logits after each, and the cache that makes the next one cheap
export class Writer {
  constructor(model, ids, { useCache = true } = {}) {
    if (!ids.length) throw new RangeError("the prompt is empty: give at least one token");
    Object.assign(this, { model, useCache, ids: [], after: [], start: 0, cache: new KVCache(model.cfg) });
    this.push(...ids);
  }

  // Add tokens and read them: after[i] holds the scores (V) of what may follow token i
  push(...ids) {
    this.ids.push(...ids);
    const size = this.model.cfg.block_size, n = this.ids.length;
    if (!this.useCache || n > size) this.forget(); // beyond the block every position moves: the cache is void
    const unread = this.ids.slice(this.start + this.cache.length);
    const first = Math.max(0, Math.min(this.after.length - (n - unread.length), unread.length - 1)); // scores known stay known
    const logits = this.model.forward(unread, this.cache, first), V = this.model.cfg.vocab_size;
    for (let t = first; t < unread.length; t++) this.after[n - unread.length + t] = logits.subarray((t - first) * V, (t - first + 1) * V);
  }

  // Begin the cache anew with the last block_size tokens
  forget() {
    this.start = Math.max(0, this.ids.length - this.model.cfg.block_size);
    this.cache = new KVCache(this.model.cfg);
  }

  // Take the last token back; the first one stays
  pop() {
    if (this.ids.length < 2) return;
    const shifted = this.start > 0;
    this.ids.pop();
    this.after.pop();
    if (!shifted) return this.cache.crop(this.ids.length);
    this.forget();
    this.model.forward(this.ids.slice(this.start), this.cache, this.ids.length - this.start - 1);
  }

  // The next token under these dials; nothing is added yet
  choose({ seed = 1337, ...dials } = {}) {
    return draw(shapeProbs(this.after.at(-1), dials), random(seed, this.ids.length));
  }
}

// Continue a text by at most `maxNewTokens`; `stop` ends it and is kept
export function generate(model, ids, maxNewTokens, { useCache = true, stop = null, ...dials } = {}) {
  const writer = new Writer(model, ids, { useCache });
  for (let n = 0; n < maxNewTokens; n++) {
    writer.push(writer.choose(dials));
    if (writer.ids.at(-1) === stop) break;
  }
  return writer.ids;
}
