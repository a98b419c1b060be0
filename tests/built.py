"""Tasks, models and examples built in memory, tiny and always the same."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fine_tune.data.tokens import Tokens
from fine_tune.distil import Distillation
from fine_tune.methods.alp import alp
from fine_tune.methods.lad import lad, lad_cls, lad_user_defined, partial_lad
from fine_tune.methods.lad_no import LadNo
from fine_tune.methods.method import Method
from fine_tune.methods.pkd import Pkd
from fine_tune.models import bert
from fine_tune.training.distributed import DEVICE_FLAGS
from fine_tune.training.optim import OptimizerGroup

S, D, CPU = 12, 16, torch.device("cpu")
LENGTHS = np.array([5, 12, 3, 7])
METHODS: dict[str, Callable[[int], Method]] = {
    "lad": lambda seq_len: lad(4, 2, seq_len, D),
    "lad_no": lambda seq_len: LadNo(4, 2, seq_len, D),
    "partial_lad": lambda seq_len: partial_lad(4, 2, seq_len, D, [2], [1]),
    "lad_user_defined": lambda seq_len: lad_user_defined(4, seq_len, D, [4, 2], [1, 2]),
    "lad_cls": lambda seq_len: lad_cls(4, 2, D),
    "alp-kd": lambda seq_len: alp("alp-kd", 4, 2),
    "alp-kd-hidden": lambda seq_len: alp("alp-kd-hidden", 4, 2),
    "alp-kd-hidden-v2": lambda seq_len: alp("alp-kd-hidden-v2", 4, 2),
    "pkd": lambda seq_len: Pkd(4, 2),
}


def classifier(layers: int, seed: int) -> bert.BertClassifier:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "hidden_size": D, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": layers, "max_position_embeddings": S, "initializer_range": 0.3}
    return bert.BertClassifier(bert.empty_encoder(sizes), 2, 0.0).eval()


def distillation(
    name: str, pad_loss: str, seq_len: int = S, pad_samples: int = 2, mu: float = 9, device: torch.device = CPU
) -> Distillation:
    """Return teacher, student and method with the same weights at every call, whatever the length and the device."""
    teacher, student = bert.freeze(classifier(4, 1)), classifier(2, 2)
    torch.manual_seed(3)
    method = METHODS[name](S)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if seq_len < S:  # the gates of the first positions
        weights = {key: v[:seq_len] if v.shape[0] == S and v.ndim == 2 else v for key, v in method.state_dict().items()}
        method = METHODS[name](seq_len)
        method.load_state_dict(weights)
    config = Namespace(max_seq_len=seq_len, pad_loss=pad_loss, pad_samples=pad_samples, num_hidden_layers=2, seed=42)
    vars(config).update(mu=mu, softmax_temp=3.0, soft_weight=0.7, hard_weight=0.3, precision="fp32", compile=False)
    vars(config).update(task="qqp", dataset="train", model="bert")
    for prefix in ("", "gate_"):
        adamw = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "max_norm": 1}
        adamw |= {"warmup_step": 1, "total_step": 100}
        vars(config).update({f"{prefix}{flag}": value for flag, value in adamw.items()})
    if device != CPU:  # without values nothing can be moved, not even to where it is
        teacher, student, method = (part.to(device) for part in (teacher, student, method))
    return Distillation(teacher, student, method, config, dict.fromkeys(DEVICE_FLAGS, device))


def optimizer(*modules: torch.nn.Module, **settings: Any) -> OptimizerGroup:
    """Return what trains `modules`: at the rate 1 from the start and without decay, but for `settings`."""
    plain = {"peak_lr": 1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "max_norm": 1}
    plain |= {"warmup_step": 0, "total_step": 10}
    return OptimizerGroup("model", list(modules), **plain | settings)


def make_tokens() -> Tokens:
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = generator.integers(1, 50, offsets[-1], dtype=np.int32)
    return Tokens(ids, offsets, (LENGTHS // 2).astype(np.int32), np.array([0, 1, 1, 0]))
