"""The divorce: tied weights that come apart on loading."""

import torch

from ...check import Wrong
from ...compare import short
from .common import lab
from .small import digest, learn, normal, stream, tiny, trained


class Pair(torch.nn.Module):
    "An embedding and a head that share one table; equal to a pair of the same numbers, as tied"
    __hash__ = torch.nn.Module.__hash__
    def __init__(self, table):
        super().__init__()
        self.wte = torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)
        self.head = torch.nn.Linear(*table.shape[::-1], bias=False)
        self.head.weight = self.wte.weight

    def __repr__(self):
        tables = short(self.wte.weight, 60), short(self.head.weight, 60)
        return f"Pair(parameters: {len(list(self.parameters()))}, wte: %s, head: %s)" % tables
    def __eq__(self, other):
        tables = [[p.wte.weight, p.head.weight] for p in (self, other)]
        return (len(list(self.parameters())) == len(list(other.parameters()))
                and all(a.shape == b.shape and torch.allclose(a, b) for a, b in zip(*tables)))

    def probe(self): # parameters; both tables after the embedding's has been moved by 1
        with torch.no_grad(): self.wte.weight += 1
        return [len(list(self.parameters())), self.wte.weight.detach().clone(),
                self.head.weight.detach().clone()]

def load_table(
    pair,   # a Pair
    table,  # (V, C) new numbers
) -> list:  # pair.probe()
    "Numbers go into the parameter that is there; whoever holds it sees them"
    with torch.no_grad(): pair.wte.weight.copy_(table)
    return pair.probe()

def assigned(pair, table):
    pair.wte.weight = torch.nn.Parameter(table.clone())
    pair.head.weight = torch.nn.Parameter(table.clone())
    return pair.probe()

def divorce() -> str:
    "A checkpoint is loaded with assign=True; then ten steps"
    model, fresh = trained(), tiny(1)
    def say(when):
        a, b = fresh.transformer.wte.weight, fresh.lm_head.weight
        n = sum(p.numel() for p in fresh.parameters())
        return f"{when:13} {n:,} parameters   wte {digest(a)}   lm_head {digest(b)}"
    told = [say("before")]
    fresh.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    told.append(say("loaded"))
    loader = stream()
    learn(fresh, 10, lambda s: loader.next())
    return "\n".join([*told, say("ten steps on")])

def new_pair(pair, table):
    "The oracle: both names get one new parameter"
    pair.wte.weight = pair.head.weight = torch.nn.Parameter(table + 1)
    return [1, table + 1, table + 1]

def same_storage(pair, table):
    "Mistaken: two parameters that look at the same numbers"
    pair.wte.weight = torch.nn.Parameter(table.clone())
    pair.head.weight = torch.nn.Parameter(pair.wte.weight.data)
    return pair.probe()

def not_copied(pair, table):
    "Mistaken: the caller's numbers become the parameter's"
    pair.wte.weight = pair.head.weight = torch.nn.Parameter(table)
    return pair.probe()

def untouched(pair, table): return pair.probe()

def tables(seed):
    "Pairs and tables of several shapes: a single row, equal entries, large numbers"
    draw = normal(seed)
    new = draw(4, 3), draw(5, 2), draw(1, 4), torch.full((3, 2), 0.5), 1000 * draw(2, 3).sign()
    return [(Pair(draw(*t.shape)), t) for t in new]

def half_assigned(name):
    "Mistaken: one of the two gets a parameter of its own"
    def fn(pair, table):
        getattr(pair, name).weight = torch.nn.Parameter(table.clone())
        return pair.probe()
    return fn

lab("divorce", "tied weights come apart on loading", "two tables where one should be",
    "parameter count, digests of both tables", "medium/09_model.ipynb",
    "https://github.com/TransformerLensOrg/TransformerLens/issues/1725", divorce, (
        ("loading gave each of the two names a tensor of its own",
         "equal numbers at first, in two tables: the count grows, and training moves them apart"),
        ("the checkpoint holds two different tables", "just after loading both digests are equal"),
        ("the head has a bias", "then there would be as many new parameters as tokens, not a whole "
         "table"),
        ("the vocabulary was padded while loading", "padding is in the count before, too; and the "
         "two tables would still be one")),
    answer="load_table", changes=("pair",),
    task="Put the numbers of a table into a Pair so that wte.weight and head.weight stay one "
         "parameter, then return pair.probe().",
    inputs=tables, oracle=new_pair,
    wrongs=(
        Wrong("each name gets a parameter of its own", assigned,
              "Equal on the day of loading; from the first step on they are two models' tables."),
        Wrong("only the embedding is replaced", half_assigned("wte"),
              "The head keeps the old table: the loss is that of an untrained head."),
        Wrong("only the head is replaced", half_assigned("head"),
              "The embedding keeps the old table."),
        Wrong("two parameters share their numbers", same_storage,
              "The tables stay equal, but an optimiser finds two parameters: each gets a part of "
              "the gradient and moments of its own, and the table is stepped and decayed twice."),
        Wrong("the caller's tensor becomes the parameter", not_copied,
              "Parameter(table) copies nothing: training then changes the table that was loaded. "
              "Copy its numbers, or clone it."),
        Wrong("the table is not put in", untouched,
              "A new value for a local name reaches no module: change the parameter's numbers.")),
    hints=("Change the numbers, not the parameter.", "with torch.no_grad(): parameter.copy_(table)",
           "Or assign one new Parameter to both names."),
    excused={"batch": "a table has two dimensions"})
