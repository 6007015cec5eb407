"""The whole algorithm in plain torch, N ranks in one process: python examples/reference.py

Every rank sends only the gradients that stand out, and keeps the rest for later steps.
gs.attach(model, threshold=gs.Sigma(k), values="float32", exchange="gather") computes the same bits,
and tests/distributed/test_reference.py holds it to that. What gradsieve adds is speed: compiled
kernels, small frames, thresholds that follow the link, and an exchange beside the backward pass.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Survivors = list[tuple[Tensor, Tensor]]
"""For each parameter, the places of the elements that are sent, and their values."""


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Tensor]:
    """Run one rank's backward pass on its own batch. Returns a gradient for each parameter."""
    loss = F.cross_entropy(model(inputs), labels)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def select(gradients: list[Tensor], residuals: list[Tensor], k: float, min_numel: int) -> Survivors:
    """Take out what passes the threshold. The rest becomes the residual (error feedback)."""
    survivors = []
    for grad, residual in zip(gradients, residuals, strict=True):
        # gs.Sigma(k): k standard deviations of this parameter's gradient in this step.
        threshold = k * grad.double().std(correction=0)
        accumulated = grad + residual
        passes = accumulated.abs() > threshold.float()
        if grad.numel() < min_numel:  # Biases and norms travel whole.
            passes = torch.ones_like(passes)
        residual.copy_(accumulated.masked_fill(passes, 0))
        places = passes.flatten().nonzero().flatten().int()
        survivors.append((places, accumulated.flatten()[places]))
    return survivors


def encode(survivors: Survivors) -> Tensor:
    """Pack one rank's frame: for each parameter a count, places and values, 4 bytes each."""
    # gradsieve spends a few bits on a place, and by default quantizes the values.
    parts = [(torch.tensor([len(p)]).int(), p, v.view(torch.int32)) for p, v in survivors]
    return torch.cat([words for part in parts for words in part]).view(torch.uint8)


def exchange(frames: list[Tensor]) -> list[Tensor]:
    """Send every frame to every rank. In one process all frames have arrived already."""
    return frames


def decode(frames: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Average what the ranks sent. Adding in rank order gives all ranks the same bits."""
    averages = [torch.zeros_like(parameter) for parameter in parameters]
    for frame in frames:
        words = frame.view(torch.int32)
        for average in averages:
            count = int(words[0])
            places, values, words = words[1:].split([count, count, len(words) - 1 - 2 * count])
            average.view(-1).index_add_(0, places, values.view(torch.float32) * (1 / len(frames)))
    return averages


def step(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], averages: list[Tensor]
) -> None:
    """Give the optimizer, which may be any, the averages for gradients."""
    for parameter, average in zip(parameters, averages, strict=True):
        parameter.grad = average
    optimizer.step()


def train(k: float, ranks: int = 4, steps: int = 100, min_numel: int = 256) -> None:
    """Train a small classifier. Prints how much a rank sends, and what the model has learned."""
    torch.manual_seed(0)
    # All ranks always have the same weights, so one model plays them all.
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    parameters: list[Tensor] = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    residuals = [[torch.zeros_like(p) for p in parameters] for _ in range(ranks)]
    teacher, test, sent = torch.randn(64, 10), torch.randn(2000, 64), 0
    for number in range(1, steps + 1):
        frames = []
        for residual in residuals:
            inputs = torch.randn(64, 64)
            gradients = gradient(model, inputs, (inputs @ teacher).argmax(1))
            frames.append(encode(select(gradients, residual, k, min_numel)))
        step(optimizer, parameters, decode(exchange(frames), parameters))
        sent += len(frames[0])
        if number % 25 == 0:
            accuracy = (model(test).argmax(1) == (test @ teacher).argmax(1)).float().mean()
            print(f"  step {number:3}: {sent / number:7,.0f} bytes a step, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # 0 sends every gradient, as plain DDP does, which needs no places and so half the bytes.
    for k in (0.0, 2.0):
        print(f"threshold: {k:g} standard deviations")
        train(k)
