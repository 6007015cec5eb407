"""Where a gradient lies in a bucket, and where DDP reads what comes back."""

import pytest
import torch

import gradsieve as gs
from gradsieve.bucket.strides import Layouts, dense_stride, dense_strides, lies
from gradsieve.parameters.parameter import ParameterState


class Bucket:
    """As DDP makes one: laid out by the strides that the parameters have now."""

    def __init__(self, *parameters):
        self._parameters = list(parameters)
        self._strides = [dense_stride(p) for p in parameters]
        self._flat = torch.zeros(sum(p.numel() for p in parameters))

    def index(self):
        return 0

    def is_last(self):
        return True

    def parameters(self):
        return self._parameters

    def buffer(self):
        return self._flat

    def gradients(self):
        numels = [p.numel() for p in self._parameters]
        parts = self._flat.split(numels)
        return [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]

    def fill(self):
        """With the parameters' gradients, as the backward pass does."""
        for part, stride, parameter in zip(
            self.gradients(), self._strides, self._parameters, strict=True
        ):
            if parameter.grad is not None:
                part.view(-1).as_strided(part.shape, stride).copy_(parameter.grad)

    def read(self, number=0):
        """What DDP gives to the optimizer."""
        parameter, part = self._parameters[number], self.gradients()[number]
        return part.view(-1).as_strided(part.shape, dense_stride(parameter))


def by_columns(parameter):
    parameter.data = parameter.data.t().contiguous().t()


def parameter_of(*shape):
    parameter = torch.nn.Parameter(torch.randn(*shape))
    parameter.grad = torch.randn(*shape)
    return parameter


class Kept:
    """The states of some parameters."""

    def __init__(self, *parameters):
        self._states = {
            id(p): ParameterState(f"p{number}", p, whole=False, rotation=2)
            for number, p in enumerate(parameters)
        }

    def find(self, parameter):
        return self._states.get(id(parameter))


def test_gradient_and_residual_follow_the_parameter():
    parameter = parameter_of(6, 4)
    layouts, kept, bucket = Layouts(), Kept(parameter), Bucket(parameter)
    bucket.fill()
    assert not layouts.follow(bucket, kept.find, ranks=2)
    state = kept.find(parameter)
    residual = torch.randn(6, 4)
    state.residual.copy_(residual)
    state.owned_residual(8, 16).copy_(torch.ones(8))
    by_columns(parameter)
    for step in range(3):
        parameter.grad = torch.randn(6, 4)
        bucket.fill()
        assert layouts.follow(bucket, kept.find, ranks=2) == (step == 0)
        assert torch.equal(bucket.read(), parameter.grad)
    assert state.stride == state.residual.stride() == (1, 6)
    residual[2:4] += 2
    torch.testing.assert_close(state.unrotated_residual(), residual)
    assert state.owned is None
    # A bucket that is made now needs no help.
    bucket = Bucket(parameter)
    bucket.fill()
    assert not layouts.follow(bucket, kept.find, ranks=2)
    assert torch.equal(bucket.read(), parameter.grad)


def test_bases_begin_anew_and_keep_the_residual():
    parameter = parameter_of(6, 4)
    kept = Kept(parameter)
    state = kept.find(parameter)
    for _ in range(3):
        state.rotation.learn(torch.randn(24))
        state.rotation.turn([state.flat_residual()])
    left = torch.randn(24)
    state.flat_residual().copy_(state.rotation.coefficients(left))
    before = state.rotation.fingerprint
    state.lay_out((1, 6), 1)
    torch.testing.assert_close(state.unrotated_residual(), left.view(6, 4))
    assert state.rotation.fingerprint != before
    assert state.rotation.rows == 4, "columns lie together"


def test_a_gradient_of_equal_elements_settles_nothing():
    parameter = parameter_of(5, 5)
    bucket = Bucket(parameter)
    by_columns(parameter)
    layouts, kept = Layouts(), Kept(parameter)
    for gradient in (torch.ones(5, 5), torch.zeros(5, 5), torch.randn(5, 5), torch.randn(5, 5)):
        parameter.grad = gradient
        bucket.fill()
        layouts.follow(bucket, kept.find, ranks=2)
        assert torch.equal(bucket.read(), gradient)


def test_any_order_of_the_dimensions_is_found():
    shape = (2, 3, 4, 5)
    found = {lies(shape, stride) for stride in dense_strides(shape)}
    assert len(found) == 24
    for stride in dense_strides(shape):
        parameter = torch.nn.Parameter(torch.empty_strided(shape, stride).normal_())
        bucket = Bucket(parameter)
        parameter.data = parameter.data.contiguous()
        parameter.grad = torch.randn(shape)
        bucket.fill()
        Layouts().follow(bucket, Kept(parameter).find, ranks=2)
        assert torch.equal(bucket.read(), parameter.grad)


def test_gaps_and_overlaps_lie_by_rows():
    assert dense_stride(torch.zeros(4, 6)[:, ::2]) == (3, 1)
    assert dense_stride(torch.zeros(1, 6).expand(4, 6)) == (6, 1)
    assert dense_stride(torch.zeros(6, 4).t()) == (1, 4)


def test_what_another_hook_has_changed_is_left_alone():
    parameter = parameter_of(6, 4)
    bucket, layouts, kept = Bucket(parameter), Layouts(), Kept(parameter)
    bucket.fill()
    parameter.grad *= 2
    assert not layouts.follow(bucket, kept.find, ranks=2)
    assert torch.equal(2 * bucket.read(), parameter.grad)


def test_where_nothing_shows_the_layout_the_parameter_is_named():
    parameter = parameter_of(6, 4)
    bucket, layouts, kept = Bucket(parameter), Layouts(), Kept(parameter)
    bucket.fill()
    layouts.follow(bucket, kept.find, ranks=2)
    by_columns(parameter)
    bucket.fill()
    parameter.grad *= 2
    with pytest.raises(gs.SieveError, match=r"parameter p0 has changed its strides .* before DDP"):
        layouts.follow(bucket, kept.find, ranks=2)


def test_not_a_number_and_minus_zero_lie_where_they_lie():
    parameter = parameter_of(3, 2)
    bucket = Bucket(parameter)
    by_columns(parameter)
    parameter.grad = torch.tensor([[torch.nan, -0.0], [1.0, torch.inf], [0.0, 2.0]])
    bucket.fill()
    Layouts().follow(bucket, Kept(parameter).find, ranks=2)
    assert torch.equal(bucket.read().view(torch.int32), parameter.grad.view(torch.int32))
