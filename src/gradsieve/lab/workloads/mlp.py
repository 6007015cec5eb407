"""Two wide dense layers on MNIST: 20 million parameters and little arithmetic.

It is the communication-heavy case: a step computes a quarter of what `mnist_cnn` does for each
parameter that it sends.
"""

import torch
from torch import nn
from torch.nn import functional as F

from gradsieve.lab.workloads.digits import accuracy_on_test_images, batches_of_training_images
from gradsieve.lab.workloads.mnist import require_mnist
from gradsieve.lab.workloads.workload import Workload

HIDDEN = 4096


class Mlp(nn.Module):
    """Images float32 [N, 1, 28, 28] to logits float32 [N, 10]; 20,037,642 parameters.

    784 inputs, 4,096 ReLU units twice, 10 outputs; torch's default initialization.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dense1 = nn.Linear(28 * 28, HIDDEN)
        self.dense2 = nn.Linear(HIDDEN, HIDDEN)
        self.dense3 = nn.Linear(HIDDEN, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.dense1(images.flatten(1)))
        logits: torch.Tensor = self.dense3(F.relu(self.dense2(x)))
        return logits


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=lr)


MLP = Workload(
    name="mlp",
    make_model=Mlp,
    make_optimizer=make_optimizer,
    learning_rate=1e-4,
    # No Muon: its square matrix takes 2 trillion operations a step, 300 times the network's.
    optimizer="adam",
    batches=batches_of_training_images,
    require_data=require_mnist,
    metric=accuracy_on_test_images,
    metric_name="test accuracy",
    higher_is_better=True,
)
