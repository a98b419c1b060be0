"""LAD and its probes: gates carry every teacher layer up to the one that a student layer learns.

Lin, Chen, Kao, Sensors 2023, 23(3):1483, sections 3 and 5.5. Layers and gates are numbered from 1.
"""

from torch import nn

from fine_tune.data.layout import Layout
from fine_tune.methods.gate import Gate, chain_shares
from fine_tune.methods.method import SHARES, Hiddens, Method, Pairs, Vectors, one_hot, share_rows


class Lad(Method):
    """a_1 = t_1 and a_k = gate_k(a_{k-1}, t_k) up to k = `height`; student layers learn some of a and of t.

    `carried` holds (student layer, k) pairs that learn a_k, `plain` those that learn t_k. Gate k is filed under k - 1.
    """

    def __init__(
        self,
        height: int,
        plane: tuple[int, ...],
        carried: list[tuple[int, int]],
        plain: list[tuple[int, int]] | None = None,
        cls_only: bool = False,
    ) -> None:
        super().__init__()
        self.carried, self.plain, self.cls_only = carried, plain or [], cls_only
        self.gates = nn.ModuleDict({str(index): Gate(*plane) for index in range(1, height)})
        self.top = max(k for _, k in carried)
        for index in range(self.top, height):  # nobody learns from these
            self.gates[str(index)].requires_grad_(False)

    def forward(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> tuple[Pairs, Vectors]:
        """Pair each student layer with what it learns."""
        aggregated = self.carry(teacher_hiddens, layout)
        pairs = {i: (aggregated[k - 1], student_hiddens[i - 1]) for i, k in self.carried}
        return pairs | {i: (teacher_hiddens[k - 1], student_hiddens[i - 1]) for i, k in self.plain}, {}

    def carry(self, teacher_hiddens: Hiddens, layout: Layout) -> Hiddens:
        """Return a_1 .. a_k up to the highest that a student layer learns."""
        aggregated = [teacher_hiddens[0]]
        for gate, above in zip(self.gates.values(), teacher_hiddens[1 : self.top], strict=False):
            aggregated.append(gate(aggregated[-1], above, layout))
        return aggregated

    def watch(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> Vectors:
        """Return what the gates have to show, and the shares."""
        openings, shown = [teacher_hiddens[0].new_ones(len(layout), 1)], {}  # g_1 = 1, for a_1 = t_1
        *below, _ = self.carry(teacher_hiddens, layout)
        for number, (gate, state) in enumerate(zip(self.gates.values(), below, strict=False), 2):
            openings.append(gate.opening(state))
            shown |= gate.describe(number, openings[-1], layout)
        rows = {i: chain_shares(openings[:k], layout) for i, k in self.carried}
        rows |= {i: one_hot(k, teacher_hiddens) for i, k in self.plain}
        return shown | {SHARES: share_rows(rows, len(student_hiddens), len(teacher_hiddens))}


def lad(layers: int, students: int, seq_len: int, d_model: int) -> Lad:
    """LAD: s_i learns a_{i * skip}."""
    return Lad(layers, (seq_len, d_model), even(layers, students))


def lad_cls(layers: int, students: int, d_model: int) -> Lad:
    """LAD on position 0 only; the gates' LayerNorm spans D."""
    return Lad(layers, (d_model,), even(layers, students), cls_only=True)


def partial_lad(
    layers: int, students: int, seq_len: int, d_model: int, gate_indices: list[int], student_indices: list[int]
) -> Lad:
    """Partial LAD: the first len(G) of `student_indices` learn a_g for g in G = `gate_indices`.

    The other student layers, ascending, learn the plain t_{max(G) + skip}, t_{max(G) + 2 * skip}, ... up to t_L.
    """
    height, skip = max(gate_indices), layers // students
    chosen = student_indices[: len(gate_indices)]
    others = [i for i in range(1, students + 1) if i not in chosen]
    plain = list(zip(others, range(height + skip, layers + 1, skip), strict=True))
    return Lad(height, (seq_len, d_model), list(zip(chosen, gate_indices, strict=True)), plain)


def lad_user_defined(
    layers: int, seq_len: int, d_model: int, gate_indices: list[int], student_indices: list[int]
) -> Lad:
    """LAD as the user pairs it: student_indices[j] learns a_{gate_indices[j]}; other layers learn no hidden state."""
    return Lad(layers, (seq_len, d_model), list(zip(student_indices, gate_indices, strict=True)))


def even(layers: int, students: int) -> list[tuple[int, int]]:
    """Return (i, i * skip) for every student layer i."""
    return [(i, i * (layers // students)) for i in range(1, students + 1)]
