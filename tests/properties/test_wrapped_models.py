"""Models that were prepared for several processes or devices are refused by name, untouched."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from pbcompress import CompressionError, Data, attach_dendrites_, compress, cycles, plan_widths
from pbcompress import recover_ as recover

X, Y = torch.randn(8, 4), torch.arange(8) % 2
DATA = Data(train=[(X, Y)], val=[(X, Y)])


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def sharded(model: nn.Module) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def used() -> nn.Module:
    """After a forward pass the parameters of the root are whole, for a while."""
    model = sharded(network())
    model(X)
    return model


def with_a_sharded_layer() -> nn.Module:
    model = network()
    sharded(model[2])
    return model


PREPARED = {
    "DataParallel": (lambda: nn.DataParallel(network()), r"model is wrapped in.*\(model\.module\)"),
    "DistributedDataParallel": (
        lambda: DistributedDataParallel(network()), r"model is wrapped in.*\(model\.module\)",
    ),
    "DistributedDataParallel inside": (
        lambda: nn.Sequential(DistributedDataParallel(network()), nn.ReLU()),
        r"layer '0' is wrapped in.*\(model\.0\.module\)",
    ),
    "fully_shard": (lambda: sharded(network()), "model is sharded.*before fully_shard"),
    "fully_shard, used": (used, "model is sharded.*before fully_shard"),
    "fully_shard, one layer": (with_a_sharded_layer, "layer '2' is sharded.*before fully_shard"),
}  # fmt: skip
GROWING = {
    "attach_dendrites_": attach_dendrites_,
    "cycles": cycles,
    "recover_": lambda model: recover(model, DATA),
}
PLANNING = {
    "compress": lambda model: compress(model, 0.5, data=DATA),
    "plan_widths": lambda model: plan_widths(model, X, 0.5),
}


def test_the_lists_are_whole() -> None:
    assert (len(PREPARED), len(GROWING), len(PLANNING)) == (6, 3, 2)


@pytest.mark.parametrize("entry", GROWING)
@pytest.mark.parametrize("kind", PREPARED)
def test_it_does_not_grow(kind: str, entry: str) -> None:
    make, message = PREPARED[kind]
    model = make()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(CompressionError, match=f"(?s){message}.*with torchrun"):
        GROWING[entry](model)
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("entry", PLANNING)
@pytest.mark.parametrize("kind", PREPARED)
def test_it_is_not_planned_for(kind: str, entry: str) -> None:
    make, message = PREPARED[kind]
    wanted = message.replace(" is wrapped", ": it is wrapped").replace(
        " is sharded", ": it is sharded"
    )
    with pytest.raises(CompressionError, match=f"(?s){wanted}"):
        PLANNING[entry](make())
