"""The DDP model that a framework has made."""

from torch.nn.parallel import DistributedDataParallel

from gradsieve.bucket.requirements import is_sharded
from gradsieve.errors import SieveError
from gradsieve.runtime.torch_private import uncompiled


def ddp_model(model: object, maker: str, advice: str) -> DistributedDataParallel:
    """Return the DDP model, without `torch.compile` around it.

    Args:
        maker: what should have made the model, for the error message.
        advice: what to write so that it makes a DDP model.

    Raises:
        SieveError: it is no DDP model.
    """
    model = uncompiled(model)
    if isinstance(model, DistributedDataParallel):
        return model
    if is_sharded(model):
        advice += "; for a sharded model, average between its replicas by gs.Averager"
    raise SieveError(f"{maker} made no DDP model but {type(model).__name__}: use {advice}")
