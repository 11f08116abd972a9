// Text becomes integers and comes back unharmed: gpt2_course.tokenizer in JavaScript, the same ids for every text.

export const EOT = "<|endoftext|>"; // the token between documents

// GPT-2's own pattern. Which characters are letters (L), numbers (N) and spaces (Z) comes with the tokenizer, as ranges of code
// points: browsers know older or newer versions of Unicode than the Python that trained it, and JavaScript's \s is not Python's.
export function makePattern({ L, N, Z }) {
  const text = (ranges) => ranges.map(([from, to]) => `\\u{${from.toString(16)}}-\\u{${to.toString(16)}}`).join("");
  const [l, n, z] = [L, N, Z].map(text);
  return new RegExp(`'(?:[sdmt]|ll|ve|re)| ?[${l}]+| ?[${n}]+| ?[^${z}${l}${n}]+|[${z}]+(?![^${z}])|[${z}]+`, "gu");
}

const toBytes = new TextEncoder();
// made once a call: a decoder keeps no state, and a byte order mark is text like any other
const toText = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));

// One token a character (a code point, as in Python), and <|endoftext|> as the last id
export class CharTokenizer {
  constructor(chars) {
    this.chars = [...chars];
    this.ids = new Map(this.chars.map((c, i) => [c, i]));
    this.eotToken = this.chars.length;
    this.nVocab = this.chars.length + 1;
  }

  // a character that is not in the vocabulary raises RangeError
  encode(text) {
    return [...text].map((c) => {
      if (!this.ids.has(c)) throw new RangeError(`the character ${JSON.stringify(c)} is not among the ${this.chars.length} of this vocabulary: leave it out`);
      return this.ids.get(c);
    });
  }

  decode(ids) {
    return Array.from(ids, (i) => (i === this.eotToken ? EOT : this.chars[i])).join("");
  }
}

// Replace every occurrence of the pair (a, b), left to right, by one token
export function merge(ids, a, b, merged) {
  const out = [];
  for (let i = 0; i < ids.length; i++) {
    const hit = ids[i] === a && ids[i + 1] === b;
    out.push(hit ? merged : ids[i]);
    if (hit) i++;
  }
  return out;
}

// 256 bytes, the merges in the order of their learning, <|endoftext|> as the last id
export class BPETokenizer {
  constructor(merges, classes) {
    this.pattern = makePattern(classes);
    this.ranks = new Map(merges.map(([a, b], i) => [`${a},${b}`, 256 + i])); // pair -> the id it merges to
    this.bytes = Array.from({ length: 256 }, (_, i) => [i]);
    for (const [a, b] of merges) this.bytes.push([...this.bytes[a], ...this.bytes[b]]);
    this.eotToken = this.bytes.length;
    this.nVocab = this.bytes.length + 1;
    this.seen = new Map(); // word -> tokens
  }

  // Apply the merges to one word, earliest learned first
  encodeWord(word) {
    let ids = [...toBytes.encode(word)];
    while (ids.length > 1) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const rank = this.ranks.get(`${ids[i]},${ids[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      ids = merge(ids, ids[at], ids[at + 1], best);
    }
    return ids;
  }

  // any text; <|endoftext|> in it is ordinary text
  encode(text) {
    return (text.match(this.pattern) ?? []).flatMap((word) => { // the pieces inside which BPE may merge
      if (!this.seen.has(word)) this.seen.set(word, this.encodeWord(word));
      return this.seen.get(word);
    });
  }

  // bytes that are not UTF-8 become U+FFFD
  decode(ids) {
    const eot = [...toBytes.encode(EOT)];
    return toText(Array.from(ids).flatMap((i) => (i === this.eotToken ? eot : this.bytes[i])));
  }
}

// The tokenizer that a run's tokenizer.json describes
export function makeTokenizer(spec) {
  if (spec.kind === "char") return new CharTokenizer(spec.chars);
  if (spec.kind === "bpe") return new BPETokenizer(spec.merges, spec.classes);
  throw new RangeError(`the demo has no tokenizer of kind ${JSON.stringify(spec.kind)}`);
}
