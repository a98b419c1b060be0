"""What a run shows of itself: read back through tensorboard's own reader, against plain loops over layers."""

import io
import json
import math
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from transformers import BertConfig, BertModel, BertTokenizer

from fine_tune.core.errors import UserError
from fine_tune.data.tokens import epoch_order
from fine_tune.methods.method import SHARES
from fine_tune.training.pictures import CELL, LEFT, TOP, colour
from tests import golden, reference, tiny
from tests.built import METHODS, distillation, make_tokens
from tests.processes import arguments

ROOT = Path(__file__).parent.parent
TAG = "qqp/train/bert"


def states(name: str, pad_loss: str = "all") -> tuple:
    """Return a task and the states and layout that its method is called with."""
    task, tokens, chosen = distillation(name, pad_loss), make_tokens(), np.arange(4)
    batch = tokens.batch(chosen, task.layout(tokens.lengths(chosen), chosen, 1))
    with torch.no_grad():
        hiddens = task.teacher(batch, task.cls_only)[1], task.student(batch, task.cls_only)[1]
    return task, *hiddens, batch.layout.cls if task.cls_only else batch.layout


def plain_gates(task: object, t: list[np.ndarray], layout: object, base: int) -> dict[int, np.ndarray]:
    """Return the openings (R, D) of the chain's gates by number, or of LAD-NO's for `base` 1, from the formula."""
    a, openings = {1: t[0]}, {}
    for index, gate in task.method.gates.items():
        k = int(index) + 1
        below = a[k - 1] if base == 2 else t[2 * k - 2]
        weight, bias = (p.detach().numpy() for p in (gate.linear.weight, gate.linear.bias))
        openings[k] = 1 / (1 + np.exp(-(below @ weight.T + bias)))
        if base == 2:
            rows = torch.from_numpy(openings[k] * t[k - 1] + (1 - openings[k]) * below)
            a[k] = layout.normalise(rows, gate.layernorm).detach().numpy()
    return openings


def plain_shares(name: str, task: object, t: list[np.ndarray], s: list[np.ndarray], layout: object) -> np.ndarray:
    """Return how much of t_j is in the target of s_i, cell by cell; L = 4, N = 2."""
    w, shares = layout.weight.numpy(), np.zeros((2, 4))
    if name == "pkd":
        shares[0, 1] = shares[1, 3] = 1
    elif name.startswith("alp"):
        for i in (1, 2):
            limit = 2 * i if name.endswith("v2") else 4
            for row in range(len(w)):
                scores = [math.exp(t[j][row] @ s[i - 1][row] / 4) for j in range(limit)]  # sqrt(D) = 4
                for j in range(limit):
                    shares[i - 1, j] += w[row] * scores[j] / sum(scores)
    elif name == "lad_no":
        openings = plain_gates(task, t, layout, base=1)
        for i in (1, 2):
            mean = (w[:, None] * openings[i]).sum() / 16
            shares[i - 1, 2 * i - 2 : 2 * i] = 1 - mean, mean
    else:
        openings = plain_gates(task, t, layout, base=2)
        learned = {"partial_lad": {1: 2}, "lad_user_defined": {1: 4, 2: 2}}.get(name, {1: 2, 2: 4})
        for i, k in learned.items():
            for j in range(1, k + 1):
                part = openings[j] if j > 1 else 1.0
                for m in range(j + 1, k + 1):
                    part = part * (1 - openings[m])
                shares[i - 1, j - 1] = (w[:, None] * part).sum() / 16
        if name == "partial_lad":
            shares[1, 3] = 1  # layer 2 learns the plain t_4
    return shares


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pad_loss", ["all", "masked"])
def test_shares_are_those_of_a_plain_loop(name: str, pad_loss: str) -> None:
    task, teacher, student, layout = states(name, pad_loss)
    with torch.no_grad():
        found = task.method.watch(teacher, student, layout)[SHARES].numpy()
    t, s = ([state.numpy() for state in hiddens] for hiddens in (teacher, student))
    np.testing.assert_allclose(found, plain_shares(name, task, t, s, layout), atol=2e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=2e-6)


def test_a_student_layer_without_a_target_has_no_shares() -> None:
    task, teacher, student, layout = states("lad_user_defined")
    task.method.carried = task.method.carried[:1]  # (1, 4) alone
    found = task.method.watch(teacher, student, layout)[SHARES]
    assert found.sum(1).tolist() == pytest.approx([1, 0])


