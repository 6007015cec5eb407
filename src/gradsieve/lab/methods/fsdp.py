"""FSDP2 on nodes of several ranks: shards within a node, replicas between nodes."""

from dataclasses import replace

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gradsieve.averager import Averager
from gradsieve.exchange.nodes import stated_node_size
from gradsieve.lab.methods.method import Distributed, Prepared
from gradsieve.lab.methods.sieve_words import read_config

SHARD, REPLICATE = "shard", "replicate"


class OnNodes(Distributed):
    """The base of methods in which each node holds the whole model, in shards."""

    shards = True

    def require_nodes(self, ranks: int, ranks_per_node: int) -> None:
        nodes = ranks // ranks_per_node
        if nodes < 2 or ranks_per_node < 2:
            raise ValueError(
                f"{self.form.partition('[')[0]} cuts the model into shards within a node and "
                "exchanges between nodes, so that it needs 2 nodes or more with 2 ranks or more "
                f"each: give --ranks 4 --ranks-per-node 2, for instance (got {ranks} ranks, "
                f"{ranks_per_node} per node)"
            )

    def mesh(self) -> DeviceMesh:
        """Return the mesh of nodes and of the ranks in a node, which the launcher has set."""
        ranks, per_node = dist.get_world_size(), stated_node_size(None)
        self.require_nodes(ranks, per_node)
        return init_device_mesh(
            "cpu", (ranks // per_node, per_node), mesh_dim_names=(REPLICATE, SHARD)
        )


class Hsdp(OnNodes):
    """FSDP2 on the whole mesh (HSDP): it averages all gradients between nodes."""

    form = "hsdp"

    def prepare(self, model: nn.Module) -> Prepared:
        cut(model, self.mesh())
        return Prepared(model)


class FsdpSieve(OnNodes):
    """FSDP2 within a node, and an `Averager` between nodes, which sends during backward passes."""

    form = "fsdp-sieve[:POLICY=NUMBER,OPTION=VALUE...]"

    def __init__(self, options: str = "") -> None:
        config = read_config(options)
        if config.node_size is not None:
            raise ValueError("node_size is 1 here, since replicas are on different nodes")
        # Nodes of an emulated link have one host name, and `exchange="auto"` would take replicas
        # on consecutive nodes for ranks of one machine.
        self.config = replace(config, node_size=1)

    def prepare(self, model: nn.Module) -> Prepared:
        mesh = self.mesh()
        cut(model, mesh[SHARD])
        averager = Averager(
            model.named_parameters(),
            self.config,
            process_group=mesh[REPLICATE].get_group(),
            overlap=True,
        )
        return Prepared(model, averager, average=averager.average_)


class FsdpAlone(OnNodes):
    """FSDP2 within a node, and nothing travels between nodes: the limit of the other two."""

    form = "fsdp-alone"
    trains_together = False

    def prepare(self, model: nn.Module) -> Prepared:
        cut(model, self.mesh()[SHARD])
        return Prepared(model)


def cut(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a model into shards, block by block and then what is left."""
    # The import takes seconds, which commands without FSDP are spared.
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model that FSDP gathers one by one, those with parameters.

    They are the layers of an `nn.Sequential` if the model has one, as a transformer does. What is
    beside it stays with the model, which may use a weight outside of its module, if it is tied.
    A model without one has its children as blocks.
    """
    stacks = [child for child in model.children() if isinstance(child, nn.Sequential)]
    blocks = [layer for stack in stacks for layer in stack] if stacks else model.children()
    return [block for block in blocks if any(True for _ in block.parameters())]
