"""The catalogue of chapter 18 with its reference answers; the programs that its real processes run
are in team.py."""

import queue
import threading
import time

import numpy as np
import torch
import torch.distributed as dist

from ..challenge import Challenge, set_challenge
from ..check import Exercise, Wrong, register
from ..config import packaged
from ..data import TokenLoader
from ..optim import adamw
from ..tokenizer import CharTokenizer
from .team import dismiss, launch, left_behind, mark_children, starter # noqa: F401, for 19, 20
from .team import material, ring_plan


# --- ring_plan ---

def ring_by_slices(rank, n):
    "Slice c starts at rank c, is complete n - 1 hops later, and goes round again"
    steps = [[None, None, True] for _ in range(n - 1)] + [[None, None, False] for _ in range(n - 1)]
    for c in range(n):
        at = c
        for s in range(2 * (n - 1)):
            to = (at + 1) % n
            if at == rank: steps[s][0] = c
            if to == rank: steps[s][1] = c
            at = to
    return [tuple(step) for step in steps]

def rings(
    seed:int,
) -> list: # of (rank, ranks)
    "Ranks at both ends and in the middle, and a process that is alone"
    r = np.random.default_rng(seed)
    return [(int(r.integers(1, 4)), 4), (0, 3), (1, 2), (int(r.integers(1, 5)), 5), (4, 5), (0, 1)]

def halves(rank, n, give, give2, take=-1, add2=False, steps=lambda n: n - 1):
    "A mistaken ring: what is given at step s of either round, and which slice is taken beside it"
    first = [(give(rank, s) % n, (give(rank, s) + take) % n, True) for s in range(steps(n))]
    second = [(give2(rank, s) % n, (give2(rank, s) + take) % n, add2) for s in range(steps(n))]
    return first + second

down, again = lambda r, s: r - s, lambda r, s: r + 1 - s
register(Exercise(
    "distributed.ring_plan", "18", "What a rank does in a ring all-reduce: a list of 2 (n - 1) "
    "tuples (slice sent to the right, slice received from the left, whether it is added). At step "
    "0, rank r sends slice r.",
    inputs=rings, oracle=ring_by_slices, package="gpt2_course.exercises.distributed:ring_plan",
    wrongs=(
        Wrong("the second round begins with the rank's own slice",
              lambda r, n: halves(r, n, down, down),
              "After the first round, rank r holds the complete sum of slice r + 1. Its slice r is "
              "still unfinished, and this unfinished sum is what every rank would get."),
        Wrong("the second round adds as well", lambda r, n: halves(r, n, down, again, add2=True),
              "The sums are complete by then. If they are added again, the ranks end with "
              "different values."),
        Wrong("each round has n steps",
              lambda r, n: halves(r, n, down, again, steps=lambda n: n),
              "A slice makes n - 1 hops. At the n-th its sum returns to the rank where it started, "
              "and that rank's part is counted twice."),
        Wrong("the slices are counted upwards",
              lambda r, n: halves(r, n, lambda r, s: r + s, lambda r, s: r + 1 + s),
              "What was received at one step must be sent at the next. Here each step sends a "
              "slice to which no other rank has added anything yet."),
        Wrong("the second round is missing",
              lambda r, n: halves(r, n, down, again)[:n - 1],
              "After n - 1 steps each rank has the complete sum of a single slice, and unfinished "
              "sums of all the others. The complete ones must travel round the ring as well."),
        Wrong("the slice received is the one that the right neighbour sends",
              lambda r, n: halves(r, n, down, again, take=1),
              "Data flows to the right, so what arrives is what the left neighbour, rank r - 1, "
              "sends at this step: at step 0 its slice r - 1."),
        Wrong("every rank follows the plan of rank 0", lambda r, n: ring_plan(0, n),
              "If all ranks send the same slice at the same step, only one slice is in transit at "
              "a time, and what a rank receives is not the slice that it adds.")),
    hints=("At step 0 rank r sends slice r. What it sends at step 1 is what it received at step 0.",
           "The slice received is the one before the slice sent: (r - s - 1) % n in the first "
           "round.",
           "Second round, at step s: send (r + 1 - s) % n, receive (r - s) % n, do not add.")))