def test_what_alp_shows_of_its_attention() -> None:
    """Attention to all layers alike: entropy log L and centre (L + 1) / 2. To one: 0 and its number."""
    from fine_tune.data.layout import full
    from fine_tune.methods.alp import alp

    layout, same, apart = full(np.array([2]), 2), torch.ones(2, 4), 30 * torch.eye(4)
    shown = alp("alp-kd-hidden", 4, 1).watch([same] * 4, [same], layout)
    assert [shown[f"attn/{kind}/1"].item() for kind in ("entropy", "centre")] == pytest.approx([1, 2.5])
    keys = [apart[j].expand(2, 4) for j in range(4)]
    shown = alp("alp-kd-hidden", 4, 1).watch(keys, [keys[2]], layout)
    assert [shown[f"attn/{kind}/1"].item() for kind in ("entropy", "centre")] == pytest.approx([0, 3], abs=1e-6)
    one = alp("alp-kd-hidden-v2", 1, 1).watch([same], [same], layout)  # nothing to choose from
    assert [one[f"attn/{kind}/1"].item() for kind in ("entropy", "centre")] == [0, 1]


def test_what_gates_show() -> None:
    task, teacher, student, layout = states("lad", "masked")
    shown = task.method.watch(teacher, student, layout)
    openings = plain_gates(task, [state.numpy() for state in teacher], layout, base=2)
    assert {name for name in shown if "/" in name} == {
        f"gate/{kind}/{k}" for kind in ("opening", "spread", "drift") for k in (2, 3, 4)
    }
    for k, opening in openings.items():
        weight = np.repeat(layout.weight.numpy()[:, None], 16, 1)
        mean = np.average(opening, weights=weight)
        assert shown[f"gate/opening/{k}"].item() == pytest.approx(mean, rel=1e-5)
        deviation = math.sqrt(np.average((opening - mean) ** 2, weights=weight))
        assert shown[f"gate/spread/{k}"].item() == pytest.approx(deviation, rel=1e-4)
        gate = task.method.gates[str(k - 1)]
        drift = (gate.linear.weight - gate.start).square().sum().sqrt() / gate.start.square().sum().sqrt()
        assert shown[f"gate/drift/{k}"].item() == pytest.approx(drift.item(), rel=1e-5)


# --- read back --------------------------------------------------------------------------------------------------------


def board(root: Path, run: str, part: str = "") -> EventAccumulator:
    """Return what tensorboard reads of a run, every picture of it."""
    reader = EventAccumulator(
        str(root / "runs" / "log" / f"{run}_bert_qqp{part}"), size_guidance={"images": 0, "tensors": 0}
    )
    reader.Reload()
    return reader


