"""The sieve of one rank: from the gradients of a bucket to frames, and from frames to the average.

Nothing here needs torch.distributed, so one process may hold the sieves of many ranks.

Example, a step of two ranks in one process, each with one bucket of one parameter:

    >>> import torch
    >>> import gradsieve as gs
    >>> from gradsieve.bucket.average import Contribution
    >>> from gradsieve.bucket.rank_sieve import RankSieve
    >>> from gradsieve.codec import decode_frame
    >>> from gradsieve.parameters.pieces import nothing_to_add
    >>> from gradsieve.topology import GATHER
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> config = gs.SieveConfig(threshold=gs.Fixed(1.0), values="float32", min_numel=1)
    >>> sieves = [RankSieve(config), RankSieve(config)]
    >>> buckets = [torch.tensor([4.0, 0.5]), torch.tensor([0.25, -2.0])]
    >>> plans, frames = [], []
    >>> for sieve, bucket in zip(sieves, buckets):
    ...     sieve.bind(model)
    ...     sieve.begin_step()
    ...     plan = sieve.plan(GATHER, list(sieve.parameters), 0, 1)
    ...     sieve.place_residuals(plan, 2, nothing_to_add)
    ...     frames += sieve.encode(plan, sieve.select(plan, bucket))
    ...     plans.append(plan)
    >>> contributions = [Contribution(decode_frame(f), plan.parts[0], 1 / 2) for f in frames]
    >>> for sieve, bucket, plan in zip(sieves, buckets, plans):
    ...     average = sieve.average(plan, contributions, bucket, 2)
    ...     sieve.commit()
    >>> buckets[0].tolist(), buckets[1].tolist()
    ([2.0, -1.0], [2.0, -1.0])
    >>> [parameter.residual.tolist() for sieve in sieves for parameter in sieve.parameters]
    [[[0.0, 0.5]], [[0.25, 0.0]]]
"""
