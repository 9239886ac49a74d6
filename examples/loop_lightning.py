"""Cycles of dendrite growth in a Lightning Trainer."""

import lightning.pytorch as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import pbcompress as pb
from pbcompress.integrations.lightning import GrowthCallback


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        hidden = [torch.nn.Linear(8, 6), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*hidden, torch.nn.Linear(6, 3))

    def training_step(self, batch):
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val_loss", cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)


x = torch.randn(256, 8)
data = DataLoader(TensorDataset(x, (x[:, :3] ** 2).argmax(1)), batch_size=32)
config = pb.CompressConfig(recovery=pb.RecoveryConfig(epochs=4, dendrite_epochs=2))
growth = GrowthCallback(config, monitor="val_loss", mode="min")
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = pl.Trainer(max_epochs=100, accelerator="cpu", callbacks=[growth], **quiet)
trainer.fit(Classifier(), data, data)
print(f"stopped after {trainer.current_epoch} epochs, {growth.phase.sets} sets")