def pictures(reader: EventAccumulator, tag: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return the values and the pixels of a tag's pictures by step."""
    found = {}
    for event in reader.Images(tag):
        image = Image.open(io.BytesIO(event.encoded_image_string))
        assert image.size == (event.width, event.height)
        found[event.step] = np.array(json.loads(image.text["values"])), np.array(image)
    return found


def test_the_board_of_a_lad_run(root: Path) -> None:
    """Every point of every tag; the last step is there although log_step does not divide it."""
    flags = tiny.student_flags(root, gate_lr=1e-2, total_step=7, log_step=2, dropout=0.1, accum_step=2)
    tiny.run_script("run_lad_distil", **flags)
    curves = {
        tag.removeprefix(f"{TAG}/"): points for tag, points in tiny.curves(root / "runs", "student_bert_qqp").items()
    }
    layers = {f"hidden_loss_layer/{i}" for i in (1, 2)}
    gates = {f"gate/{kind}/{k}" for kind in ("opening", "spread", "drift") for k in (2, 3, 4)}
    before = {"loss", "logits_loss", "hidden_loss", "lr", "gate_lr"}
    assert curves.keys() == before | layers | gates | {"grad_norm", "gate_grad_norm"} | {
        "time/steps_per_s",
        "time/tokens_per_s",
    }
    assert all(list(points) == [2, 4, 6, 7] for points in curves.values())
    for step in (2, 7):
        whole = sum(curves[layer][step] for layer in layers)
        assert whole == pytest.approx(curves["hidden_loss"][step], rel=1e-6)
    assert curves["gate/drift/2"][2] == 0  # step 1 runs at learning rate 0
    assert 0 < curves["gate/drift/2"][4] < curves["gate/drift/2"][7]
    assert min(curves["time/tokens_per_s"].values()) > min(curves["time/steps_per_s"].values()) > 0

    found = pictures(board(root, "student"), f"{TAG}/{SHARES}")
    assert list(found) == [2, 4, 6, 7]
    for values, pixels in found.values():
        assert values.shape == (2, 4)
        assert values.sum(1) == pytest.approx([1, 1])
        for i, j in np.ndindex(2, 4):
            corner = pixels[TOP + i * CELL[1] + 1, LEFT + j * CELL[0] + 1]
            assert tuple(corner) == colour(values[i, j])


@pytest.mark.parametrize("name", ["alp-kd", "pkd", "lad_no", "lad_user_defined"])
def test_every_method_has_a_share_map(golden_root: Path, name: str) -> None:
    golden.student_losses(golden_root, name, experiment=f"{name}-board", log_step=3, total_step=4, warmup_step=1)
    found = pictures(board(golden_root, f"{name}-board"), f"{TAG}/{SHARES}")
    assert list(found) == [3, 4]
    assert found[4][0].sum(1) == pytest.approx([1, 1])


def test_without_a_hidden_loss_there_is_none(golden_root: Path) -> None:
    """Distillation from logits alone, and fine-tuning; the gradient's norm is there."""
    golden.student_losses(golden_root, "lad", experiment="logits", mu=0)
    for run, tag in (("logits", f"{TAG}/grad_norm"), ("teacher", "qqp/train/grad_norm")):
        reader = board(golden_root, run)
        assert reader.Tags()["images"] == []
        assert min(event.value for event in reader.Scalars(tag)) > 0
        assert not any("hidden_loss_layer" in each for each in reader.Tags()["scalars"])


def texts(reader: EventAccumulator) -> dict[str, list[tuple[int, str]]]:
    """Return tensorboard's texts by name, with their steps."""
    names = [tag.removesuffix("/text_summary") for tag in reader.Tags()["tensors"] if tag.endswith("/text_summary")]
    found = {name: reader.Tensors(f"{name}/text_summary") for name in names}
    return {
        name: [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]
        for name, events in found.items()
    }


def test_texts_say_where_a_run_comes_from(root: Path) -> None:
    flags = tiny.student_flags(root, total_step=2, warmup_step=1)
    tiny.run_script("run_pkd_distill", **flags)
    found = texts(board(root, "student"))
    assert found.keys() == {"command", "config", "versions"}
    assert {step for events in found.values() for step, _ in events} == {1}
    [[(_, command)], [(_, config)], [(_, versions)]] = (found[name] for name in ("command", "config", "versions"))
    assert shlex.split(command.replace("\\\n", "")) == ["python", "run_pkd_distill.py", *arguments(**flags)]
    first, *others = command.split("\\\n")
    assert others and first.startswith("    python ") and all(line.startswith("        --") for line in others)
    assert "\n| softmax_temp | 3.0 |\n" in config
    assert f"| torch | {torch.__version__} |" in versions
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    expected = "unknown" if commit.returncode or not (ROOT / ".git").exists() else commit.stdout.strip()
    assert f"| git commit | {expected}" in versions


def test_seeds_share_a_row_under_hparams(root: Path) -> None:
    """Asked of tensorboard's own backend: the mean over seeds of what evaluation wrote, and a row for each setting."""
    for name, changes in (("a", {"seed": 1}), ("b", {"seed": 2, "log_step": 3}), ("c", {"mu": 7})):
        tiny.run_script("run_lad_distil", **tiny.student_flags(root, experiment=name, **changes))
        tiny.run_script("run_fine_tune_eval", experiment=name, task="qqp", dataset="dev", **tiny.paths(root))
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(root / "runs" / "log"))
    multiplexer.Reload()
    context = TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(root)))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=9,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN],
        aggregation_type=api_pb2.AGGREGATION_AVG,
    )
    handler = list_session_groups.Handler(RequestContext(), backend_context.Context(context), "", request)
    rows = {group.hparams["mu"].number_value: group for group in handler.run().session_groups if "mu" in group.hparams}
    assert {mu: len(group.sessions) for mu, group in rows.items()} == {50: 2, 7: 1}
    assert rows[50].hparams["method"].string_value == "lad"
    assert "seed" not in rows[50].hparams
    metrics = {(value.name.group, value.name.tag): value.value for value in rows[50].metric_values}
    last = [tiny.curve(root / "runs", f"{name}_bert_qqp/eval", "qqp/dev/eval_loss")[8] for name in ("a", "b")]
    assert last[0] != last[1]
    assert metrics["eval", "qqp/dev/eval_loss"] == pytest.approx(sum(last) / 2)


@torch.no_grad()
def library_states(folder: Path, step: int, *batches: dict[str, torch.Tensor]) -> Any:
    """Return the library's states (L, B, S, D) of a run's checkpoint after every layer, for each batch."""
    saved = tiny.config(folder)
    bert = BertModel(BertConfig(**saved["encoder"])).eval()
    weights = tiny.load(folder / f"model-{step}.pt")
    bert.load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")})
    found = [torch.stack(bert(**inputs, output_hidden_states=True).hidden_states[1:]) for inputs in batches]
    return found[0] if len(found) == 1 else found


