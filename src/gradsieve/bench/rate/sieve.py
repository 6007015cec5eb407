"""The ranks' sieves in one process, through the hook's own select, encode and decode."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradsieve.averaging import average_into
from gradsieve.codec import decode_frame, encode_frame
from gradsieve.hook import sieve_gradients
from gradsieve.parameters import ParameterState
from gradsieve.state import SieveState
from gradsieve.tally import Tally
from gradsieve.thresholds import Density


class Sieve:
    """Density(density) with error feedback."""

    def __init__(
        self, parameters: Sequence[Tensor], ranks: int, density: float, values: Any
    ) -> None:
        self.states = [SieveState(Density(density), values=values) for _ in range(ranks)]
        self.kept = [
            [
                ParameterState(str(number), p, whole=p.numel() < state.min_numel)
                for number, p in enumerate(parameters)
            ]
            for state in self.states
        ]

    def average(self, gradients: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], float]:
        frames = []
        for state, kept, own in zip(self.states, self.kept, gradients, strict=True):
            state.workspace.clear()
            state.tally = Tally()
            frames.append(encode_frame(sieve_gradients(state, kept, own)))
            state.sent = []
            state.step += 1
        numels = [gradient.numel() for gradient in gradients[0]]
        buffer = torch.empty(sum(numels))
        average_into(buffer, [decode_frame(frame) for frame in frames])
        parts = torch.split(buffer, numels)
        averages = [
            part.view_as(gradient) for part, gradient in zip(parts, gradients[0], strict=True)
        ]
        return averages, 8 * sum(frame.numel() for frame in frames) / len(frames)
