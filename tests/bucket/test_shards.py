"""What is known of a tensor that FSDP has cut, without ranks."""

from types import SimpleNamespace

import pytest
import torch

from gradsieve.averager.averager import require_hooks
from gradsieve.bucket.shards import is_offloaded, local, places_of


class DTensor:
    """A shard in CPU memory of a model that is trained on another device."""

    requires_grad = is_leaf = True
    device = torch.device("cpu")

    def __init__(self, device_type):
        self.device_mesh = SimpleNamespace(device_type=device_type)


def test_a_shard_in_another_memory_than_its_model_is_offloaded():
    assert is_offloaded(DTensor("cuda"))
    assert not is_offloaded(DTensor("cpu"))
    assert not is_offloaded(torch.ones(3))
    require_hooks([("weight", DTensor("cpu"))])
    with pytest.raises(ValueError, match="does not work with CPU offload, and FSDP keeps weight"):
        require_hooks([("weight", DTensor("cuda"))])


def test_a_whole_tensor_is_what_the_rank_holds():
    whole = torch.ones(2, 3, requires_grad=True)
    assert local(whole).data_ptr() == whole.data_ptr()
    assert not local(whole).requires_grad
    assert places_of([whole]) == ""
