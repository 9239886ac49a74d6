"""The benchmark of speed: arms of one size, timed in turn, and its page."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from scripts.accuracy import run as accuracy
from scripts.accuracy.grid import Task
from scripts.lines import read_lines
from scripts.planner.networks import Entry
from scripts.speed import run as speed
from scripts.speed import tables, trained
from scripts.speed.arms import ARMS, DEFAULT, EQUAL, PEER, PRICES, Maker, NotNeededError
from scripts.speed.peer import GRID, NEAR, NothingPrunedError, Peer, nearest, size
from scripts.speed.plot import plot
from scripts.speed.timing import FORMS

TASK = Task(
    {"name": "digits", "num_val": 200, "train_limit": 200, "batch_size": 50},
    {"name": "small_cnn", "widths": (16, 48), "pool": True},
    epochs=2,
    base_epochs=2,
)
NARROW = TASK.model | {"widths": (12, 32)}


def small_cnn():
    torch.manual_seed(0)
    return create_model("small_cnn", widths=(16, 48), pool=True).eval()


def images(batch):
    return (torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


# --- running --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_arms_are_timed_once(tmp_path, monkeypatch):
    entry = Entry("small_cnn", small_cnn, images)
    monkeypatch.setattr(speed, "networks", lambda: {"small_cnn": entry})
    path = tmp_path / "lines.jsonl"
    call = [str(path), "--targets", "0.5", "--seconds", "0.01"]
    assert speed.main([*call, "--arms", "default", "torch*"]) == 0
    before = path.read_text()
    for _ in range(2):
        assert speed.main(call) == 0
    assert path.read_text().startswith(before)  # what was there is not run again
    lines = {line["arm"]: line for line in read_lines(path)}
    assert len(lines) == len(read_lines(path)) == len(ARMS)
    original = sum(p.numel() for p in small_cnn().parameters())
    for line in lines.values():
        assert line["base"]["params"] == original
        if not line.get("none", "").startswith("NotNeededError"):
            assert set(line["speed"]) == set(FORMS)
            assert min(line["speed"].values()) > 0
            assert line["flops"] < line["base"]["flops"]
    assert 0.9 * 0.5 * original < lines[DEFAULT]["params"] <= 0.5 * original
    page = tables.page(list(lines.values()))
    assert page.count("\n| small_cnn |") == 2


@pytest.mark.slow
def test_trained_arms_have_one_size_and_as_many_steps(tmp_path, monkeypatch):
    for module in (accuracy, trained):
        monkeypatch.setattr(module, "TASKS", {"tiny": TASK})
    path = tmp_path / "lines.jsonl"
    call = [str(path), "--tasks", "tiny", "--targets", "0.4", "--seeds", "0", "1"]
    for _ in range(2):  # what is there is not run again
        assert trained.main(call) == 0
    lines = read_lines(path)
    arms = [*PRICES, PEER]
    assert [line["arm"] for line in lines] == arms * 2
    assert {line["steps"] for line in lines} == {2 * 4}
    for place, ours in enumerate(lines):
        other = lines[place // len(arms) * len(arms) + len(PRICES)]
        assert ours["base"] == other["base"]
        assert 0.98 * other["params"] <= ours["params"] <= other["params"]
    assert "| tiny | " in tables.page(lines)


# --- torch-pruning --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.integers(1, 10_000), min_size=2, max_size=40),
    wanted=st.integers(1, 10_000),
)
def test_the_nearest_share_is_no_worse_than_any_of_the_grid(steps, wanted):
    def count(ratio):
        return steps[int(ratio * len(steps))]

    missed = abs(count(nearest(count, wanted)) - wanted)
    assert missed <= min(abs(count(ratio) - wanted) for ratio in GRID)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(wanted=st.integers(100_000, 800_000))
def test_a_smooth_count_is_met(wanted):
    def count(ratio):
        return round(1_000_000 * (1 - ratio) ** 2)

    assert abs(count(nearest(count, wanted)) - wanted) <= 2 * NEAR * wanted


def test_torch_pruning_leaves_multiples_of_8_and_the_original():
    model = small_cnn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = Peer(model, images(1)).network(size(model) // 3)
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert size(network) < size(model)
    assert network(*images(2)).shape == (2, 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_pruned_is_told():
    with pytest.raises(NothingPrunedError):
        Peer(nn.Sequential(nn.Linear(8, 4)), (torch.zeros(1, 8),)).network(10)


class Attention(nn.Module):
    """As timm writes it: it keeps three sizes."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.scale = 2, 16, 32, 0.25
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        shape = (*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (self.scale * q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(*x.shape[:2], self.attn_dim))


def test_an_attention_learns_its_new_sizes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), Attention(), nn.Linear(32, 5))
    network = Peer(model, (torch.randn(1, 6, 8),)).network(size(model) // 3)
    narrow = network[1]
    assert narrow.attn_dim == narrow.num_heads * narrow.head_dim == narrow.proj.in_features < 32
    assert narrow.scale == narrow.head_dim**-0.5
    assert network(torch.randn(2, 6, 8)).shape == (2, 6, 5)


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
def test_a_text_network_of_the_zoo_learns_its_new_sizes():
    model, tokens = create_model("text_transformer"), torch.randint(1, 256, (2, 48))
    network = Peer(model, (tokens[:1],)).network(size(model) // 2)
    assert size(network) < 0.5 * size(model)
    assert network(tokens).shape == (2, 8)


def test_the_default_is_planned_again_where_torch_pruning_has_another_size(monkeypatch):
    model = small_cnn()
    maker = Maker(model, images(1))
    monkeypatch.setattr(maker._peer, "network", lambda _: create_model(**NARROW))
    wanted = size(create_model(**NARROW))
    assert 0.98 * wanted <= size(maker.network(EQUAL, 0.7)) <= wanted
    monkeypatch.setattr(maker._peer, "network", lambda _: maker.network(DEFAULT, 0.7))
    with pytest.raises(NotNeededError, match="within 1%"):
        maker.network(EQUAL, 0.7)


# --- the page -------------------------------------------------------------------------------------


def line(arm, speed=None, **others):
    own = {"network": "net", "target": 0.5, "arm": arm, "base": {"params": 1000, "flops": 900}}
    figures = {"params": 500, "flops": 450, "speed": dict.fromkeys(FORMS, speed)}
    return own | (figures if speed else {}) | others


def test_a_page_without_lines_says_so():
    assert "There are no lines yet." in tables.page([])


def test_cells_have_speed_reduction_and_what_was_realised():
    lines = [line(DEFAULT, 1.8), line(PEER, 1.5, params=550), line(EQUAL, 1.75, params=550)]
    page = tables.page(lines)
    row = "| net | 1,000, 50.0% kept | 1.80 (2.00, 0.90) | 1.50 (2.00, 0.75) | 1.75 (2.00, 0.88) |"
    assert f"{row} 1.100 |" in page
    assert "the default is 1.80 times as fast" in page
    assert "0.85 or more in 1 of 1" in page
    assert "At equal size it is 1.17 times as fast as torch-pruning" in page  # 1.75 / 1.5


def test_at_the_same_size_the_default_itself_is_compared():
    lines = [line(DEFAULT, 1.8), line(PEER, 1.5), line(EQUAL, none="NotNeededError: near")]
    page = tables.page(lines)
    assert "At equal size it is 1.20 times as fast" in page
    assert "NotNeeded" not in page


def test_failures_stand_below_their_table():
    lines = [
        line(DEFAULT, 1.8, no_int8="CompressionError: no kernel"),
        line(PEER, none="RuntimeError: a | b"),
        line(EQUAL, none="RuntimeError: a | b"),
    ]
    page = tables.page(lines)
    assert "- net, default, int8: CompressionError: no kernel" in page
    assert "- net, torch-pruning: RuntimeError: a / b" in page
    assert "At equal size" not in page
    assert "1.80 / -" in page


def trained_lines(steps=(8, 8)):
    own = {"task": "digits", "target": 0.5, "base": {"params": 1000, "test": 0.9}}
    sizes = {"params": 500, "flops": 450, "base_flops": 900}
    return [
        {
            "arm": arm,
            "seed": seed,
            "steps": s,
            "test": test,
            "speed": {FORMS[0]: 1.5},
            **own,
            **sizes,
        }
        for arm, s, test in zip(("equal shares", PEER), steps, (0.88, 0.86), strict=True)
        for seed in (0, 1)
    ]


def test_trained_networks_are_paired_by_seed():
    page = tables.page(trained_lines())
    row = (
        "| digits | equal shares | 50.0%, 50.0% | 2 | 90.00 | 88.00 | 86.00 | +2.00 ± 0.00 better |"
    )
    assert f"{row} 1.50 (2.00) | 1.50 (2.00) |" in page
    assert "speed.svg" not in page
    with pytest.raises(ValueError, match="cannot be compared"):
        tables.page(trained_lines(steps=(8, 9)))


def test_the_picture_is_drawn(tmp_path):
    path = tmp_path / "speed.svg"
    plot([line(DEFAULT, 1.8), line(PEER, 1.5), *trained_lines()], path)
    assert path.read_text().count("<svg") == 1


def test_every_network_has_its_entry():
    found = speed.networks()
    assert len(found) == 12
    assert pb.measure(found["resnet20"].make(), found["resnet20"].inputs(1)).params == 272_474
