"""A language model of transformers: compressed, saved, loaded by transformers alone."""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pbcompress as pb

torch.manual_seed(0)
steps = torch.randint(1, 4, (96, 1)) * torch.arange(16)  # counts by 1, 2 or 3
tokens = (steps + torch.randint(3, 60, (96, 1))) % 60 + 3
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=64, num_hidden_layers=2, num_key_value_heads=2, **sizes)
)
data = pb.Data(train=tokens[:64].split(16), val=tokens[64:].split(16))
result = pb.compress(
    model, 0.5, data=data, task=pb.Task.causal_lm(), config=pb.RecoveryConfig(epochs=3)
)
print(str(result).splitlines()[0])
with tempfile.TemporaryDirectory() as folder:
    result.model.save_pretrained(folder)
    loaded = LlamaForCausalLM.from_pretrained(folder)
start = {"inputs": tokens[:2, :4], "max_new_tokens": 8, "do_sample": False}
print("the same tokens:", loaded.generate(**start).equal(result.model.generate(**start)))
