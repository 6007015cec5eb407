"""How ranks are started on the nodes of a link, and what share of the machine each gets."""

import pytest

from gradsieve.lab.bench.step import directory_name, nodes_of
from gradsieve.lab.link import open_link
from gradsieve.lab.runs.launch import launcher
from gradsieve.lab.runs.rank import cores_of


class Places:
    """A link whose places have addresses of their own."""

    def address(self, place):
        return f"10.0.0.{place + 1}"


@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_a_node_starts_its_ranks_at_its_own_place(ranks_per_node):
    line = launcher(1, 2, ranks_per_node, Places(), 29500, ["-m", "work", "order.json"])
    assert line[1:3] == ["-m", "torch.distributed.run"]
    assert line[3:] == [
        "--nnodes=2",
        "--node-rank=1",
        f"--nproc-per-node={ranks_per_node}",
        "--master-addr=10.0.0.1",
        "--master-port=29500",
        "--local-addr=10.0.0.2",
        "-m",
        "work",
        "order.json",
    ]


def test_ranks_fall_into_whole_nodes():
    assert nodes_of(4, 1) == 4
    assert nodes_of(6, 2) == 3
    with pytest.raises(ValueError, match=r"5 ranks do not fall into nodes of 2: .* a multiple"):
        nodes_of(5, 2)


def test_runs_with_other_nodes_have_other_directories():
    with open_link(2, "none") as link:
        names = {directory_name("mlp", link, ranks_per_node, "ddp", 0) for ranks_per_node in (1, 2)}
    assert names == {"mlp-lo-2-ddp-0", "mlp-lo-2x2-ddp-0"}


def cores_of_all(ranks, ranks_per_node, cores):
    return [cores_of(rank, ranks, ranks_per_node, range(cores)) for rank in range(ranks)]


@pytest.mark.parametrize(("ranks_per_node", "cores"), [(1, 8), (2, 8), (4, 9)])
def test_each_rank_has_cores_of_its_own_if_there_are_enough(ranks_per_node, cores):
    found = cores_of_all(4, ranks_per_node, cores)
    assert [list(own) for own, _ in found] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {threads for _, threads in found} == {2}


def test_else_the_ranks_of_a_node_share_its_cores():
    found = cores_of_all(4, 2, 3)
    assert [list(own) for own, _ in found] == [[0], [0], [1], [1]]
    assert [list(own) for own, _ in cores_of_all(6, 3, 4)] == 3 * [[0, 1]] + 3 * [[2, 3]]
    assert {threads for _, threads in found} == {1}


@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_with_fewer_cores_than_nodes_all_ranks_share_all(ranks_per_node):
    found = cores_of_all(8, ranks_per_node, 3)
    assert {(tuple(own), threads) for own, threads in found} == {((0, 1, 2), 1)}
