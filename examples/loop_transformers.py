"""Cycles of dendrite growth with the Trainer of Hugging Face transformers."""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import pbcompress as pb
from pbcompress.integrations.transformers import grow_with_trainer

torch.manual_seed(0)
tokens = torch.randint(1, 50, (96, 6))
data = [{"input_ids": t, "labels": t[0] % 2} for t in tokens]
sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
model = BertForSequenceClassification(BertConfig(vocab_size=50, num_hidden_layers=1, **sizes))
layers = ("*.intermediate.dense", "*.output.dense")
config = pb.CompressConfig(
    dendrites=pb.DendriteConfig(layers=layers, form=pb.Shared(nodes=4)),
    recovery=pb.RecoveryConfig(epochs=3, dendrite_epochs=2),
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, eval_strategy="epoch", save_strategy="no", metric_for_best_model="loss",
        greater_is_better=False, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    phases = grow_with_trainer(trainer, config=config)
print([f"{phase.kind} {phase.sets}" for phase in phases])
