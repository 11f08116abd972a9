// GPT-2's forward pass by hand, with OpenAI's parameter names: gpt2_course.model in JavaScript.
// T new positions, S positions up to and with the newest, C = n_embd, nh heads of size hs = C / nh, V = vocab_size.
// Every tensor is a Float32Array, row after row.

// x (T, in) by PyTorch's Linear: weight (out, in), bias (out) or undefined -> (T, out)
export function linear(x, T, weight, bias) {
  const nin = x.length / T, nout = weight.length / nin;
  const y = new Float32Array(T * nout);
  for (let t = 0; t < T; t++) {
    for (let o = 0; o < nout; o++) {
      let a = t * nin, b = o * nin, s0 = bias ? bias[o] : 0, s1 = 0, s2 = 0, s3 = 0;
      for (const end = a + nin - (nin % 4); a < end; a += 4, b += 4) {
        s0 += x[a] * weight[b]; // four sums, so that no addition waits for the one before
        s1 += x[a + 1] * weight[b + 1];
        s2 += x[a + 2] * weight[b + 2];
        s3 += x[a + 3] * weight[b + 3];
      }
      for (const end = (t + 1) * nin; a < end; a++, b++) s0 += x[a] * weight[b];
      y[t * nout + o] = s0 + s1 + s2 + s3;
    }
  }
  return y;
}

// Mean 0 and variance 1 for each row of x (T, C), then scale and shift
export function layerNorm(x, T, weight, bias) {
  const C = x.length / T, y = new Float32Array(x.length);
  for (let t = 0; t < T; t++) {
    const row = x.subarray(t * C, (t + 1) * C);
    let mean = 0, variance = 0;
    for (const value of row) mean += value / C;
    for (const value of row) variance += (value - mean) ** 2 / C;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    for (let c = 0; c < C; c++) y[t * C + c] = (row[c] - mean) * scale * weight[c] + (bias ? bias[c] : 0);
  }
  return y;
}

// The tanh approximation, as GPT-2
export const gelu = (x) => x.map((u) => 0.5 * u * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (u + 0.044715 * u ** 3))));

// x + y, the residual stream
const add = (x, y) => x.map((value, i) => value + y[i]);

// Keys and values of all layers for the positions seen so far, and who looked at whom
export class KVCache {
  constructor({ n_layer, n_embd, block_size }) {
    const room = () => Array.from({ length: n_layer }, () => new Float32Array(block_size * n_embd));
    this.k = room(); // n_layer times (block_size, C): the heads lie side by side
    this.v = room();
    this.shares = Array.from({ length: n_layer }, () => []); // [layer][position]: (nh, S) attention
    this.length = 0; // positions stored
  }

  // Forget all but the first `length` positions
  crop(length) {
    this.length = length;
    for (const rows of this.shares) rows.length = length;
  }
}

// Causal attention of T new positions over themselves and the cached past: qkv (T, 3C) -> (T, C)
export function attend(qkv, T, nh, cache, layer) {
  const C = qkv.length / T / 3, hs = C / nh, past = cache.length;
  const k = cache.k[layer], v = cache.v[layer], y = new Float32Array(T * C);
  for (let t = 0; t < T; t++) {
    const row = t * 3 * C;
    k.set(qkv.subarray(row + C, row + 2 * C), (past + t) * C);
    v.set(qkv.subarray(row + 2 * C, row + 3 * C), (past + t) * C);
    const S = past + t + 1; // a position sees itself and its past, never its future
    const shares = new Float32Array(nh * S);
    for (let h = 0; h < nh; h++) {
      const share = shares.subarray(h * S, (h + 1) * S);
      for (let s = 0; s < S; s++) {
        let score = 0;
        for (let i = h * hs; i < (h + 1) * hs; i++) score += qkv[row + i] * k[s * C + i];
        share[s] = score / Math.sqrt(hs);
      }
      share.set(softmax(share));
      for (let s = 0; s < S; s++) {
        for (let i = h * hs; i < (h + 1) * hs; i++) y[t * C + i] += share[s] * v[s * C + i];
      }
    }
    cache.shares[layer][past + t] = shares;
  }
  return y;
}