# --- average_gradient ---

def average_gradient(
    grads,  # of each rank: the gradient of the mean loss over its own tokens, all of one shape
    counts, # of each rank: how many tokens that was; 0 is possible
):          # the gradient of the mean loss over all tokens
    "Weight every rank by its number of tokens"
    total = sum(counts)
    return sum(g * (n / total) for g, n in zip(grads, counts))

def gradients_and_counts(
    seed:int,
) -> list: # of (gradients by rank, tokens by rank)
    "One to four ranks; one of them may have nothing but padding, with a gradient of zeros"
    g = torch.Generator().manual_seed(seed)
    last = int(torch.randint(1, 9, (1,), generator=g))
    def case(counts, shape=(2, 3), scale=1.0):
        return [scale * torch.randn(shape, generator=g) * (n > 0) for n in counts], counts
    equal = [torch.full((1, 4), x) for x in (1000.0, -1000.0)], [3, 2]
    return [case([3, 1]), case([5, 0, 2], (2, 2, 3)), case([4, 4, 7, last]), case([1000, 3], (4,)),
            case([2, 5], (1, 3), 1000.0), equal, case([6])]

def per_token(grads, counts):
    "A list with one row for each token, then NumPy's mean, in float64"
    rows = [g.double().numpy() for g, n in zip(grads, counts) for _ in range(n)]
    return torch.from_numpy(np.mean(rows, axis=0)).float()

def weighted(weight):
    "Gradients under some other weights"
    return lambda grads, counts: sum(g * weight(n, counts) for g, n in zip(grads, counts))

