"""Make the copies of a model on all ranks equal before local steps begin."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from gradsieve.exchange.frames import unreachable


def share(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Replace the tensors by those of the first rank of the group.

    Raises:
        ExchangeError: a rank has died or stalled.
    """
    first = dist.get_process_group_ranks(group)[0]
    with torch.no_grad():
        sent = [(tensor, tensor.detach().contiguous()) for tensor in tensors]
        # Send bytes, because Gloo supports few dtypes.
        flat = [copy.reshape(-1).view(torch.uint8) for _, copy in sent]
        try:
            works = [dist.broadcast(part, first, group, async_op=True) for part in flat]
            for work in works:
                if work is not None:
                    work.wait()
        except RuntimeError as error:
            raise unreachable(group, error) from error
        for tensor, copy in sent:
            if copy.data_ptr() != tensor.data_ptr():
                tensor.copy_(copy)
