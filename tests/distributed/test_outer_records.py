"""What is told of local steps: bits, the rank that was slow, the files of a recorder."""

import time

import torch.distributed as dist
from local_steps import build, exact, train
from ranks import run_ranks

import gradsieve as gs


def finish_with_fragments():
    net = build()
    outer = gs.OuterSync(net, every=6, fragments=2, min_numel=2048, **exact())
    bits = []
    outer.on_step = lambda record: bits.append(record.bits_per_parameter)
    train(net, outer, 2)
    outer.finish()
    # All elements, of float32, in two steps.
    assert len(bits) == 2
    assert 16 < sum(bits) < 18


def test_fragments_that_finish_together_share_their_steps():
    run_ranks(2, finish_with_fragments)


def be_slow():
    net = build()
    outer = gs.OuterSync(net, every=3, **exact())
    optimizer = train(net, outer, 3)
    for step in range(3, 6):
        if dist.get_rank() == 1 and step == 4:
            time.sleep(0.5)
        train(net, outer, 1, first=step, optimizer=optimizer)
    return outer.last


def test_the_record_says_who_was_slow_and_for_how_long_others_waited():
    records = run_ranks(3, be_slow)
    assert [record.slowest_rank for record in records] == [1, 1, 1]
    assert records[0].waited_seconds > 0.4
    assert records[2].waited_seconds > 0.4
    assert records[1].waited_seconds < records[0].waited_seconds / 2
    assert records[0].exposed_seconds > 0.4


def record_into(directory):
    net = build()
    outer = gs.OuterSync(net, every=2, threshold=gs.Sigma(1.0), exchange="gather", min_numel=100)
    recorder = gs.Recorder(outer.state, net, directory, histograms_every=2, tensorboard=False)
    optimizer = None
    for step in range(8):
        optimizer = train(net, outer, 1, first=step, optimizer=optimizer)
        recorder.log(loss=1.0)
    recorder.close()


def test_a_recorder_takes_the_pseudo_gradients(tmp_path):
    # Not in the ranks, which would wait for it.
    from gradsieve.lab.report.source import read_source

    run_ranks(2, record_into, str(tmp_path))
    (run,) = read_source(tmp_path).runs
    assert [line["step"] for line in run.steps] == [0, 1, 2, 3]
    assert {"weight", "gradient", "residual"} <= run.counted[0].histograms.keys()