register(Exercise(
    "distributed.average_gradient", "18", "The gradient of the mean loss over all tokens, from "
    "each rank's gradient of its own mean loss and its number of tokens.",
    inputs=gradients_and_counts, oracle=per_token, rtol=1e-4, atol=1e-3,
    package="gpt2_course.exercises.distributed:average_gradient",
    wrongs=(
        Wrong("every rank has the same weight", weighted(lambda n, c: 1 / len(c)),
              "This is what DDP does. A rank with one token then counts as much as one with "
              "thousands: the result depends on how the rows were distributed."),
        Wrong("the gradients are added but not divided", weighted(lambda n, c: 1.0),
              "The gradient grows with the number of processes, and so does the step, unless "
              "clipping or Adam hides it."),
        Wrong("the weighted sum is divided by the number of ranks", weighted(lambda n, c: n/len(c)),
              "The weights of a mean add up to 1; these add up to the mean number of tokens."),
        Wrong("the weighted sum is not divided", weighted(lambda n, c: n),
              "That is the gradient of the summed loss. It grows with the batch, and with it the "
              "step."),
        Wrong("ranks without tokens are left out, and the others have equal weights",
              weighted(lambda n, c: (n > 0) / sum(k > 0 for k in c)),
              "That helps with a rank that holds nothing but padding; the other weights are still "
              "wrong."),
        Wrong("a rank without tokens counts as one token",
              weighted(lambda n, c: max(n, 1) / sum(max(k, 1) for k in c)),
              "Its gradient of zeros then pulls the mean towards zero. Only the total has to be "
              "above 0, not each count."),
        Wrong("the gradients are divided by all tokens, as if they were sums",
              weighted(lambda n, c: 1 / sum(c)),
              "Each rank has already divided by its own tokens. Multiply by its count first; "
              "otherwise the gradient is divided twice and is far too small."),
        Wrong("the weights are computed with integer division",
              weighted(lambda n, c: n // sum(c)),
              "5 // 7 is 0: unless one rank has all the tokens, every weight is 0 and nothing is "
              "learned.")),
    hints=("Undo each mean first: a rank's gradient times its count is a sum over its tokens.",
           "Add the sums, then divide by the number of tokens of all ranks.",
           "sum(g * n for g, n in zip(grads, counts)) / sum(counts)"),
    excused={"gradient": "gradients are averaged after the backward pass: nothing is "
                         "differentiated through the average"}))


# --- sync_schedule ---

def sync_schedule(
    micro:int, # micro-batches per step
    steps:int,
) -> list:     # steps x micro bools: whether the gradients of this micro-batch are exchanged
    "The last micro-batch of every step"
    return [i == micro - 1 for _ in range(steps) for i in range(micro)]

def by_counting(micro, steps):
    "Count micro-batches through the run; a step is full when micro divides the count"
    return [done % micro == 0 for done in range(1, steps * micro + 1)]

def schedules(
    seed:int,
) -> list: # of (micro-batches per step, steps)
    "With and without accumulation, a run of a single step"
    r = np.random.default_rng(seed)
    return [(4, 3), (1, 2), (int(r.integers(2, 5)), 5), (3, 2), (3, 1)]

register(Exercise(
    "distributed.sync_schedule", "18", "For each of the steps x micro forward passes, in order, "
    "whether its gradients are exchanged: one list of bools.",
    inputs=schedules, oracle=by_counting,
    package="gpt2_course.exercises.distributed:sync_schedule",
    wrongs=(
        Wrong("every micro-batch is exchanged", lambda m, n: [True] * (m * n),
              "The gradients are right, but the traffic is `micro` times as high: no_sync exists "
              "to avoid exactly this."),
        Wrong("the first micro-batch of each step is exchanged",
              lambda m, n: [i == 0 for _ in range(n) for i in range(m)],
              "A flag set after the forward pass has this effect: the gradients of the later "
              "micro-batches stay local, and the replicas drift apart."),
        Wrong("only the last micro-batch of the run is exchanged",
              lambda m, n: [i == m * n - 1 for i in range(m * n)],
              "The counter must restart with each step; otherwise nearly every step uses a local "
              "gradient."),
        Wrong("the counter is off by one",
              lambda m, n: [i == m for _ in range(n) for i in range(m)],
              "i counts from 0, so it never equals micro: nothing is ever exchanged."),
        Wrong("the bools are inverted",
              lambda m, n: [i != m - 1 for _ in range(n) for i in range(m)],
              "These are the micro-batches that belong under no_sync. The question is which ones "
              "exchange their gradients."),
        Wrong("micro-batches and steps are swapped",
              lambda m, n: [i == n - 1 for _ in range(m) for i in range(n)],
              "There are `steps` steps of `micro` micro-batches each: the inner loop is the one "
              "over micro-batches."),
        Wrong("there is a list for each step",
              lambda m, n: [[i == m - 1 for i in range(m)] for _ in range(n)],
              "The content is right, but the task asks for one flat list over all forward passes, "
              "in the order in which they are made.")),
    hints=("With one micro-batch per step, every one is exchanged.",
           "Gradients add up locally; one exchange of the sum is enough. When is it complete?",
           "i == micro - 1, for i from 0 in every step")))


# --- buckets ---

def buckets(
    sizes,   # bytes of each parameter, first layer first
    cap:int, # a bucket that holds this many bytes or more is sent
) -> list:   # of buckets: lists of parameter indices, in the order in which gradients arrive
    "Backward runs from the last parameter to the first: fill, send, begin the next"
    out, load = [[]], 0
    for i in reversed(range(len(sizes))):
        out[-1].append(i)
        load += sizes[i]
        if load >= cap: out, load = out + [[]], 0
    return out if out[-1] else out[:-1]

def torch_buckets(sizes, cap):
    "PyTorch's own, given the parameters in the order of arrival"
    arriving = [torch.empty(n, dtype=torch.uint8) for n in reversed(sizes)]
    found, _ = dist._compute_bucket_assignment_by_size(arriving, [cap])
    return [[len(sizes) - 1 - i for i in bucket] for bucket in found]

def parameter_sizes(
    seed:int,
) -> list: # of (bytes of each parameter, cap)
    "Buckets that are full to the byte, at the end too; a tensor above cap; a single bucket"
    r = np.random.default_rng(seed)
    some = lambda n: r.integers(1, 13, n).tolist()
    return [([*some(5), 9, 1], 10), ([3, 7, 7, 7, 2], 8), ([1, 2, 3, 4, 5], 6), ([2, 25, 3, 1], 8),
            ([1, 1, 1], 100), (some(8), 12)]

def forwards(sizes, cap): # mistaken: the order of the forward pass
    n = len(sizes)
    return [[n - 1 - i for i in bucket] for bucket in buckets(sizes[::-1], cap)]

def never_over(sizes, cap): # mistaken: a bucket is sent before it would overflow
    out, load = [[]], 0
    for i in reversed(range(len(sizes))):
        if out[-1] and load + sizes[i] > cap: out, load = out + [[]], 0
        out[-1].append(i)
        load += sizes[i]
    return out

def never_emptied(sizes, cap): # mistaken: the load keeps counting
    out, load = [[]], 0
    for i in reversed(range(len(sizes))):
        out[-1].append(i)
        load += sizes[i]
        if load >= cap: out = out + [[]]
    return out if out[-1] else out[:-1]

def empty_at_the_end(sizes, cap): # mistaken: a bucket is begun although nothing is left
    out = buckets(sizes, cap)
    return out + [[]] if sum(sizes[i] for i in out[-1]) >= cap else out

register(Exercise(
    "distributed.buckets", "18", "The parameter indices in each bucket, in the order in which "
    "their gradients arrive; a bucket is full when it holds cap bytes or more.",
    inputs=parameter_sizes, oracle=torch_buckets,
    package="gpt2_course.exercises.distributed:buckets",
    wrongs=(
        Wrong("the buckets are filled in the order of the forward pass", forwards,
              "The first layer's gradient comes last: no bucket is full before the backward pass "
              "ends, and nothing overlaps."),
        Wrong("a bucket is sent before it would overflow", never_over,
              "cap is not an upper limit: a tensor larger than a bucket must be sent too. DDP "
              "sends a bucket when it has reached cap."),
        Wrong("the last bucket is forgotten when it is not full",
              lambda sizes, cap: [b for b in buckets(sizes, cap)
                                  if sum(sizes[i] for i in b) >= cap],
              "The first layers' gradients are never averaged: the embeddings drift apart while "
              "the blocks stay equal."),
        Wrong("a bucket that holds exactly cap bytes is not sent",
              lambda sizes, cap: buckets(sizes, cap + 1),
              "It is full at cap bytes or more: >= and not >. Here it waits for one more "
              "gradient, and all later buckets are shifted."),
        Wrong("the load is not reset to 0", never_emptied,
              "After the first full bucket the load is above cap for good, so every later "
              "parameter is sent in a bucket of its own."),
        Wrong("an empty bucket is left at the end", empty_at_the_end,
              "When the last gradient fills its bucket, nothing is left to send, and no new bucket "
              "must be begun."),
        Wrong("the indices within a bucket are sorted",
              lambda sizes, cap: [sorted(b) for b in buckets(sizes, cap)],
              "Gradients arrive from the last parameter to the first, and the order within a "
              "bucket is the order of arrival.")),
    hints=("Which gradient is ready first in a backward pass?",
           "Append the parameter, add its bytes; if they reach cap, begin a new bucket.",
           "At the end send what is left, but no empty bucket.")))


# --- the open challenge: fewer bytes ---

RANKS, ERROR, PATIENCE = 4, 0.01, 5.0 # simulated ranks, relative error allowed, seconds

class Mail:
    "A simulated rank's network: it sends and receives tensors, and counts the bytes sent"
    def __init__(self, rank, boxes): self.rank, self.boxes, self.sent = rank, boxes, 0

    def send(self, t, to): # returns at once
        if not isinstance(t, torch.Tensor) or t.layout != torch.strided:
            raise ValueError("mail.send takes a dense tensor, whose bytes can be counted: pack "
                             "whatever you send into one")
        if to == self.rank or to not in range(RANKS):
            raise ValueError(f"rank {self.rank} sends to rank {to!r}: there are 0 to {RANKS - 1}")
        self.sent += t.numel() * t.element_size()
        self.boxes[self.rank, to].put(t.detach().clone())

    def receive(self, source): # waits for the next tensor from there
        if source == self.rank or source not in range(RANKS):
            raise ValueError(f"rank {self.rank} waits for rank {source!r}: there are 0 to "
                             f"{RANKS - 1}")
        try: return self.boxes[source, self.rank].get(timeout=PATIENCE)
        except queue.Empty:
            raise TimeoutError(f"rank {self.rank} waits for rank {source}, which sends nothing "
                               "more") from None

def gradients_on_macbeth() -> list: # of lists: each rank's gradient, a vector
    "Of a small GPT: at its first step, and after thirty"
    model, ids = material(0)
    optimizer = adamw(model, 1e-2, 0.1, (0.9, 0.95), "cpu")
    hamlet = packaged("shakespeare/hamlet.txt").read_text(encoding="utf-8")
    text = packaged("shakespeare/macbeth.txt").read_text(encoding="utf-8")
    macbeth = np.array(CharTokenizer(hamlet).encode("".join(c for c in text if c in hamlet)),
                       np.uint16)
    seen = TokenLoader([ids], 8, 32)
    readers = [TokenLoader([macbeth], 8, 32, rank=r, world=RANKS) for r in range(RANKS)]
    def gradient(x, y):
        optimizer.zero_grad()
        model(x, y).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    out = []
    for steps in (0, 30):
        for _ in range(steps):
            gradient(*seen.next())
            optimizer.step()
        out.append([gradient(*reader.next()) for reader in readers])
    return out

def together(fn, gradients, seconds):
    "Run fn(gradient, rank, ranks, mail) for all ranks in threads: results and bytes by rank"
    boxes = {(a, b): queue.SimpleQueue() for a in range(RANKS) for b in range(RANKS)}
    mails, found, errors = [Mail(r, boxes) for r in range(RANKS)], {}, []
    def rank(r):
        try: found[r] = fn(gradients[r].clone(), r, RANKS, mails[r])
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=rank, args=(r,), daemon=True) for r in range(RANKS)]
    for t in threads: t.start()
    deadline = time.monotonic() + seconds
    while any(t.is_alive() for t in threads) and time.monotonic() < deadline:
        if any(not isinstance(e, TimeoutError) for e in errors): break
        time.sleep(0.005)
    for e in sorted(errors, key=lambda e: isinstance(e, TimeoutError)): raise e
    if len(found) < RANKS: raise ValueError(f"not all ranks are done after {seconds:g} seconds")
    return [found[r] for r in range(RANKS)], [m.sent for m in mails]

