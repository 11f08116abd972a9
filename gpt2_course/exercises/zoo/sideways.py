"""Sideways: Conv1D weights that are transposed only where the shape asks for it."""

import numpy as np
import torch

from ...check import Wrong
from .common import lab
from .small import normal, stream, tiny, trained


CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

def to_linear(
    state:dict, # names and tensors of a GPT-2 whose layers are Conv1D: (in, out)
) -> dict:      # the same for nn.Linear: (out, in)
    "By name: shapes cannot tell for a square matrix"
    return {n: t.T if n.endswith(CONV1D) else t for n, t in state.items()}

def by_shape(state):
    flip = lambda n, t: n.endswith(CONV1D) and t.size(0) != t.size(1)
    return {n: t.T if flip(n, t) else t for n, t in state.items()}

@torch.no_grad()
def sideways() -> str:
    "Weights in OpenAI's layout are loaded; how far each layer of block 0 is from the original's"
    model, x = trained(), stream(4, split=2).next()
    saved = {n: t.T.clone() if n.endswith(CONV1D) else t for n, t in model.state_dict().items()}
    new, seen = tiny(), {}
    told = [str(new.load_state_dict(by_shape(saved)))]
    def listen(m, name):
        seen[name] = seen.get(name, [])
        return m.register_forward_hook(lambda m, i, o: seen[name].append(o))
    for m in (model, new.eval()):
        hooks = [listen(part, n) for n, part in m.transformer.h[0].named_modules()
                 if n in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")]
        m(x[0])
        for h in hooks: h.remove()
    told += [f"block 0, {n:12} off by {float((a - b).abs().max()):.5f}"
             for n, (a, b) in seen.items()]
    return "\n".join([*told, f"loss {model(*x):.3f} as it was, {new(*x):.3f} as loaded"])

def conv_states(seed):
    "State dicts of a layer or two, one of the matrices square"
    draw = normal(seed)
    return [({"wte.weight": draw(5, C), "h.0.attn.c_attn.weight": draw(C, 3 * C),
              "h.0.attn.c_attn.bias": draw(3 * C), "h.0.attn.c_proj.weight": draw(C, C),
              "h.0.mlp.c_fc.weight": draw(C, 4 * C), "h.0.mlp.c_proj.weight": draw(4 * C, C)},)
            for C in (2, 3)]

def transposed_numpy(state):
    "Matrices of blocks, transposed by NumPy"
    inner = lambda n, t: n.startswith("h.") and t.dim() > 1
    return {n: torch.from_numpy(np.ascontiguousarray(t.numpy().T)) if inner(n, t) else t
            for n, t in state.items()}

lab("sideways", "Conv1D weights not transposed where the matrix is square",
    "weights that load without a complaint, and a loss that is too high",
    "layer by layer against the original", "medium/10_pretrained.ipynb",
    "https://github.com/AutoGPTQ/AutoGPTQ/pull/139", sideways, (
        ("the square matrix is the wrong way round: its shape could not tell",
         "everything agrees up to c_attn, and attn.c_proj, the only square one, is the first that "
         "does not"),
        ("some weights were not loaded", "the report says that all keys match"),
        ("the file holds float16", "the first two layers agree to the last printed digit"),
        ("the heads are in another order", "that would be made by c_attn, which agrees")),
    answer="to_linear",
    task="A state dict for nn.Linear from one for Conv1D, whose weights (names that end in "
         "attn.c_attn, attn.c_proj, mlp.c_fc or mlp.c_proj, then .weight) are stored as (in, out).",
    inputs=conv_states, oracle=transposed_numpy,
    wrongs=(
        Wrong("only what does not fit is transposed", by_shape,
              "attn.c_proj is square: it fits either way, loads without a word and is wrong."),
        Wrong("every matrix is transposed",
              lambda s: {n: t.T if t.dim() > 1 else t for n, t in s.items()},
              "The embedding is no Conv1D: it already is (V, C)."),
        Wrong("it is reshaped instead of transposed",
              lambda s: {n: t.reshape(t.size(1), t.size(0)) if n.endswith(CONV1D) else t
                         for n, t in s.items()},
              "The shape is right and the numbers are scrambled."),
        Wrong("the MLP is forgotten",
              lambda s: {n: t.T if n.endswith(CONV1D[:2]) else t for n, t in s.items()},
              "Four matrices of each block are Conv1D, not two."),
        Wrong("what is not transposed is left out",
              lambda s: {n: t.T for n, t in s.items() if n.endswith(CONV1D)},
              "Embeddings, LayerNorms and biases belong to the state dict, too: without them they "
              "stay as they were initialised, or loading fails."),
        Wrong("matrices are mirrored, not transposed",
              lambda s: {n: t.flip(0, 1).T if n.endswith(CONV1D) else t for n, t in s.items()},
              "Rows and columns change places and keep their order: entry (i, j) goes to (j, i), "
              "nothing more.")),
    hints=("For which of the four do (in, out) and (out, in) have the same shape?",
           "Go by the name: name.endswith(...)."))
