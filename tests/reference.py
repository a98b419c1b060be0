"""Training and evaluation as the formulas say it, plainly: the oracle of the loop, and what the benchmark compares to.

Nothing of the package is used: eager attention of the library with all its outputs, dense arrays padded to S, a
backward pass for each loss, the for-loop AdamW and the library's schedule.

Shapes: B batch, S padded length, D hidden size, C classes, L layers.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer, get_linear_schedule_with_warmup

MicroBatch = tuple[dict[str, torch.Tensor], torch.Tensor]  # inputs (B, S) by their names in the library; labels (B,)


class Classifier(nn.Module):
    """BertModel, dropout, Linear(D, C); its state dict has the names that model-<step>.pt has."""

    def __init__(self, config: BertConfig, num_class: int, dropout: float) -> None:
        super().__init__()
        config._attn_implementation = "eager"
        self.encoder = BertModel(config)
        self.dropout = nn.Dropout(dropout)
        self.linear_layer = nn.Linear(config.hidden_size, num_class)

    def forward(self, inputs: dict[str, torch.Tensor], everything: bool = False) -> tuple[torch.Tensor, Any]:
        """Return logits (B, C) and the embedding output with all hidden states, 1 + L times (B, S, D), if asked."""
        output = self.encoder(**inputs, output_hidden_states=everything, output_attentions=everything)
        return self.linear_layer(self.dropout(output.pooler_output)), output.hidden_states


def optimiser(modules: list[nn.Module], lr: float, flags: dict) -> tuple:
    """Return AdamW without decay of biases and LayerNorm, and the library's linear schedule."""
    decayed, plain = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            (plain if "bias" in name or "LayerNorm" in name or "layernorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr, foreach=False, fused=False)
    return adam, get_linear_schedule_with_warmup(adam, flags["warmup_step"], flags["total_step"])


class Plain:
    """A training step in two halves, `backward` and `update`; each of `modules` is clipped on its own to norm 1."""

    modules: list[nn.Module]
    optimisers: list[tuple]

    def terms(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor]:
        """Return the scalars whose sum is the loss of a micro-batch; each has its own backward pass."""
        raise NotImplementedError

    def backward(self, micro_batches: list[MicroBatch]) -> float:
        """Leave the gradients of a step's micro-batches in the modules; return the step's loss."""
        total = 0.0
        for inputs, labels in micro_batches:
            terms = self.terms(inputs, labels)
            for term in terms:
                (term / len(micro_batches)).backward(retain_graph=True)
            total += sum(term.item() for term in terms) / len(micro_batches)
        return total

    def update(self) -> None:
        """Clip, update and clear the gradients."""
        for module in self.modules:
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for adam, schedule in self.optimisers:
            adam.step()
            schedule.step()
            adam.zero_grad()

    def step(self, micro_batches: list[MicroBatch]) -> float:
        """Do a whole step; return its loss."""
        loss = self.backward(micro_batches)
        self.update()
        return loss


class PlainTeacher(Plain):
    """Fine-tuning of a classifier on labels; `flags` holds lr, warmup_step and total_step."""

    def __init__(self, model: Classifier, flags: dict) -> None:
        self.model = model.train()
        self.modules, self.optimisers = [model], [optimiser([model], flags["lr"], flags)]

    def terms(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor]:
        """Return the labels' loss."""
        return [F.cross_entropy(self.model(inputs)[0], labels)]


class PlainLad(Plain):
    """Distillation with LAD; `flags` are the script's, `gates` the L - 1 that `gate` makes, gate_2 first."""

    def __init__(self, teacher: Classifier, student: Classifier, gates: list[nn.ModuleDict], flags: dict) -> None:
        self.teacher, self.student, self.gates, self.flags = teacher.eval(), student.train(), gates, flags
        self.modules = [student, *gates]
        self.optimisers = [optimiser([student], flags["lr"], flags), optimiser(gates, flags["gate_lr"], flags)]

    def terms(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits loss and N hidden losses."""
        flags, T, layers = self.flags, self.flags["softmax_temp"], self.flags["num_hidden_layers"]
        with torch.no_grad():
            z_t, teacher_hiddens = self.teacher(inputs, everything=True)
        z_s, student_hiddens = self.student(inputs, everything=True)
        soft = (F.softmax(z_t / T, -1) * (F.log_softmax(z_t / T, -1) - F.log_softmax(z_s / T, -1))).sum(1).mean()
        terms = [flags["hard_weight"] * F.cross_entropy(z_s, labels) + flags["soft_weight"] * T**2 * soft]
        a, skip = teacher_hiddens[1], (len(teacher_hiddens) - 1) // layers
        for k in range(1, len(teacher_hiddens)):
            if k > 1:
                mixer = self.gates[k - 2]
                g = torch.sigmoid(mixer["linear"](a))
                a = mixer["layernorm"](g * teacher_hiddens[k] + (1 - g) * a)
            if k % skip == 0:
                terms.append(flags["mu"] / layers * F.mse_loss(a, student_hiddens[k // skip]))
        return terms


def gate(seq_len: int, d_model: int, weights: dict[str, torch.Tensor]) -> nn.ModuleDict:
    """Return the parts of a gate with the weights of gate-<i>-<step>.pt."""
    mixer = nn.ModuleDict({"linear": nn.Linear(d_model, d_model), "layernorm": nn.LayerNorm([seq_len, d_model])})
    mixer.load_state_dict(weights)
    return mixer


@torch.no_grad()
def predict(model: Classifier, batches: Iterable[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return the logits (n, C) of all batches, in their order."""
    model.eval()
    return torch.cat([model(inputs)[0] for inputs in batches])


def encode(tokenizer: BertTokenizer, rows: list[list[str]], seq_len: int) -> dict[str, torch.Tensor]:
    """Return the padded inputs of TSV rows."""
    first, second = [row[3] for row in rows], [row[4] for row in rows]
    return tokenizer(
        first, second, truncation="longest_first", max_length=seq_len, padding="max_length", return_tensors="pt"
    )


def lad_losses(flags: dict, teacher: Path, order: list[list[int]], student: dict, gates: dict) -> list[float]:
    """Train without dropout from the given initial weights over the micro-batches `order`; return each step's loss."""
    saved = json.loads((teacher / "config.json").read_text())
    rows = [line.split("\t") for line in (Path(flags["data_dir"]) / "QQP/train.tsv").read_text().splitlines()[1:]]
    tokenizer = BertTokenizer.from_pretrained(saved["ptrain_ver"])
    S = saved["max_seq_len"]

    def classifier(weights: dict, **sizes: int) -> Classifier:
        config = BertConfig.from_pretrained(saved["ptrain_ver"], **sizes)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        model = Classifier(config, 2, 0.0)
        model.load_state_dict(weights)
        return model

    def micro_batch(indices: list[int]) -> MicroBatch:
        chosen = [rows[i] for i in indices]
        return dict(encode(tokenizer, chosen, S)), torch.tensor([int(row[5]) for row in chosen])

    plain = PlainLad(
        classifier(torch.load(teacher / f"model-{flags['tckpt']}.pt")),
        classifier(student, num_hidden_layers=flags["num_hidden_layers"], max_position_embeddings=S),
        [gate(S, flags["d_model"], weights) for _, weights in sorted(gates.items())],
        flags,
    )
    accum = flags["accum_step"]
    micro_batches = [micro_batch(indices) for indices in order]
    return [plain.step(micro_batches[step * accum : (step + 1) * accum]) for step in range(flags["total_step"])]
