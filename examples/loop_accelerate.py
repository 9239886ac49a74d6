"""Cycles of dendrite growth with Accelerate: prepare anew when a phase begins."""

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

import pbcompress as pb

torch.manual_seed(0)
x = torch.randn(256, 8)
y = (x[:, :3] ** 2).argmax(1)
data = torch.utils.data.TensorDataset(x, y)
model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
config = pb.CompressConfig(recovery=pb.RecoveryConfig(epochs=4, dendrite_epochs=2))
for phase in pb.cycles(model, config=config):
    optimizer = torch.optim.Adam(phase.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    network, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    while not phase.done:
        phase.train()
        for inputs, target in loader:
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(network(inputs), target))
            optimizer.step()
        phase.report(-cross_entropy(model(x), y).item())  # a loss: lower is better
    accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    accelerator.free_memory()
print(f"{phase.sets} sets, loss {cross_entropy(model(x), y).item():.3f}")
