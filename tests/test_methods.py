"""Gates, targets and losses against naive loops written from the formulas, one position and layer at a time."""

import math
from argparse import Namespace
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fine_tune.data.layout import Layout, full
from fine_tune.methods.alp import alp
from fine_tune.methods.gate import Gate
from fine_tune.methods.lad import lad, lad_cls, lad_user_defined, partial_lad
from fine_tune.methods.lad_no import LadNo
from fine_tune.methods.losses import hard_loss, layer_losses, soft_loss
from fine_tune.methods.method import Method
from fine_tune.methods.pkd import Pkd

B, S, D = 3, 5, 8
Planes = list[torch.Tensor]  # one (B, S, D) array per layer


def states(layers: int, seed: int, size: float = 1.0) -> Planes:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(B, S, D, generator=generator, dtype=torch.float64) for _ in range(layers)]


def shuffled(method: Method) -> Method:
    """Give every gate parameter a value of its own: LayerNorm's start of ones and zeros would hide mistakes."""
    torch.manual_seed(3)
    for parameter in method.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return method


def every(method: Method) -> Layout:
    """Return the layout of all positions, or of position 0 for a method that reads no other."""
    layout = full(np.full(B, S), S)
    return layout.cls if method.cls_only else layout


def rows(planes: Planes, layout: Layout) -> list[torch.Tensor]:
    """Return (B, S, D) arrays as the rows of a layout."""
    return [plane[layout.batch_index, layout.position_ids] for plane in planes]


