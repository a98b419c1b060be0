"""Distillation with LAD as the formulas say it, plainly: the oracle of the training loop.

Nothing of the package is used: eager attention of the library, dense arrays, one example of the text per line, a
backward pass for each loss, the plain AdamW and the library's schedule. Dropout must be 0.
"""

import copy
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer, get_linear_schedule_with_warmup


def optimiser(modules: list[nn.Module], lr: float, flags: dict) -> tuple:
    """Return AdamW without decay of biases and LayerNorm, and the library's linear schedule."""
    decayed, plain = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            (plain if "bias" in name or "LayerNorm" in name or "layernorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr, foreach=False, fused=False)
    return adam, get_linear_schedule_with_warmup(adam, flags["warmup_step"], flags["total_step"])


def encode(tokenizer: BertTokenizer, rows: list[list[str]], seq_len: int) -> dict[str, torch.Tensor]:
    """Return the padded inputs of TSV rows."""
    first, second = [row[3] for row in rows], [row[4] for row in rows]
    return tokenizer(
        first, second, truncation="longest_first", max_length=seq_len, padding="max_length", return_tensors="pt"
    )


def lad_losses(
    flags: dict, run: Path, teacher: Path, order: list[list[int]], student: dict, gates: dict
) -> list[float]:
    """Train from the given initial weights over the micro-batches `order`; return the loss of each step."""
    saved = json.loads((teacher / "config.json").read_text())
    rows = [line.split("\t") for line in (Path(flags["data_dir"]) / "QQP/train.tsv").read_text().splitlines()[1:]]
    tokenizer = BertTokenizer.from_pretrained(saved["ptrain_ver"])
    S, D = saved["max_seq_len"], flags["d_model"]

    def classifier(weights: dict, **sizes: int) -> tuple[BertModel, nn.Linear]:
        config = BertConfig.from_pretrained(saved["ptrain_ver"], attn_implementation="eager", **sizes)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        bert, head = BertModel(config), nn.Linear(D, 2)
        bert.load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")})
        head.load_state_dict({k.removeprefix("linear_layer."): v for k, v in weights.items() if "linear_layer" in k})
        return bert, head

    t_bert, t_head = classifier(torch.load(teacher / f"model-{flags['tckpt']}.pt"))
    layers, skip = flags["num_hidden_layers"], t_bert.config.num_hidden_layers // flags["num_hidden_layers"]
    s_bert, s_head = classifier(student, num_hidden_layers=layers, max_position_embeddings=S)
    mixers = []
    for index in range(1, t_bert.config.num_hidden_layers):
        mixer = nn.ModuleDict({"linear": nn.Linear(D, D), "layernorm": nn.LayerNorm([S, D])})
        mixer.load_state_dict(copy.deepcopy(gates[index]))
        mixers.append(mixer)
    t_bert.eval(), s_bert.train()
    model = nn.ModuleList([s_bert, s_head])
    (adam, schedule), (g_adam, g_schedule) = (
        optimiser([model], flags["lr"], flags),
        optimiser(mixers, flags["gate_lr"], flags),
    )
    losses, accum = [], flags["accum_step"]
    for step in range(flags["total_step"]):
        total = 0.0
        for micro in order[step * accum : (step + 1) * accum]:
            inputs = encode(tokenizer, [rows[i] for i in micro], S)
            labels = torch.tensor([int(rows[i][5]) for i in micro])
            with torch.no_grad():
                taught = t_bert(**inputs, output_hidden_states=True)
            learned = s_bert(**inputs, output_hidden_states=True)
            z_t, z_s = t_head(taught.pooler_output), s_head(learned.pooler_output)
            T = flags["softmax_temp"]
            soft = (F.softmax(z_t / T, -1) * (F.log_softmax(z_t / T, -1) - F.log_softmax(z_s / T, -1))).sum(1).mean()
            terms = [flags["hard_weight"] * F.cross_entropy(z_s, labels) + flags["soft_weight"] * T**2 * soft]
            a = taught.hidden_states[1]
            for k in range(2, t_bert.config.num_hidden_layers + 1):
                mixer, above = mixers[k - 2], taught.hidden_states[k]
                g = torch.sigmoid(mixer["linear"](a))
                a = mixer["layernorm"](g * above + (1 - g) * a)
                if k % skip == 0:
                    state = learned.hidden_states[k // skip]
                    terms.append(flags["mu"] / layers * F.mse_loss(a, state))
            for term in terms:
                (term / accum).backward(retain_graph=True)
            total += sum(term.item() for term in terms) / accum
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for mixer in mixers:
            nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
        for thing in (adam, g_adam, schedule, g_schedule):
            thing.step()
        adam.zero_grad(), g_adam.zero_grad()
        losses.append(total)
    return losses
