"""Distillation against formulas in numpy, and what it leaves behind."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbcompress import (
    CompressConfig,
    CompressionError,
    Data,
    DendriteConfig,
    DistillationConfig,
    OptimizerConfig,
    RecoveryConfig,
    Task,
    compress,
    recover_,
)
from pbcompress.core.modules import preserved_mode
from pbcompress.training.distillation import (
    distillation_loss,
    feature_loss,
    make_objective,
    relation_loss,
)
from tests.support.configs import recovery_of


def network(width: int = 6) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4), nn.ReLU(),
        nn.Dropout(0.2), nn.Linear(4, 3),
    )  # fmt: skip


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(count, 16, 5, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in xs]


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(7, 3), (4, 5, 2, 3)])
def test_the_loss_is_the_divergence_of_softened_probabilities(shape, temperature) -> None:
    student, teacher = (torch.randn(shape, dtype=torch.float64) * 3 for _ in range(2))
    p, q = (softmax(t.numpy() / temperature) for t in (teacher, student))
    expected = (p * np.log(p / q)).sum(1).mean() * temperature**2
    found = distillation_loss(student, teacher, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_gradient_keeps_its_size_when_scores_are_softened() -> None:
    """For large T the gradient tends to (student - teacher) / classes, whatever T is."""
    student = torch.randn(6, 4, dtype=torch.float64)
    teacher = torch.randn(6, 4, dtype=torch.float64)
    student, teacher = (t - t.mean(1, keepdim=True) for t in (student, teacher))
    student.requires_grad_()
    distillation_loss(student, teacher, 1e4).backward()
    torch.testing.assert_close(
        6 * student.grad, (student - teacher).detach() / 4, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.5, 4.0])
@pytest.mark.parametrize(("shape", "axis"), [((7, 3), 1), ((4, 5, 3), 2), ((4, 5, 2, 3), 1)])
def test_relations_are_correlations_over_classes_and_over_samples(
    shape: tuple[int, ...], axis: int, temperature: float
) -> None:
    student, teacher = (torch.randn(shape, dtype=torch.float64) * 3 for _ in range(2))
    rows = [np.moveaxis(t.numpy(), axis, -1).reshape(-1, shape[axis]) for t in (student, teacher)]
    p, q = (softmax(r / temperature) for r in rows)
    expected = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    expected += np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    found = relation_loss(student, teacher, temperature, axis)
    np.testing.assert_allclose(found, expected * temperature**2, rtol=1e-9)


def test_relations_of_one_sample_and_of_constant_scores_have_finite_gradients() -> None:
    for scores in (torch.randn(1, 3), torch.zeros(4, 3)):
        student = scores.clone().requires_grad_()
        relation_loss(student, scores, 4.0).backward()
        assert student.grad is not None
        assert bool(student.grad.isfinite().all())


def test_the_objective_compares_as_the_configuration_says() -> None:
    student, teacher, (x, y) = network().eval(), network(9).eval(), batches(1)[0]
    config = DistillationConfig(share=1.0, loss="dist", temperature=2.0)
    found = make_objective(Task(), config, teacher)(student, (x, y))
    torch.testing.assert_close(found, relation_loss(student(x), teacher(x), 2.0))


def test_features_are_compared_by_relative_squares() -> None:
    student, teacher = ([torch.randn(4, n).double() for n in (2, 5)] for _ in range(2))
    parts = [
        ((s - t) ** 2).sum() / (t**2).sum()
        for s, t in zip(map(np.asarray, student), map(np.asarray, teacher), strict=True)
    ]
    np.testing.assert_allclose(feature_loss(student, teacher), np.mean(parts), rtol=1e-12)


def test_the_objective_mixes_task_teacher_and_features() -> None:
    student, teacher, task = network().double(), network(9).double(), Task()
    student.eval()
    config = DistillationConfig(share=0.3, temperature=2.0, features=0.7)
    x, y = batches()[0]
    x = x.double()
    found = make_objective(task, config, teacher)(student, (x, y))
    teacher.eval()
    out, wanted = student(x), teacher(x)
    features = [
        ((student[:n](x) - teacher[:n](x)) ** 2).sum() / (teacher[:n](x) ** 2).sum()
        for n in (4, 5, 6, 7)  # what follows the layer of another width
    ]
    expected = (
        0.7 * nn.functional.cross_entropy(out, y)
        + 0.3 * distillation_loss(out, wanted, 2.0)
        + 0.7 * torch.stack(features).mean()
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("choices", [{}, {"share": 0.5}, {"features": 1.0}])
def test_the_teacher_is_left_as_it_was(choices) -> None:
    student, teacher = network(), network(9).train()
    teacher[0].eval()
    before = copy.deepcopy(teacher.state_dict())
    modes = [m.training for m in teacher.modules()]
    hooks = [len(m._forward_hooks) for m in [*teacher.modules(), *student.modules()]]
    recovery = recovery_of(epochs=2, dendrite_epochs=1, max_failures=1, **choices)
    config = CompressConfig(recovery=recovery)
    data = Data(train=batches(), val=batches())
    recover_(student, data, config=config, teacher=teacher)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert [m.training for m in teacher.modules()] == modes
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(hooks)
    assert not any(m._forward_hooks for m in [*teacher.modules(), *student.modules()])


def test_without_a_share_the_training_is_the_plain_one() -> None:
    data, runs = Data(train=batches(), val=batches()), []
    for teacher, share in ((None, 0.0), (network(9), 0.0), (network(9), 0.6)):
        model = network()
        recovery = RecoveryConfig(epochs=2, distillation=DistillationConfig(share=share))
        config = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recovery)
        recover_(model, data, config=config, teacher=teacher)
        runs.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_distillation_brings_the_student_to_its_teacher() -> None:
    x, distances = torch.cat([x for x, _ in batches(20)]), []
    teacher = network(9)
    with preserved_mode(teacher, training=False):
        wanted = teacher(x).softmax(1).detach()
    for share in (0.0, 1.0):
        student = network()
        recovery = RecoveryConfig(
            epochs=8,
            optimizer=OptimizerConfig(lr=0.02),
            distillation=DistillationConfig(share=share),
        )
        config = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recovery)
        data = Data(train=batches(20), val=batches(2))
        recover_(student, data, config=config, teacher=teacher)
        distances.append((student(x).softmax(1) - wanted).abs().mean().item())
    assert distances[1] < 0.5 * distances[0]


class Odd(nn.Module):
    """Returns class scores as one of several forms."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.fc, self.output = nn.Linear(5, 3), output

    def forward(self, x: Tensor) -> object:
        y = self.fc(x)
        return {"dict": {"y": y}, "number": y.sum(), "wide": torch.cat([y, y], 1)}[self.output]