def targets(method: Method, teacher: Planes, student: Planes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the method's pairs as (B, S or 1, D) arrays."""
    layout = every(method)
    pairs, _ = method(rows(teacher, layout), rows(student, layout), layout)
    return [(target.view(B, -1, D), state.view(B, -1, D)) for target, state in pairs.values()]


def vectors_of(method: Method, teacher: Planes, student: Planes) -> dict[str, torch.Tensor]:
    """Return what the method saves beside the checkpoints."""
    layout = every(method)
    return method(rows(teacher, layout), rows(student, layout), layout)[1]


def naive_gate(gate: Gate, below: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """Mix two (B, P, D) arrays; the plane is [P, D]."""
    result = torch.empty_like(below)
    weight, bias = gate.layernorm.weight.reshape(-1, D), gate.layernorm.bias.reshape(-1, D)
    for b in range(below.shape[0]):
        plane = torch.empty_like(below[b])
        for s in range(below.shape[1]):
            for d in range(D):
                sum_ = gate.linear.bias[d] + sum(gate.linear.weight[d, e] * below[b, s, e] for e in range(D))
                g = 1 / (1 + math.exp(-sum_))
                plane[s, d] = g * above[b, s, d] + (1 - g) * below[b, s, d]
        variance = ((plane - plane.mean()) ** 2).mean()
        result[b] = (plane - plane.mean()) / torch.sqrt(variance + 1e-5) * weight + bias
    return result


def naive_chain(method: Method, teacher: Planes, height: int) -> dict[int, torch.Tensor]:
    """Return a_1 .. a_height by number."""
    a = {1: teacher[0]}
    for k in range(2, height + 1):
        a[k] = naive_gate(method.gates[str(k - 1)], a[k - 1], teacher[k - 1])
    return a


def naive_alp(teacher: Planes, state: torch.Tensor, limit: int) -> torch.Tensor:
    result = torch.empty_like(state)
    for b in range(state.shape[0]):
        for s in range(state.shape[1]):
            scores = [float(teacher[layer][b, s] @ state[b, s]) / math.sqrt(D) for layer in range(limit)]
            weights = [math.exp(score - max(scores)) for score in scores]
            result[b, s] = sum(w / sum(weights) * teacher[layer][b, s] for layer, w in enumerate(weights))
    return result


def check(pairs: list, expected: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert len(pairs) == len(expected)
    for (target, state), (wanted, student) in zip(pairs, expected, strict=True):
        torch.testing.assert_close(target, wanted)
        assert torch.equal(state, student)


@pytest.mark.parametrize(("layers", "students"), [(12, 6), (12, 4), (12, 3), (6, 3), (4, 4), (24, 6)])
def test_lad(layers: int, students: int) -> None:
    teacher, student, skip = states(layers, 1), states(students, 2), layers // students
    method = shuffled(lad(layers, students, S, D))
    assert list(method.gates) == [str(index) for index in range(1, layers)]
    with torch.no_grad():
        a = naive_chain(method, teacher, layers)
        check(targets(method, teacher, student), [(a[i * skip], student[i - 1]) for i in range(1, students + 1)])


@pytest.mark.parametrize(("layers", "students"), [(12, 6), (12, 3), (4, 2)])
def test_lad_no(layers: int, students: int) -> None:
    teacher, student, skip = states(layers, 1), states(students, 2), layers // students
    method = shuffled(LadNo(layers, students, S, D))
    assert list(method.gates) == [str(index) for index in range(students)]
    expected = []
    with torch.no_grad():
        for i in range(1, students + 1):
            mixed = naive_gate(method.gates[str(i - 1)], teacher[i * skip - 2], teacher[i * skip - 1])
            expected.append((mixed, student[i - 1]))
        check(targets(method, teacher, student), expected)


@pytest.mark.parametrize(
    ("gate_indices", "student_indices", "plain"),
    [
        ([2, 4, 6, 8, 10], [1, 2, 3, 4, 5, 6], {6: 12}),  # the seed's example
        ([2, 4], [1, 2], {3: 6, 4: 8, 5: 10, 6: 12}),
        ([2, 4], [6, 3], {1: 6, 2: 8, 4: 10, 5: 12}),
        ([2, 4, 6, 8, 10, 12], [1, 2, 3, 4, 5, 6], {}),
        ([6], [2, 1, 3, 4, 5, 6], None),
    ],
)
def test_partial_lad(gate_indices: list[int], student_indices: list[int], plain: dict[int, int] | None) -> None:
    if plain is None:  # 1 gate and 3 further layers are not 6 targets: the method itself refuses, as the flags do
        with pytest.raises(ValueError):
            partial_lad(12, 6, S, D, gate_indices, student_indices)
        return
    teacher, student = states(12, 1), states(6, 2)
    method = shuffled(partial_lad(12, 6, S, D, gate_indices, student_indices))
    assert len(method.gates) == max(gate_indices) - 1
    with torch.no_grad():
        a = naive_chain(method, teacher, max(gate_indices))
        learned = [(a[g], student[i - 1]) for g, i in zip(gate_indices, student_indices, strict=False)]
        learned += [(teacher[k - 1], student[i - 1]) for i, k in plain.items()]
        check(targets(method, teacher, student), learned)


def test_lad_user_defined() -> None:
    teacher, student = states(6, 1), states(3, 2)
    method = shuffled(lad_user_defined(6, S, D, [5, 1], [1, 3]))
    assert len(method.gates) == 5
    with torch.no_grad():
        a = naive_chain(method, teacher, 6)
        check(targets(method, teacher, student), [(a[5], student[0]), (a[1], student[2])])


def test_lad_cls_sees_position_0_only() -> None:
    teacher, student = states(6, 1), states(3, 2)
    method = shuffled(lad_cls(6, 3, D))
    assert method.gates["1"].layernorm.weight.shape == (D,)
    with torch.no_grad():
        a = naive_chain(method, [plane[:, :1] for plane in teacher], 6)
        check(targets(method, teacher, student), [(a[2 * i], student[i - 1][:, :1]) for i in (1, 2, 3)])


@pytest.mark.parametrize("layers", [6, 12])
@pytest.mark.parametrize("alp_exp", ["alp-kd", "alp-kd-hidden", "alp-kd-hidden-v2"])
def test_alp(alp_exp: str, layers: int) -> None:
    teacher, student, method = states(layers, 1), states(3, 2), alp(alp_exp, layers, 3)
    seen = 1 if alp_exp == "alp-kd" else S
    expected = []
    for i in (1, 2, 3):
        limit = i * layers // 3 if alp_exp == "alp-kd-hidden-v2" else layers
        state = student[i - 1][:, :seen]
        expected.append((naive_alp([plane[:, :seen] for plane in teacher], state, limit), state))
    check(targets(method, teacher, student), expected)


def test_alp_is_stable_and_shows_its_attention() -> None:
    teacher, student, method = states(6, 1, size=100.0), states(3, 2, size=100.0), alp("alp-kd-hidden-v2", 6, 3)
    assert all(torch.isfinite(target).all() for target, _ in targets(method, teacher, student))
    vectors = vectors_of(method, teacher, student)
    assert list(vectors) == ["attn-0", "attn-1", "attn-2"]
    for index, attention in enumerate(vectors.values()):
        assert attention.shape == (6,)
        assert attention.sum().item() == pytest.approx(1)
        assert (attention[2 * (index + 1) :] == 0).all()
    # With attention on one layer only, the mean over rows is exact: a student equal to a huge t_3 sees t_3.
    sharp = [torch.nn.functional.normalize(plane, dim=-1) * 1000 for plane in teacher]
    vectors = vectors_of(alp("alp-kd-hidden", 6, 1), sharp, [sharp[2]])
    torch.testing.assert_close(vectors["attn-0"], torch.eye(6, dtype=torch.float64)[2])


def test_alp_gradient_flows_through_the_weights() -> None:
    teacher, [state] = states(4, 1), states(1, 2)
    method = alp("alp-kd-hidden", 4, 1)
    layout = every(method)
    teacher_hiddens = rows(teacher, layout)

    def loss(learned: torch.Tensor) -> torch.Tensor:
        return layer_losses(method(teacher_hiddens, [learned], layout)[0].values(), layout).sum()

    learned = state.reshape(-1, D).requires_grad_()
    assert torch.autograd.gradcheck(loss, (learned,))  # against finite differences, which know nothing of detaching
    pairs, _ = method(teacher_hiddens, [learned], layout)
    [(target, _)] = pairs.values()
    detached = torch.autograd.grad((target.detach() - learned).square().mean(), learned)[0]
    assert not torch.allclose(torch.autograd.grad(loss(learned), learned)[0], detached)


@pytest.mark.parametrize(("layers", "students"), [(12, 6), (12, 12), (12, 4), (6, 3)])
def test_pkd(layers: int, students: int) -> None:
    teacher, student, skip = states(layers, 1), states(students, 2), layers // students
    expected = [(teacher[i * skip - 1], student[i - 1]) for i in range(1, students + 1)]
    check(targets(Pkd(layers, students), teacher, student), expected)


@pytest.mark.parametrize("temperature", [1.0, 20.0, 199.0])
def test_the_soft_loss_is_right_at_every_temperature_that_is_taken(temperature: float) -> None:
    """In fp32 against fp64; beyond, T^2 times a difference of nearly equal numbers is mostly rounding."""
    generator = torch.Generator().manual_seed(0)
    logits, told = (3 * torch.randn(32, 2, generator=generator) for _ in range(2))
    exact = soft_loss(logits.double(), told.double(), temperature)
    assert soft_loss(logits, told, temperature).item() == pytest.approx(exact.item(), rel=1e-3)
    refused = 1e4
    exact = soft_loss(logits.double(), told.double(), refused)
    assert soft_loss(logits, told, refused).item() != pytest.approx(exact.item(), rel=1e-2)


MAPS = {  # for (12, 6) and (6, 3), by hand
    "even": ([2, 4, 6, 8, 10, 12], [2, 4, 6]),
    "last": ([7, 8, 9, 10, 11, 12], [4, 5, 6]),
    "reverse": ([12, 10, 8, 6, 4, 2], [6, 4, 2]),
    "top": ([12] * 6, [6] * 3),
}


@pytest.mark.parametrize("layer_map", MAPS)
def test_pkd_with_another_map(layer_map: str) -> None:
    for (layers, students), numbers in zip([(12, 6), (6, 3)], MAPS[layer_map], strict=True):
        teacher, student = states(layers, 1), states(students, 2)
        method = Pkd(layers, students, layer_map)
        check(targets(method, teacher, student), [(teacher[n - 1], s) for n, s in zip(numbers, student, strict=True)])
        shares = method.watch(teacher, student, every(method))["share_map"]
        assert shares.nonzero().tolist() == [[i, number - 1] for i, number in enumerate(numbers)]
        assert shares.sum() == students


GATED: dict[str, Callable[[], Method]] = {
    "lad": lambda: lad(6, 3, S, D),
    "lad_no": lambda: LadNo(6, 3, S, D),
    "partial_lad": lambda: partial_lad(6, 3, S, D, [2, 4], [1, 2]),
    "lad_cls": lambda: lad_cls(6, 3, D),
}


@pytest.mark.parametrize("name", GATED)
def test_every_gate_learns(name: str) -> None:
    method = GATED[name]().double()
    layout = every(method)
    pairs, _ = method(rows(states(6, 1), layout), rows(states(3, 2), layout), layout)
    loss = layer_losses(pairs.values(), layout).sum()
    loss.backward()
    for parameter in method.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_gate_start() -> None:
    torch.manual_seed(0)
    gate = Gate(S, 64)
    assert gate.linear.weight.abs().max() <= math.sqrt(6 / 128)  # Xavier-uniform of (D, D)
    assert gate.linear.weight.std().item() == pytest.approx(math.sqrt(6 / 128) / math.sqrt(3), rel=0.05)
    assert gate.layernorm.eps == 1e-5
    assert set(gate.state_dict()) == {"linear.weight", "linear.bias", "layernorm.weight", "layernorm.bias"}


# --- losses -----------------------------------------------------------------------------------------------------------


def test_soft_loss_is_the_kl_of_the_softened_distributions() -> None:
    torch.manual_seed(0)
    student, teacher, T = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64), 7.0
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(z / T) / sum(math.exp(y / T) for y in z_t) for z in z_t]
        q = [math.exp(z / T) / sum(math.exp(y / T) for y in z_s) for z in z_s]
        total += sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))
    assert soft_loss(student, teacher, T).item() == pytest.approx(T * T * total / 4)
    assert soft_loss(teacher, teacher, T).item() == pytest.approx(0, abs=1e-12)
    assert soft_loss(student, teacher, T).item() != pytest.approx(soft_loss(teacher, student, T).item())