def test_similarity_maps_against_the_library(root: Path) -> None:
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root))
    flags = {"experiment": "student", "task": "qqp", "dataset": "dev", "ckpt": 6, "batch_size": 3} | tiny.paths(root)
    tiny.run_script("run_fine_tune_eval", "--layers", **flags)
    found = pictures(board(root, "student", "/eval"), "qqp/dev/similarity_map")
    assert list(found) == [6, 8]
    rows = [line.split("\t") for line in (root / "data" / "QQP" / "dev.tsv").read_text().splitlines()[1:]]
    tokenizer, options = BertTokenizer.from_pretrained(root / "bert"), {"max_length": 16, "return_tensors": "pt"}
    inputs = [tokenizer(row[3], row[4], truncation="longest_first", **options) for row in rows]  # without padding
    teacher = library_states(root / "runs" / "teacher_bert_qqp", 4, *inputs)
    for step, (values, _) in found.items():
        student = library_states(root / "runs" / "student_bert_qqp", step, *inputs)
        total, count = np.zeros((2, 4)), 0
        for s, t in zip(student, teacher, strict=True):
            count += s.shape[2]
            for i, j in np.ndindex(2, 4):
                total[i, j] += torch.cosine_similarity(s[i], t[j], dim=2).sum().item()
        np.testing.assert_allclose(values, total / count, atol=1e-5)
    assert np.ptp(found[8][0]) > 0.05  # the cells differ, so equal ones say something


def test_layers_needs_a_student_and_its_teacher(root: Path) -> None:
    flags = {"task": "qqp", "dataset": "dev"} | tiny.paths(root)
    with pytest.raises(UserError, match="--layers: --experiment teacher is no student of a teacher"):
        tiny.run_script("run_fine_tune_eval", "--layers", experiment="teacher", **flags)
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root, total_step=2, warmup_step=1))
    teacher = root / "runs" / "teacher_bert_qqp"
    shutil.copy(teacher / "model-2.pt", teacher / "model-4.pt")
    with pytest.raises(UserError, match="--layers: .*model-4.pt is not the teacher that taught --experiment student"):
        tiny.run_script("run_fine_tune_eval", "--layers", experiment="student", **flags)
    (teacher / "model-4.pt").unlink()
    with pytest.raises(UserError, match="--layers: .*model-4.pt, the teacher of --experiment student, does not exist"):
        tiny.run_script("run_fine_tune_eval", "--layers", experiment="student", **flags)


@pytest.mark.parametrize("name", ["lad", "alp-kd-hidden-v2"])
def test_a_share_map_in_the_event_file_is_that_of_the_step(root: Path, name: str) -> None:
    """Step 1 runs on the initial weights, which checkpoint 1 holds: states of the library, then cell by cell."""
    script, own = golden.RUNS[name]
    flags = tiny.student_flags(root, total_step=1, warmup_step=1, ckpt_step=1, log_step=1, dropout=0) | own
    tiny.run_script(script, **flags)
    [found] = (values for values, _ in pictures(board(root, "student"), f"{TAG}/{SHARES}").values())
    rows = [line.split("\t") for line in (root / "data" / "QQP" / "train.tsv").read_text().splitlines()[1:]]
    chosen = [rows[index] for index in epoch_order(42, 0, len(rows))[:4]]
    tokenizer = BertTokenizer.from_pretrained(root / "bert")
    runs = root / "runs"
    t = library_states(runs / "teacher_bert_qqp", 4, reference.encode(tokenizer, chosen, tiny.SEQ_LEN))
    s = library_states(runs / "student_bert_qqp", 1, reference.encode(tokenizer, chosen, tiny.SEQ_LEN))
    shares = np.zeros((2, 4))
    if name == "lad":
        a, openings = t[0], {1: torch.ones(())}
        for k in (2, 3, 4):
            gate = reference.gate(tiny.SEQ_LEN, 16, tiny.load(runs / "student_bert_qqp" / f"gate-{k - 1}-1.pt"))
            openings[k] = torch.sigmoid(gate["linear"](a))
            a = gate["layernorm"](openings[k] * t[k - 1] + (1 - openings[k]) * a)
        for i, j in [(1, 1), (1, 2), *((2, j) for j in (1, 2, 3, 4))]:
            part = openings[j]
            for m in range(j + 1, 2 * i + 1):
                part = part * (1 - openings[m])
            shares[i - 1, j - 1] = part.mean().item()
    else:
        for i in (1, 2):
            scores = torch.stack([(t[j] * s[i - 1]).sum(2) / 4 for j in range(2 * i)])  # sqrt(D) = 4
            shares[i - 1, : 2 * i] = scores.softmax(0).mean((1, 2))
    np.testing.assert_allclose(found, shares, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
