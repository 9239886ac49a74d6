"""Cycles of dendrite growth in a training loop of one's own."""

import torch
from torch.nn.functional import cross_entropy

import pbcompress as pb

torch.manual_seed(0)
x = torch.randn(256, 8)
y = (x[:, :3] ** 2).argmax(1)
batches = list(zip(x[:192].split(32), y[:192].split(32), strict=True))
model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
recovery = pb.RecoveryConfig(epochs=4, dendrite_epochs=2)
config = pb.CompressConfig(dendrites=pb.DendriteConfig(), recovery=recovery)

for phase in pb.cycles(model, config=config):
    optimizer = torch.optim.Adam(phase.parameters(), lr=0.01)
    while not phase.done:
        phase.train()
        for inputs, target in batches:
            optimizer.zero_grad()
            cross_entropy(model(inputs), target).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            score = (model(x[192:]).argmax(1) == y[192:]).float().mean().item()
        phase.report(score)
    print(f"{phase.kind} phase {phase.index}: {score:.3f}, {phase.sets} sets")