def test_regression_losses_are_plain_mse() -> None:
    logits, teacher, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]]), torch.tensor([0.0, 4.0])
    assert hard_loss(logits, labels).item() == pytest.approx((1 + 4) / 2)
    assert soft_loss(logits, teacher, temperature=9).item() == pytest.approx((4 + 0.25) / 2)


def test_label_loss_is_cross_entropy() -> None:
    logits, labels = torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([0, 0])
    expected = [-math.log(math.exp(a) / (math.exp(a) + math.exp(b))) for a, b in logits.tolist()]
    assert hard_loss(logits, labels).item() == pytest.approx(sum(expected) / 2)


def test_layer_losses_are_means() -> None:
    first, second = states(3, 1), states(3, 2)
    expected = [((a - b) ** 2).sum().item() / (B * S * D) for a, b in zip(first, second, strict=True)]
    layout = full(np.full(B, S), S)
    pairs = list(zip(rows(first, layout), rows(second, layout), strict=True))
    assert layer_losses(pairs, layout).tolist() == pytest.approx(expected)
    assert F.mse_loss(first[0], second[0]).item() == pytest.approx(expected[0])


def test_probe_reads_the_flags() -> None:
    from run_probing_lad import build_method

    run = Namespace(num_hidden_layers=3, max_seq_len=S, d_model=D, gate_indices=[2, 4], student_indices=None)
    run.probing_exp = "partial_lad"
    assert build_method(run, 6).carried == [(1, 2), (2, 4)]
    assert build_method(run, 6).plain == [(3, 6)]
    run.probing_exp, run.student_indices = "lad_user_defined", [3, 1]
    assert build_method(run, 6).carried == [(3, 2), (1, 4)]
    run.probing_exp = "lad_cls"
    assert build_method(run, 6).cls_only
