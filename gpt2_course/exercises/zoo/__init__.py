"""The catalogue of chapter 26: historical bugs of GPT training code, each in a file of its own."""

from .common import BUGS, diagnose, right_letter, shown, symptom, visited
from .processes import CASES, one_rank
from .ward import short_run # its module sets the open challenge at the end of the chapter

# In the order of the hunt, which becomes that of BUGS; from each file the answer to its exercise
from .still_water import warm_up
from .high_tide import std_of
from .snail import tokens_per_second
from .deaf import override
from .parrot import windows
from .prophet import shares
from .short_memory import mixed
from .one_size import angles
from .stammer import positions
from .snowball import descend
from .brass_band import whole_gradient
from .small_voices import token_gradient
from .heartbeat import plan
from .standstill import ready
from .ghosts import through_half
from .wither import decayed
from .tide import order
from .night_watch import due
from .black_hole import safe_mean
from .drifting_twins import micro_batches
from .chorus import dealt
from .loaded_dice import seeds
from .silence import last_steps
from .short_rations import steps_in
from .restless import rate_of_dropout
from .coin_toss import log_likelihood
from .foreign_tongue import next_shares
from .babbler import targets_of
from .lottery import top_k_shares
from .deja_vu import split
from .big_fish import shard_sizes
from .yesterday import checkpoints
from .mirror import best_weights
from .groundhog import where
from .sideways import to_linear
from .divorce import load_table
from .stranger import clean
from .heirloom import portable