def bytes_per_byte(
    fn,            # function (gradient, rank, ranks, mail) -> sum over ranks
    seconds:float,
) -> float:        # bytes that the busiest rank sends, per byte of gradient
    "Real gradients, simulated ranks"
    sent = total = 0
    for gradients in gradients_on_macbeth():
        results, bytes_sent = together(fn, gradients, seconds / 2)
        truth = torch.stack(gradients).double().sum(0)
        for r, t in enumerate(results):
            if not isinstance(t, torch.Tensor) or t.shape != truth.shape:
                what = tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__
                raise ValueError(f"rank {r} returns {what}: it must return a tensor like its "
                                 f"gradient, of shape {tuple(truth.shape)}")
            if not torch.equal(t, results[0]):
                raise ValueError(f"rank {r} ends with other values than rank 0: replicas must "
                                 "stay equal to the last bit")
        error = float((results[0].double() - truth).norm() / truth.norm())
        if not error <= ERROR:
            raise ValueError(f"the sum is off by {error:.2%} of its norm; {ERROR:.0%} is allowed")
        sent, total = sent + max(bytes_sent), total + gradients[0].nbytes
    return sent / total

def sixteen_bit_ring(g, rank, n, mail):
    "The ring of this chapter: sums in float32, everything that travels in bfloat16"
    slices = list(g.tensor_split(n))
    for give, take, add in ring_plan(rank, n):
        mail.send(slices[give].bfloat16(), (rank + 1) % n)
        got = mail.receive((rank - 1) % n).float()
        slices[take] = slices[take] + got if add else got
    return torch.cat(slices).bfloat16().float() # a rank's own slice is rounded like all others

set_challenge(Challenge(
    "distributed.bytes", "18", "An all-reduce that sends few bytes: fn(g, rank, n, mail) returns "
    "the sum of all ranks' g to within 1% of its norm, with the same bits on every rank; "
    "mail.send(tensor, to) and mail.receive(source) are its only network.",
    score=bytes_per_byte, plain=sixteen_bit_ring, to_beat=0.75,
    unit="bytes sent by the busiest rank, per byte of gradient",
    measured="two cores of an AMD EPYC, one thread, November 2026", seconds=20))
