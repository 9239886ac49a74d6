"""Functions that torch.jit made, in the code of a network that is narrowed."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pbcompress import CompressionError, TargetUnreachableError, measure, plan_widths, shrink
from pbcompress.core.modules import copy_model
from pbcompress.core.scripted import scripts_as_python
from tests.support.masking import assert_equals_masked
from tests.support.nets import Net

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def gate(z, n: int):
    first = torch.tanh(z[:, :n])
    second = torch.sigmoid(z[:, n:])
    return first * second


def nested(z, n: int, scale: float = 1.0):
    y = halves(z) if n > 2 else z[:, :n]
    for _ in range(2):
        y = y + scale * y
    return y


def halves(z):
    a, b = z.chunk(2, dim=1)
    return a * b


def sequence(n):
    return torch.randn(n, 10, 9, generator=torch.Generator().manual_seed(n))


def network(function):
    def forward(self, x):
        x = self.pre(x)
        return self.out(x + self.skip(function(self, self.inner(x))))

    model = Net(
        forward,
        pre=nn.Conv1d(10, 16, 1),
        inner=nn.Conv1d(16, 32, 3, padding=1),
        skip=nn.Conv1d(16, 16, 1),
        out=nn.Conv1d(16, 4, 1),
    )
    model.half = 16
    return model.eval()


def scripted(name):
    functions = {"gate": gate, "nested": nested, "halves": halves}
    if name == "traced":
        return torch.jit.trace(halves, torch.zeros(1, 32, 9))
    return torch.jit.script(functions[name])


@pytest.mark.parametrize("name", ["gate", "nested", "halves", "traced"])
def test_a_scripted_function_is_followed_like_the_plain_one(name):
    made = scripted(name)
    sized = name in ("gate", "nested")
    model = network(lambda s, z: made(z, s.half) if sized else made(z))
    plan = plan_widths(model, sequence(2), 0.5)
    assert [s for s in plan.steps if s.layer == "inner" and s.dim == "out"], plan.left_alone
    assert_equals_masked(model, plan, sequence(3))
    assert measure(shrink(model, plan), sequence(1)).flops == plan.cost_after.flops


def test_a_traced_function_with_sizes_in_it_keeps_its_channels():
    made = torch.jit.trace(lambda z: z[:, :16] * z[:, 16:], torch.zeros(1, 32, 9))
    plan = plan_widths(network(lambda s, z: made(z)), sequence(2), 0.8)
    assert "inner" in plan.left_alone


def test_a_function_without_python_is_named():
    unit = torch.jit.CompilationUnit("def own(x):\n    return x[:, :16] * x[:, 16:]\n")
    model = network(lambda s, z: unit.own(z))
    try:
        plan = plan_widths(model, sequence(2), 0.8)
        reason = plan.left_alone["inner"]
    except TargetUnreachableError as err:
        reason = str(err)
    assert "the scripted function 'own'" in reason


def test_scripted_functions_are_themselves_again_at_the_end():
    call = torch.jit.ScriptFunction.__call__
    with pytest.raises(ZeroDivisionError), scripts_as_python():
        raise ZeroDivisionError
    assert torch.jit.ScriptFunction.__call__ is call


@pytest.mark.parametrize("hold", [lambda f: f, lambda f: [f], lambda f: {"f": f}, lambda f: (f,)])
@pytest.mark.parametrize("name", ["halves", "traced"])
def test_a_module_may_hold_a_scripted_function(name, hold):
    function, held = scripted(name), hold
    model = network(lambda s, z: function(z))
    model.held = held(function)
    copied = copy_model(model)
    assert repr(copied.held) == repr(model.held)
    torch.testing.assert_close(copied(sequence(2)), model(sequence(2)))
    small = shrink(model, plan_widths(model, sequence(1), 0.5))
    assert small.inner.out_channels < 32 or name == "traced"


def test_what_runs_and_cannot_be_followed_is_not_blamed_on_the_inputs():
    class Secret(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Linear(4, 8)
            self.b.register_forward_hook(self.look)

        def look(self, *_):
            if _get_current_dispatch_mode() is not None:
                raise RuntimeError("not to be looked at")

        def forward(self, x):
            return self.b(x)

    with pytest.raises(CompressionError, match=r"that went well.*cannot be followed in 'b'"):
        plan_widths(Secret().eval(), torch.zeros(2, 4), 0.5)


@pytest.mark.parametrize("transform", ["vmap", "gradient"])
def test_a_network_with_a_transform_of_functions_is_narrowed(transform):
    class Transformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 3)

        def forward(self, x):
            y = self.a(x)
            if transform == "vmap":
                return self.c(torch.vmap(lambda row: torch.where(row > 0, row, self.b(row)))(y))
            return self.c(y - torch.vmap(torch.func.grad(lambda row: self.b(row).sum()))(y))

    torch.manual_seed(0)
    model = Transformed().eval()
    plan = plan_widths(model, torch.zeros(2, 4), 0.7)
    small = shrink(model, plan)
    kept = sorted(set(range(8)) - set(plan.steps[0].removed))
    assert 1 < len(kept) < 8
    with torch.no_grad():
        for layer in (model.b, model.c):  # what the removed channels say does not count
            layer.weight[:, plan.steps[0].removed] = 0
        x = torch.randn(5, 4)
        torch.testing.assert_close(small(x), model(x))


@pytest.mark.parametrize("transform", ["rows", "gradient"])
def test_what_functions_of_torch_run_for_every_row_is_followed(transform):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 48), nn.Linear(48, 40), nn.Linear(40, 3)

        def forward(self, x):
            y = self.a(x).relu()
            if transform == "rows":
                return self.c(torch.vmap(lambda row: self.b(row).tanh())(y))
            slope = torch.vmap(torch.func.grad(lambda row: self.b(row).tanh().sum()))(y)
            return self.c(self.b(y - slope))

    model = Rows().eval()
    small = shrink(model, plan_widths(model, torch.randn(2, 4), 0.6))
    assert small.a.out_features < 48
    assert small.b.out_features < 40 or transform == "gradient"
    assert small(torch.randn(3, 4)).shape == (3, 3)
