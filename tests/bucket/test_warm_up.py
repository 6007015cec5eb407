"""What making a sieve compiles ahead, in a process that has compiled nothing before."""

from processes import printed_by

SCRIPT = """
import sys
import torch
from numba.core.registry import CPUDispatcher
from torch import nn

import gradsieve as gs
from gradsieve.bucket import warm_up
from gradsieve.bucket.rank_sieve import RankSieve
from gradsieve.lab.methods.played.transport import play_exchanges
from gradsieve.runtime import notices
from gradsieve.topology import TOPOLOGIES

def functions():
    modules = [module for name, module in sys.modules.items() if name.startswith("gradsieve")]
    return {f for m in modules for f in vars(m).values() if isinstance(f, CPUDispatcher)}

def compiled():
    return {(f.py_func.__name__, str(s)) for f in functions() for s in f.signatures}

def play(exchange, **options):
    topology = TOPOLOGIES[exchange]
    sieves = [RankSieve(gs.SieveConfig(exchange=exchange, **options)) for _ in range(2)]
    before = compiled()
    assert before
    for sieve in sieves:
        sieve.bind(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    for _ in range(3):
        exchanges, plans = [], []
        buckets = [torch.randn(2 * 65 * 64) for _ in sieves]
        for rank, (sieve, bucket) in enumerate(zip(sieves, buckets)):
            sieve.begin_step()
            plans.append(sieve.plan(topology, list(sieve.parameters), *topology.place_of(rank, 2)))
            sieve.place_residuals(plans[-1], 2, None)
            frames = sieve.encode(plans[-1], sieve.select(plans[-1], bucket))
            assert any(moments.survivors for moments in sieve.step.clock.moments.values())
            exchanges.append(topology.exchange(sieve.step, plans[-1], frames))
        found = play_exchanges(exchanges)
        for sieve, plan, bucket in zip(sieves, plans, buckets):
            sieve.average(plan, found, bucket, 2)
            sieve.commit()
            sieve.turn(2, None)
    print(sorted(compiled() - before))

play("gather")
play("gather", threshold=gs.Density(0.1), rotation=16)
play("gather", threshold=gs.Sigma(1), error_feedback=False)
play("two-shot", values="bfloat16", threshold=gs.UnsentMean(2))
play("gather", threshold=gs.Density(0.1), values="float32", rotation=16)

# As a process would start that finds all of this on disk, on a slow machine.
for function in functions():
    function._reset_overloads()
assert not compiled()
warm_up.NOTICE_AFTER = 0.0
warm_up.warm_up.cache_clear()
notices._told.clear()
RankSieve(gs.SieveConfig(rotation=16))
assert compiled()
print(sorted(notices._told))
"""


def test_steps_compile_nothing_that_making_a_sieve_has_not():
    """And a later start, which compiles nothing, says nothing of compiling."""
    printed = printed_by("-c", SCRIPT)
    assert printed.split() == ["[]"] * 6
