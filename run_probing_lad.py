"""Probe LAD: partial LAD, a pairing of student layers and gates of your own, or LAD on [CLS] only."""

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fine_tune.cli import checks, flags, parser

if TYPE_CHECKING:
    from fine_tune.methods.lad import Lad

EXAMPLE = """python run_probing_lad.py --probing_exp partial_lad --gate_indices 2,4,6,8,10 --task qqp \\
    --experiment partial_LAD_5_42 --teacher_exp teacher_base --tckpt 34110 --num_hidden_layers 6 --lr 1e-4 \\
    --gate_lr 5e-7 --softmax_temp 20 --soft_weight 0.7 --hard_weight 0.3 --mu 500 --total_step 56850 \\
    --warmup_step 5685 --device_id 0"""


def probe() -> flags.FlagGroup:
    """Which probe of LAD, and which layers it pairs."""
    indices = "gates whose knowledge is learned, such as 2,4,6"
    return "probe", [
        flags.Flag("probing_exp", flags.choice("partial_lad", "lad_user_defined", "lad_cls"), "the probe"),
        flags.Flag("gate_indices", flags.layer_numbers, indices, falls_back="none; lad_cls alone does without"),
        flags.Flag(
            "student_indices", flags.layer_numbers, "student layers that learn it, such as 1,2,3", falls_back="1..N"
        ),
    ]


@checks.needs("probing_exp", "gate_indices")
def indices_given(given: Namespace) -> Iterator[str]:
    """Every probe but lad_cls pairs layers; lad_cls pairs none."""
    if given.probing_exp != "lad_cls" and given.gate_indices is None:
        yield f"--gate_indices: is required with --probing_exp {given.probing_exp}"
    for flag in ("gate_indices", "student_indices"):
        if given.probing_exp == "lad_cls" and getattr(given, flag, None):
            yield f"--{flag}: has no meaning with --probing_exp lad_cls; leave it out"


@checks.needs("probing_exp", "gate_indices", "student_indices")
def rule(given: Namespace, layers: int) -> Iterator[str]:
    """The indices must lie within both models and be as many as the probe pairs."""
    if given.probing_exp == "lad_cls" or given.gate_indices is None:
        return
    gates, students = given.gate_indices, given.num_hidden_layers
    chosen = given.student_indices or list(range(1, students + 1))
    limits = (("gate_indices", gates, layers), ("student_indices", chosen, students))
    outside = [(flag, values, limit) for flag, values, limit in limits if max(values) > limit]
    for flag, values, limit in outside:
        yield f"--{flag} {as_typed(values)}: must lie within 1..{limit}"
    if outside:
        return
    both = f"--gate_indices {as_typed(gates)} and --student_indices {as_typed(chosen)}"
    if given.probing_exp == "lad_user_defined" and len(chosen) != len(gates):
        yield f"{both}: must name as many layers as each other, not {len(gates)} and {len(chosen)}"
    if given.probing_exp == "partial_lad":
        skip = layers // students
        if len(chosen) not in (len(gates), students):
            yield f"{both}: the latter must name {len(gates)} layers, or all {students}"
        rest, odd = divmod(layers - max(gates), skip)
        if odd or len(gates) + rest != students:
            yield (
                f"{both}: {len(gates)} gates and every {skip}th layer from {max(gates)} to {layers} "
                f"must make {students} targets"
            )


def as_typed(layers: list[int]) -> str:
    """Return layer numbers as they are typed."""
    return ",".join(map(str, layers))


def build_method(given: Namespace, layers: int) -> "Lad":
    """Return the probe that the flags name, for a teacher of `layers` layers."""
    from fine_tune.methods.lad import lad_cls, lad_user_defined, partial_lad

    if given.probing_exp == "lad_cls":
        return lad_cls(layers, given.num_hidden_layers, given.d_model)
    students = given.student_indices or list(range(1, given.num_hidden_layers + 1))
    if given.probing_exp == "lad_user_defined":
        return lad_user_defined(layers, given.max_seq_len, given.d_model, given.gate_indices, students)
    return partial_lad(layers, given.num_hidden_layers, given.max_seq_len, given.d_model, given.gate_indices, students)


def main() -> None:
    """Read the flags, then distil."""
    groups = [probe(), *flags.distillation(), flags.gates()]
    rules = (*checks.distillation(rule), indices_given)
    given = parser.parse(__doc__, groups, rules, EXAMPLE, kind="student", method="probing_lad")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds

    distil(given, build_method, rule)


if __name__ == "__main__":
    parser.run_script(main)
