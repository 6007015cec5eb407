"""Lightning on two CPU ranks: python examples/integrations/lightning_train.py"""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gradsieve as gs
from gradsieve.integrations.lightning import SieveCallback


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch, index):
        inputs, labels = batch
        loss = F.cross_entropy(self.net(inputs), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        inputs, labels = batch
        right = self.net(inputs).argmax(1) == labels
        self.log("accuracy", right.float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


if __name__ == "__main__":
    L.seed_everything(0)
    inputs = torch.randn(4096, 32)
    labels = (inputs @ torch.randn(32, 10)).argmax(1)
    train = DataLoader(TensorDataset(inputs[:3072], labels[:3072]), batch_size=32, shuffle=True)
    test = DataLoader(TensorDataset(inputs[3072:], labels[3072:]), batch_size=32)

    sieve = SieveCallback(threshold=gs.Sigma(2))  # takes the options of gs.attach
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=3,
        log_every_n_steps=10,
        callbacks=[sieve],
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(), train, test)
    if trainer.is_global_zero:
        print(sieve.state.totals)
        print(f"test accuracy {trainer.callback_metrics['accuracy']:.3f}")
