"""What a launcher tells the ranks of a test, so that a framework takes part in their group."""

import os
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def as_launched() -> None:
    """Set the environment of torchrun. The process group is there already."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        # Nobody opens it.
        "MASTER_PORT": "29499",
        "TORCHELASTIC_RUN_ID": "test",
        "ACCELERATE_USE_CPU": "true",
    }


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))


def dataset(numel: int = 64) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(numel, 16, generator=generator)
    labels = (inputs @ torch.randn(16, 8, generator=generator)).argmax(1)
    return torch.utils.data.TensorDataset(inputs, labels)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def same_on_all_ranks(tensor: Tensor) -> bool:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return all(torch.equal(tensor, other) for other in gathered)


def differs_between_ranks(tensors: Sequence[Tensor]) -> bool:
    return not same_on_all_ranks(torch.cat([tensor.flatten() for tensor in tensors]))


def words_of(kind: type[BaseException], call: Callable[[], object]) -> str:
    """Return the message of the error that `call` must raise."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")
