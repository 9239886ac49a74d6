"""The benchmark of a language model starts, in small, and its page is made from its lines."""

import torch

import pbcompress as pb
from scripts.language import run
from scripts.language.tables import page
from scripts.lines import read_lines


def test_it_starts_and_passes_over_what_is_there(tmp_path, monkeypatch):
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 6, "vocab_size": 16}
    stories = torch.randint(0, 16, (16, 6), generator=torch.Generator().manual_seed(0))
    made = []

    def data_of(folder, seed):
        made.append(seed)
        own = run.batches_of(stories, seed)
        return pb.Data(own, own, own)

    for name, value in {"SIZES": sizes, "EPOCHS": 1, "RECOVERY": 1, "data_of": data_of}.items():
        monkeypatch.setattr(run, name, value)
    path = tmp_path / "lines.jsonl"
    for _ in range(2):
        run.main([str(path), "--seeds", "1", "2", "--arms", "cut"])
    assert made == [1, 2]
    lines = read_lines(path)
    assert [(line["seed"], line["target"]) for line in lines] == [
        (seed, target) for seed in (1, 2) for target in run.TARGETS
    ]
    assert all(line["params"] <= line["target"] * line["original"]["params"] for line in lines)
    monkeypatch.setattr("scripts.language.tables.ARMS", ("cut",))
    assert page(lines).count("| the cut alone | 2 |") == 2


def test_batches_leave_out_stories_of_one_word():
    stories = torch.tensor([[3, 0, 0], [1, 2, 0], [4, 5, 6]])
    (batch,) = run.batches_of(stories)
    assert batch["input_ids"].tolist() == [[1, 2, 0], [4, 5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