// Scores to shares that sum to 1; the largest is subtracted first, so that nothing overflows
export function softmax(scores) {
  let top = -Infinity, sum = 0;
  for (const score of scores) top = Math.max(top, score);
  const out = Float64Array.from(scores, (score) => Math.exp(score - top));
  for (const value of out) sum += value;
  return out.map((value) => value / sum);
}

export class GPT {
  // cfg: block_size, vocab_size, n_layer, n_head, n_embd; params: name -> Float32Array
  constructor(cfg, params) {
    this.cfg = cfg;
    this.params = params;
  }

  // weight and bias of one module, such as "transformer.h.0.ln_1"
  wb(name) {
    return [this.params[`${name}.weight`], this.params[`${name}.bias`]];
  }

  // One transformer block: x (T, C) -> (T, C)
  block(x, T, cache, layer) {
    const h = `transformer.h.${layer}`;
    const qkv = linear(layerNorm(x, T, ...this.wb(`${h}.ln_1`)), T, ...this.wb(`${h}.attn.c_attn`)); // (T, 3C)
    const y = attend(qkv, T, this.cfg.n_head, cache, layer);
    x = add(x, linear(y, T, ...this.wb(`${h}.attn.c_proj`)));
    const wide = gelu(linear(layerNorm(x, T, ...this.wb(`${h}.ln_2`)), T, ...this.wb(`${h}.mlp.c_fc`))); // (T, 4C)
    return add(x, linear(wide, T, ...this.wb(`${h}.mlp.c_proj`)));
  }

  // T new tokens after those in the cache -> logits of the positions `first` to T - 1: (T - first, V)
  forward(ids, cache = new KVCache(this.cfg), first = 0) {
    const { n_layer, n_embd: C, block_size, vocab_size } = this.cfg, T = ids.length, past = cache.length;
    if (!ids.every((id) => Number.isInteger(id) && id >= 0 && id < vocab_size)) throw new RangeError(`a token is not one of the ${vocab_size}`);
    if (past + T > block_size) throw new RangeError(`${past + T} tokens do not fit into the block of ${block_size}: crop the input`);
    const wte = this.params["transformer.wte.weight"], wpe = this.params["transformer.wpe.weight"];
    let x = new Float32Array(T * C); // (T, C) what this token means + where it stands
    for (let t = 0; t < T; t++) for (let c = 0; c < C; c++) x[t * C + c] = wte[ids[t] * C + c] + wpe[(past + t) * C + c];
    for (let layer = 0; layer < n_layer; layer++) x = this.block(x, T, cache, layer);
    cache.length += T; // after all layers have added theirs
    x = layerNorm(x.subarray(first * C), T - first, ...this.wb("transformer.ln_f"));
    return linear(x, T - first, wte); // lm_head shares wte's weights
  }
}

// Fetch manifest.json and the weights that it names: { model, manifest }
export async function loadModel(base = import.meta.url) {
  const get = async (name) => {
    const answer = await fetch(new URL(name, base)).catch(() => null); // null: no answer at all
    if (!answer?.ok) throw new Error(`${name} did not arrive (${answer?.status ?? "no answer"})`);
    return answer;
  };
  const manifest = await (await get("manifest.json")).json().catch(() => null);
  if (!manifest) throw new Error("manifest.json is not whole");
  const bytes = await (await get(manifest.weights.file)).arrayBuffer();
  if (bytes.byteLength !== manifest.weights.bytes) throw new Error(`${manifest.weights.file} is not whole (${bytes.byteLength} of ${manifest.weights.bytes} bytes)`);
  const view = new DataView(bytes); // little-endian on every machine
  const floats = Float32Array.from({ length: bytes.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
  const params = {};
  for (const { name, shape, offset } of manifest.weights.tensors) {
    params[name] = floats.subarray(offset, offset + shape.reduce((a, b) => a * b, 1)); // offset counts floats
  }
  return { model: new GPT(manifest.config, params), manifest };
}
