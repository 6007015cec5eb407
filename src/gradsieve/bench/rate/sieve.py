"""The ranks' sieves in one process, through the hook's own select, encode and decode."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradsieve.averaging import average_into
from gradsieve.codec import decode_frame, encode_frame
from gradsieve.hook import sieve_gradients
from gradsieve.settings import read_settings
from gradsieve.state import SieveState
from gradsieve.tally import Tally


class Sieve:
    """`SieveState` on each rank.

    Args:
        settings: of the state, as `read_settings` takes them.

    Raises:
        ValueError: they are written otherwise, or a number is out of range.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: int, settings: str) -> None:
        self.states = [SieveState(**read_settings(settings)) for _ in range(ranks)]
        for state in self.states:
            state.bind(nn.ParameterList(parameters))
        self.kept = [list(state.registry) for state in self.states]
        # What all ranks hold alike is kept and followed once.
        for of_ranks in zip(*self.kept, strict=True):
            for parameter in of_ranks:
                parameter.rotation = of_ranks[0].rotation

    def average(self, gradients: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], float]:
        frames = []
        for state, kept, own in zip(self.states, self.kept, gradients, strict=True):
            state.workspace.clear()
            state.tally = Tally()
            frames.append(encode_frame(sieve_gradients(state, kept, own)))
            state.sent = []
            state.steering.sizes.end_step()
            state.step += 1
        numels = [gradient.numel() for gradient in gradients[0]]
        buffer = torch.empty(sum(numels))
        rotations = [parameter.rotation for parameter in self.kept[0]]
        average_into(buffer, [decode_frame(frame) for frame in frames], rotations)
        for of_ranks in zip(*self.kept, strict=True):
            rotation = of_ranks[0].rotation
            if rotation is not None and rotation.is_due:
                rotation.turn([parameter.flat_residual() for parameter in of_ranks])
        parts = torch.split(buffer, numels)
        averages = [
            part.view_as(gradient) for part, gradient in zip(parts, gradients[0], strict=True)
        ]
        return averages, 8 * sum(frame.numel() for frame in frames) / len(frames)
