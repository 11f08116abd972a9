"""What all bugs of the zoo share: their register, symptoms, choices and diagnoses."""

from dataclasses import dataclass

import numpy as np

from ...check import Exercise, Verdict, find, read_tally, register, write_tally


@dataclass(frozen=True)
class Bug:
    "One creature of the zoo"
    name: str        # "zoo.still_water": by its symptom
    title: str       # what it is; only after the hunt
    seen: str        # its symptom, in a few words
    instrument: str  # what finds it
    chapter: str     # notebook that teaches the right way, under nbs/
    report: str      # address of the public report; "" where it was found by running the code
    run: object      # function () -> what the notebook prints or draws
    choices: tuple   # of (explanation, reply); the first is right

BUGS = {} # name -> Bug

def lab(name, title, seen, instrument, chapter, report, run, choices, answer, **exercise):
    "Register a bug and the exercise that fixes it"
    name = f"zoo.{name}"
    BUGS[name] = Bug(name, title, seen, instrument, chapter, report, run, choices)
    register(Exercise(name, "26", package=f"gpt2_course.exercises.zoo:{answer}", **exercise))

def symptom(
    name:str, # "zoo.still_water"
):
    "Run a bug; what it returns is all that its victims saw"
    return find_bug(name).run()

def find_bug(name):
    find(name) # an unknown name raises KeyError with the nearest one
    return BUGS[name]


def shown(
    bug:Bug,
) -> dict: # letter -> (explanation, reply), in an order of the bug's own
    "The choices as the reader sees them"
    order = np.random.default_rng(sum(map(ord, bug.name))).permutation(len(bug.choices))
    return {"abcdefgh"[i]: bug.choices[k] for i, k in enumerate(order)}

def right_letter(bug): # the letter under which the reader finds the right explanation
    return next(k for k, c in shown(bug).items() if c == bug.choices[0])

def diagnose(
    name:str,      # of a bug, such as "zoo.still_water"
    choice="…",    # a letter
) -> Verdict:
    "Answer a diagnosis, and remember it; without one, print the choices"
    bug = find_bug(name)
    choices, letter = shown(bug), str(choice).strip().lower()
    if letter not in choices:
        rows = "\n".join(f"   {k}) {text}" for k, (text, _) in choices.items())
        return Verdict("open", f"○ {name}: what is it? Put a letter in place of the dots.\n{rows}")
    right = choices[letter] == bug.choices[0]
    tally = read_tally()
    row = tally.setdefault("diagnoses", {}).setdefault(name, dict(state="open", tries=0))
    row["tries"] += 1
    row["state"] = "right" if right or row["state"] == "right" else "wrong"
    write_tally(tally)
    text, reply = choices[letter]
    return Verdict("right" if right else "mistake",
                   f"{'✓' if right else '✗'} {name}: {text}. {'Yes' if right else 'No'}: {reply}")


def visited():
    "Print how many bugs of the zoo are diagnosed and how many are mended"
    tally = read_tally()
    right = lambda part: sum(tally.get(part, {}).get(n, {}).get("state") == "right" for n in BUGS)
    print(f"the zoo has {len(BUGS)} bugs: {right('diagnoses')} diagnosed, {right('checks')} mended")
