"""A state with something in every field, without ranks."""

import io

import torch
from torch import nn

import gradsieve as gs
from gradsieve.parameters.pieces import Dealt
from gradsieve.sieve import measure

SETTINGS = {"threshold": gs.Sigma(2.0), "min_numel": 100, "rotation": 16}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(20, 40)
        self.two = nn.Linear(40, 30)
        self.vectors = nn.Parameter(torch.zeros(300))


def net():
    torch.manual_seed(0)
    return Net()


def bound(model=None, **settings):
    state = gs.SieveState(**SETTINGS | settings)
    state.bind(net() if model is None else model)
    return state


def kept_state(model=None, seed=0, **settings):
    """Bound, and as if it had trained."""
    generator = torch.Generator().manual_seed(seed)
    state = bound(model, **settings)
    state.step = 7
    state.sieve.thresholds.sizes.mean_square = 0.25
    notes = state.engine.reports.notes
    notes.mine = [float(number) for number in range(len(notes.mine))]
    for parameter in state.sieve.parameters:
        if parameter.residual is None:
            continue
        parameter.residual.copy_(torch.randn(parameter.shape, generator=generator))
        parameter.is_empty = False
        parameter.threshold, parameter.mean_square = 0.5, 0.125
        parameter.moments = measure(parameter.flat_residual())
        if parameter.rotation is not None:
            parameter.rotation.learn(parameter.flat_residual())
            parameter.rotation.turn([])
    by_label = {parameter.label: parameter for parameter in state.sieve.parameters}
    owning, dealt = by_label["one.weight"], by_label["vectors"]
    owning.owned_residual(100, 300).copy_(torch.randn(200, generator=generator))
    dealt.flat_residual()[50:] = 0
    dealt.dealt = Dealt(0, 50, 1)
    for parameter in state.sieve.parameters:
        parameter.commit()
    return state


def file_of(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    return file.getvalue()


def loaded(content):
    return torch.load(io.BytesIO(content), weights_only=True)
