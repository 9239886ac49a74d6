"""Recurrent layers over sequences of several lengths, packed: all their widths may go."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pbcompress as pb


class Network(nn.Module):
    def __init__(self, kind, directions, layers):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.entry = nn.Embedding(30, 24), nn.Linear(24, 24)
        self.memory = kind(24, 40, layers, batch_first=True, bidirectional=directions == 2)
        self.head = nn.Linear(40 * directions, 3)

    def forward(self, words, lengths):
        x = self.entry(self.words(words)).relu()
        steps = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        found, lengths = pad_packed_sequence(self.memory(steps)[0], batch_first=True)
        return self.head(found.sum(1) / lengths[:, None])


KINDS = [(kind, d, n) for kind in (nn.RNN, nn.GRU, nn.LSTM) for d in (1, 2) for n in (1, 2)]


@pytest.mark.parametrize(("kind", "directions", "layers"), KINDS)
def test_all_widths_go_and_each_sequence_is_as_it_is_alone(kind, directions, layers):
    model = Network(kind, directions, layers).eval()
    words, lengths = torch.randint(0, 30, (3, 6)), torch.tensor([3, 6, 4])
    plan = pb.plan_widths(model, (words, lengths), 0.5)
    assert plan.left_alone["head"] == "its width is the network's output"
    assert pb.measure(model, (words, lengths)).flops == plan.cost_before.flops
    small = pb.shrink(model, plan)
    assert small.memory.hidden_size < 40
    with torch.no_grad():
        together = small(words, lengths)
        for i, length in enumerate(lengths.tolist()):
            x = small.entry(small.words(words[i : i + 1, :length])).relu()
            alone = small.head(small.memory(x)[0].sum(1) / length)
            torch.testing.assert_close(together[i : i + 1], alone)
