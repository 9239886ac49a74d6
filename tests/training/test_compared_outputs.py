"""What an output is, as told by losses of all kinds; and what distillation makes of it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbcompress import (
    CompressConfig,
    Data,
    DendriteConfig,
    DistillationConfig,
    OptimizerConfig,
    RecoveryConfig,
    Task,
    recover_,
)
from pbcompress.errors import CompressionError
from pbcompress.training.compared_outputs import Compared, compared_parts
from pbcompress.training.distillation import label_loss, make_objective

F = nn.functional
BCE = F.binary_cross_entropy_with_logits
AUTO = DistillationConfig(share=1.0, temperature=1.0)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def whole(classes: int, *shape: int) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(sum(shape)))


def hits(*shape: int) -> Tensor:
    return whole(2, *shape).float()


def masked(target: Tensor, ignored: int = -100) -> Tensor:
    return torch.where(torch.arange(target.shape[-1]) > 2, ignored, target)


def of_tokens(output: Tensor, target: Tensor, **choices: Any) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), **choices)


def focal(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    hit, miss = -F.logsigmoid(output), -F.logsigmoid(-output)
    return ((1 - p) ** 2 * target * hit + p**2 * (1 - target) * miss).mean()


def overlap(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())


def heads(output: Any, target: Any) -> Tensor:
    one = F.cross_entropy(output["kind"], target[0])
    return one + F.smooth_l1_loss(output["box"], target[1]) + BCE(output["tags"], target[2])


HEADS = {"kind": draw(8, 3), "box": draw(8, 4), "tags": draw(8, 2), "unused": draw(8, 9)}
# what it is: loss, output, target, and the kind and axis of every part
KNOWN: dict[str, tuple[Any, Any, Any, list[tuple[str, int]]]] = {
    "classes": (F.cross_entropy, draw(8, 3), whole(3, 8), [("classes", 1)]),
    "classes, smoothed": (
        lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1),
        draw(8, 3), whole(3, 8), [("classes", 1)],
    ),
    "classes, weighed": (
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0])),
        draw(8, 3), whole(3, 8), [("classes", 1)],
    ),
    "shares of classes": (F.cross_entropy, draw(8, 3), draw(8, 3).softmax(1), [("classes", 1)]),
    "margins of classes": (F.multi_margin_loss, draw(8, 3), whole(3, 8), [("classes", 1)]),
    "tokens": (of_tokens, draw(4, 7, 5), whole(5, 4, 7), [("classes", 2)]),
    "as many tokens as classes": (of_tokens, draw(4, 5, 5), whole(5, 4, 5), [("classes", 2)]),
    "one token": (of_tokens, draw(4, 1, 5), whole(5, 4, 1), [("classes", 2)]),
    "padded tokens": (of_tokens, draw(4, 7, 5), masked(whole(5, 4, 7)), [("classes", 2)]),
    "tokens padded with 0": (
        lambda o, t: of_tokens(o, t, ignore_index=0),
        draw(4, 7, 5), masked(whole(5, 4, 7), 0), [("classes", 2)],
    ),
    "the last token": (
        lambda o, t: F.cross_entropy(o[:, -1], t), draw(4, 7, 5), whole(5, 4), [("classes", 2)],
    ),
    "tokens, classes first": (F.cross_entropy, draw(4, 5, 7), whole(5, 4, 7), [("classes", 1)]),
    "maps": (F.cross_entropy, draw(2, 5, 4, 4), whole(5, 2, 4, 4), [("classes", 1)]),
    "maps with pixels left out": (
        nn.CrossEntropyLoss(ignore_index=255),
        draw(2, 5, 4, 4), masked(whole(5, 2, 4, 4), 255), [("classes", 1)],
    ),
    "maps, classes last": (
        lambda o, t: F.cross_entropy(o.permute(0, 3, 1, 2), t),
        draw(2, 4, 4, 4), whole(4, 2, 4, 4), [("classes", 3)],
    ),
    "time first": (
        lambda o, t: F.ctc_loss(o.log_softmax(-1), t, torch.full((4,), 12), torch.full((4,), 3)),
        draw(12, 4, 6), whole(5, 4, 3) + 1, [("classes", 2)],
    ),
    "log-probabilities": (F.nll_loss, draw(8, 3).log_softmax(1), whole(3, 8), [("classes", 1)]),
    "probabilities": (
        lambda o, t: F.nll_loss(o.log(), t), draw(8, 3).softmax(1), whole(3, 8), [("classes", 1)],
    ),
    "half precision": (F.cross_entropy, draw(8, 3).bfloat16(), whole(3, 8), [("classes", 1)]),
    "one label": (BCE, draw(8, 1), hits(8, 1), [("labels", 0)]),
    "one label, flat": (BCE, draw(8), hits(8), [("labels", 0)]),
    "several labels": (BCE, draw(8, 4), hits(8, 4), [("labels", 0)]),
    "labels that hold by half": (BCE, draw(8, 4), draw(8, 4).sigmoid(), [("labels", 0)]),
    "labels of which none holds": (BCE, draw(8, 4), torch.zeros(8, 4), [("labels", 0)]),
    "labels, weighed": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])),
        draw(8, 4), hits(8, 4), [("labels", 0)],
    ),
    "labels of pixels": (BCE, draw(2, 1, 4, 4), hits(2, 1, 4, 4), [("labels", 0)]),
    "labels in half precision": (BCE, draw(8, 4).bfloat16(), hits(8, 4), [("labels", 0)]),
    "margins of labels": (
        F.multilabel_soft_margin_loss, draw(8, 4), hits(8, 4), [("labels", 0)],
    ),
    "probabilities of labels": (
        F.binary_cross_entropy, draw(8, 1).sigmoid(), hits(8, 1), [("values", 0)],
    ),
    "values": (F.mse_loss, draw(8, 1), draw(8, 1), [("values", 0)]),
    "values, flat": (F.mse_loss, draw(8), draw(8), [("values", 0)]),
    "several values": (F.mse_loss, draw(8, 4), draw(8, 4), [("values", 0)]),
    "values of pixels": (F.l1_loss, draw(2, 3, 4, 4), draw(2, 3, 4, 4), [("values", 0)]),
    "absolute errors": (F.l1_loss, draw(8, 1), draw(8, 1), [("values", 0)]),
    "huber": (F.smooth_l1_loss, draw(8, 1), 3 * draw(8, 1), [("values", 0)]),
    "root of the mean": (
        lambda o, t: F.mse_loss(o, t).sqrt(), draw(8, 1), draw(8, 1), [("values", 0)],
    ),
    "a quantile": (
        lambda o, t: torch.maximum(0.9 * (t - o), 0.1 * (o - t)).mean(),
        draw(8, 1), draw(8, 1), [("values", 0)],
    ),
    "whole values": (
        lambda o, t: F.l1_loss(o[:, 0], t.float()), draw(8, 1), whole(5, 8), [("values", 0)],
    ),
    "steps of values": (
        lambda o, t: F.mse_loss(o.diff(dim=1), t.diff(dim=1)),
        draw(8, 7), draw(8, 7), [("values", 0)],
    ),
    "heads": (
        heads, HEADS, (whole(3, 8), draw(8, 4), hits(8, 2)),
        [("classes", 1), ("values", 0), ("labels", 0)],
    ),
    "two heads": (
        lambda o, t: F.cross_entropy(o[0], t) + 0.4 * F.cross_entropy(o[1], t),
        (draw(8, 3), draw(8, 3)), whole(3, 8), [("classes", 1)] * 2,
    ),
    "logits": (
        lambda o, t: F.cross_entropy(o.logits, t),
        SimpleNamespace(logits=draw(8, 3), hidden=draw(8, 5)), whole(3, 8), [("classes", 1)],
    ),
    "a loss of the network's own": (
        lambda o, t: o.loss,
        SimpleNamespace(logits=draw(8, 7, 3), loss=draw()), whole(3, 8, 7), [("classes", 2)],
    ),
}  # fmt: skip
UNKNOWN = {
    "focal": (focal, draw(8, 4), hits(8, 4)),
    "overlap": (overlap, draw(8, 4), hits(8, 4)),
    "both": (lambda o, t: overlap(o, t) + BCE(o, t), draw(8, 4), hits(8, 4)),
    "mean and variance": (
        lambda o, t: F.gaussian_nll_loss(o[:, :1], t, o[:, 1:].exp()), draw(8, 2), draw(8, 1),
    ),
    "neighbours": (
        lambda o, t: F.cross_entropy(o @ o.T, torch.arange(8)), draw(8, 6), whole(3, 8),
    ),
    "one class": (F.cross_entropy, draw(8, 1), torch.zeros(8).long()),
    "a loss of the network's own": (
        lambda o, t: o.loss, SimpleNamespace(logits=draw(8, 1), loss=draw()), draw(8),
    ),
}  # fmt: skip


def told(loss: Any, output: Any, target: Any, config: Any = AUTO) -> tuple[Compared, ...]:
    return compared_parts(Task(loss=loss), config, output, target)


def test_the_tables_are_whole() -> None:
    assert (len(KNOWN), len(UNKNOWN)) == (43, 7)


@pytest.mark.parametrize("name", KNOWN)
def test_the_loss_tells_what_an_output_is(name: str) -> None:
    loss, output, target, expected = KNOWN[name]
    state = torch.get_rng_state()
    found = told(loss, output, target)
    assert [(part.kind, part.axis) for part in found] == expected
    assert [part.is_share for part in found].count(True) == (name == "probabilities")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_loss_does_not_tell_is_refused_by_name(name: str) -> None:
    with pytest.raises(CompressionError, match=r"what output.*is: a tensor of shape \(8, .*axis="):
        told(*UNKNOWN[name])


def test_what_is_given_is_taken() -> None:
    for kind in ("labels", "values"):
        (part,) = told(focal, draw(8, 4), hits(8, 4), DistillationConfig(outputs=kind))
        assert part.kind == kind
    given = DistillationConfig(outputs="classes", axis=-1)
    (part,) = told(focal, draw(8, 2, 4), hits(8, 2, 4), given)
    assert (part.kind, part.axis) == ("classes", 2)
    for axis in (0, 3, -3):
        wrong = DistillationConfig(outputs="classes", axis=axis)
        with pytest.raises(CompressionError, match=rf"axis was given as {axis}.*\(8, 2, 4\)"):
            told(focal, draw(8, 2, 4), hits(8, 2, 4), wrong)


# --- the losses -----------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Returns the same whatever comes in."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def divergence(p: np.ndarray, q: np.ndarray, axis: int) -> float:
    p, q = (np.exp(v) / np.exp(v).sum(axis, keepdims=True) for v in (p, q))
    return float((p * np.log(p / q)).sum(axis).mean())


@pytest.mark.parametrize(
    ("loss", "shape", "target", "axis"),
    [
        (F.cross_entropy, (6, 3), whole(3, 6), 1),
        (of_tokens, (4, 7, 5), whole(5, 4, 7), 2),
        (of_tokens, (4, 5, 5), whole(5, 4, 5), 2),
        (F.cross_entropy, (2, 5, 4, 3), whole(5, 2, 4, 3), 1),
    ],
    ids=["samples", "tokens", "as many", "maps"],
)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_classes_are_compared_over_their_axis(
    loss: Any, shape: Any, target: Tensor, axis: int, temperature: float
) -> None:
    teacher, student = draw(*shape).double(), draw(*reversed(shape)).double().reshape(shape)
    config = DistillationConfig(share=1.0, temperature=temperature)
    found = make_objective(Task(loss=loss), config, Fixed(teacher))(Fixed(student), (0, target))
    p, q = (v.numpy() / temperature for v in (teacher, student))
    expected = temperature**2 * divergence(p, q, axis)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(6, 1), (6,), (6, 4), (2, 1, 3, 3)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_labels_are_compared_one_by_one(shape: Any, temperature: float) -> None:
    teacher, student = draw(*shape).double(), 2 * draw(*shape).double() - 1
    config = DistillationConfig(share=1.0, temperature=temperature)
    found = make_objective(Task(loss=BCE), config, Fixed(teacher))(
        Fixed(student), (0, hits(*shape).double())
    )
    both = [np.stack([v.numpy() / temperature, 0 * v.numpy()], -1) for v in (teacher, student)]
    expected = temperature**2 * divergence(*both, -1)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-10)
    assert label_loss(student, student, temperature).item() == 0


def test_values_are_compared_by_their_squared_distance() -> None:
    teacher, student = draw(6, 2), draw(2, 6).T
    for loss in (F.mse_loss, F.l1_loss):
        objective = make_objective(Task(loss=loss), AUTO, Fixed(teacher))
        found = objective(Fixed(student), (0, draw(6, 2)))
        np.testing.assert_allclose(
            found.item(), ((teacher - student).numpy() ** 2).mean(), rtol=1e-6
        )


def test_parts_are_added() -> None:
    """Against the parts one by one; a part that the loss ignores has no share."""

    class Several(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Any:
            return {name: self.scale * value for name, value in HEADS.items()}

    target = (whole(3, 8), draw(8, 4), hits(8, 2))
    objective = make_objective(Task(loss=heads), AUTO, Several(2.0))
    found = objective(Several(1.0), (0, target))
    kind, box, tags = (HEADS[name].double().numpy() for name in ("kind", "box", "tags"))
    expected = divergence(2 * kind, kind, 1) + (box**2).mean()
    expected += divergence(*(np.stack([v, 0 * v], -1) for v in (2 * tags, tags)), -1)
    np.testing.assert_allclose(found.item(), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, BCE], ids=["values", "absolute", "label"])
@pytest.mark.parametrize("is_flat", [False, True], ids=["column", "flat"])
def test_one_score_learns_from_its_teacher(loss: Any, is_flat: bool) -> None:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 1), *([nn.Flatten(0)] if is_flat else []))

    teacher, student, x = made(1), made(2), draw(64, 4)
    with torch.no_grad():
        y = teacher(x).sigmoid() if loss is BCE else teacher(x)
    before = (student(x) - teacher(x)).abs().mean().item()
    optimizer = OptimizerConfig(lr=0.05, weight_decay=0.0)
    recovery = RecoveryConfig(
        epochs=30, optimizer=optimizer, distillation=DistillationConfig(share=1.0)
    )
    config = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recovery)
    task = Task(loss=loss, metric=loss, higher_is_better=False)
    recover_(student, Data([(x, y)], [(x, y)]), task, config=config, teacher=teacher)
    assert (student(x) - teacher(x)).abs().mean().item() < 0.5 * before


def test_what_cannot_be_compared_is_refused_before_training() -> None:
    torch.manual_seed(0)
    student, teacher, x = nn.Linear(4, 2), nn.Linear(4, 2), draw(8, 4)
    before = student.weight.detach().clone()
    task = Task(loss=focal, metric=focal, higher_is_better=False)
    recovery = RecoveryConfig(epochs=1, distillation=DistillationConfig(share=0.5))
    data = Data([(x, hits(8, 2))], [(x, hits(8, 2))])
    with pytest.raises(CompressionError, match="leave distillation out"):
        recover_(student, data, task, config=recovery, teacher=teacher)
    assert torch.equal(student.weight, before)
