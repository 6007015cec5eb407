"""The average of the statistics that a model keeps."""

import torch

from gradsieve.exchange import ManagedGroup
from gradsieve.outer.buffers import BufferAverage


class Alone:
    def size(self):
        return 1

    def alltoall_base(self, received, sent, *arguments):
        received.copy_(sent)


def test_an_average_is_of_the_statistics_when_it_was_made():
    group = ManagedGroup(Alone())
    group.meet()
    statistics = torch.arange(3.0)
    average = BufferAverage([statistics], group)
    statistics.fill_(9.0)
    average.begin()
    assert [sums.tolist() for sums in average.wait()] == [[0.0, 1.0, 2.0]]