def test_scores_in_a_dict_are_compared() -> None:
    student, teacher, (x, y) = Odd("dict"), Odd("dict"), batches()[0]
    task = Task(loss=lambda o, t: nn.functional.cross_entropy(o["y"], t))
    found = make_objective(task, DistillationConfig(share=1.0), teacher)(student, (x, y))
    torch.testing.assert_close(found, distillation_loss(student.fc(x), teacher.fc(x), 4.0))


def test_outputs_without_parts_are_refused() -> None:
    objective = make_objective(
        Task(loss=lambda o, t: o), DistillationConfig(share=0.5), Odd("number")
    )
    with pytest.raises(CompressionError, match="leave distillation out"):
        objective(Odd("number"), batches()[0])


def test_a_teacher_of_another_task_is_refused() -> None:
    objective = make_objective(Task(), DistillationConfig(share=0.5), Odd("wide"))
    with pytest.raises(CompressionError, match=r"\(16, 3\) and its teacher \(16, 6\)"):
        objective(nn.Sequential(nn.Linear(5, 3)), batches()[0])


def test_networks_without_a_common_shape_are_refused() -> None:
    choices = DistillationConfig(features=0.5)
    objective = make_objective(Task(), choices, nn.Sequential(nn.Linear(5, 4)))
    with pytest.raises(CompressionError, match="no module has an output of the same shape"):
        objective(nn.Sequential(nn.Linear(5, 3)), batches()[0])


def test_compress_distils_from_the_original() -> None:
    data, results = Data(train=batches(), val=batches()), []
    for share in (0.0, 0.9):
        recovery = RecoveryConfig(
            epochs=2,
            dendrite_epochs=1,
            max_failures=1,
            distillation=DistillationConfig(share=share),
        )
        config = CompressConfig(recovery=recovery, deploy=False)
        result = compress(network(24), 0.5, data=data, config=config, progress=False)
        results.append([record["loss"] for record in result.history])
    assert len(results[0]) == len(results[1])
    assert results[0][0] != results[1][0]
