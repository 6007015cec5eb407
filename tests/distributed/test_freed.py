"""What is no longer used is freed, with its thread."""

import gc
import threading
import time
import weakref

from models import build, train
from ranks import run_ranks

import gradsieve as gs


def make_and_forget():
    model = build()
    state = gs.attach(model, threshold=gs.Density(0.05), min_numel=100)
    train(model, 2)
    assert "gradsieve-exchange" in thread_names()
    alive = [weakref.ref(thing) for thing in (model, model.module, state)]
    del model, state
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3
    deadline = time.monotonic() + 5
    while "gradsieve-exchange" in thread_names() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "gradsieve-exchange" not in thread_names()


def thread_names():
    return [thread.name for thread in threading.enumerate()]


def test_a_model_that_is_no_longer_used_is_freed():
    run_ranks(2, make_and_forget)
