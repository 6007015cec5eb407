"""What is called where a user infers leaves a sieve that trains."""

import torch
from local_steps import build as plain_net
from models import batch, build, same_on_all_ranks, smaller_pieces, train, weights
from ranks import run_ranks

import gradsieve as gs

SETTINGS = {"threshold": gs.Density(0.1), "min_numel": 100, "exchange": "two-shot", "rotation": 16}


def tensors_in(state):
    for parameter in state.sieve.parameters:
        yield from (v for v in vars(parameter).values() if isinstance(v, torch.Tensor))
        if parameter.owned is not None:
            yield parameter.owned.residual
        if parameter.rotation is not None:
            for basis in parameter.rotation.bases:
                yield from (basis.vectors, basis.covariance)


def ordinary(tensors):
    found = list(tensors)
    assert found
    assert not any(tensor.is_inference() for tensor in found)


def synchronous(mode):
    model = build()
    with mode():
        state = gs.attach(model, **SETTINGS)
        ordinary(tensors_in(state))
    optimizer = train(model, 2)
    with mode():
        assert set(state.residuals) == {name for name, _ in model.module.named_parameters()}
        assert all(residual.isfinite().all() for residual in state.residuals.values())
        assert state.owned_residuals
        state.load_state_dict(state.state_dict())
        ordinary(tensors_in(state))
    train(model, 2, first=2, optimizer=optimizer)
    assert same_on_all_ranks(model)
    return weights(model)


def local(mode):
    net = plain_net()
    with mode():
        outer = gs.OuterSync(net, every=2, delay=1, optimizer=momentum, **SETTINGS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(5):
        learn(net, optimizer, step)
        with mode():
            outer.step()
            if step == 2:
                outer.load_state_dict(outer.state_dict())
    with mode():
        outer.finish()
    kept = (s["momentum_buffer"] for s in outer.optimizer.state.values())
    ordinary([*tensors_in(outer.state), *kept, *outer._weights.outer, *net.parameters()])
    learn(net, optimizer, 5)
    outer.step()
    outer.finish()
    return weights(net)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.7, momentum=0.5)


def learn(net, optimizer, step):
    optimizer.zero_grad()
    net(batch(step)).square().mean().backward()
    optimizer.step()


def every_mode():
    smaller_pieces()
    for run in (synchronous, local):
        expected = run(torch.enable_grad)
        for mode in (torch.inference_mode, torch.no_grad):
            assert torch.equal(run(mode), expected), (run.__name__, mode)


def test_inference_mode_and_no_grad_leave_no_mark():
    run_ranks(2, every_mode)
