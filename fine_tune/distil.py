"""A student: distilled from a fine-tuned teacher's logits and, by way of a method, from its hidden states."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fine_tune import checkpoint, distributed, experiment, models
from fine_tune.config import inherit, read_teacher, run_folder
from fine_tune.data import Batch
from fine_tune.files import sha256
from fine_tune.layout import Layout, full, packed, sampled
from fine_tune.log import say
from fine_tune.losses import hard_loss, hidden_loss, soft_loss
from fine_tune.methods import Method
from fine_tune.precision import autocast, check_precision, compile_rows
from fine_tune.tasks import TASKS
from fine_tune.teacher_cache import CachedTeacher, cached_answers
from fine_tune.train import Named

Teacher = Callable[[Batch, bool], tuple[torch.Tensor, list[torch.Tensor]]]  # a BertClassifier, or what stands in


class Distillation(nn.Module):
    """Teacher, student and method, each on its own device of `devices`, in this order, and the losses between them."""

    def __init__(
        self, teacher: Teacher, student: nn.Module, method: Method, config: Namespace, devices: list[torch.device]
    ) -> None:
        super().__init__()
        self.teacher, self.student, self.method = teacher, student, method
        self.config, self.devices = config, devices
        self.cls_only = method.cls_only or config.mu == 0  # all that is read of a hidden state is position 0

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Named]:
        """Return loss = logits_loss + hidden_loss of a batch, and all three by name with what the method shows."""
        config, (teacher_device, device, _) = self.config, self.devices
        with autocast(config.precision, self.devices):
            batch = batch.to(teacher_device)
            with torch.no_grad():
                teacher_logits, teacher_hiddens = self.teacher(batch, self.cls_only)
            batch = batch.to(device)
            logits, student_hiddens = self.student(batch, self.cls_only)
            hidden = self.hidden_loss(
                teacher_hiddens, student_hiddens, batch.layout.cls if self.cls_only else batch.layout
            ).to(device)
        soft = soft_loss(logits, teacher_logits.to(device), config.softmax_temp)
        logits_loss = config.hard_weight * hard_loss(logits, batch.labels) + config.soft_weight * soft
        loss = logits_loss + hidden
        return loss, {"loss": loss, "logits_loss": logits_loss, "hidden_loss": hidden} | self.method.shown

    def hidden_loss(
        self, teacher_hiddens: list[torch.Tensor], student_hiddens: list[torch.Tensor], layout: Layout
    ) -> torch.Tensor:
        """Return mu / N times the method's loss between the states of both models, each (R, D)."""
        device = self.devices[2]
        if self.config.mu == 0:  # the gates' gradient is zero, not absent: AdamW still decays them
            return 0 * torch.stack([torch.zeros((), device=device), *(p.sum() for p in self.method.parameters())]).sum()
        teacher_hiddens, student_hiddens = (
            [rows.to(device) for rows in states] for states in (teacher_hiddens, student_hiddens)
        )
        layout = layout.to(device)
        pairs = self.method(teacher_hiddens, student_hiddens, layout)
        return self.config.mu / self.config.num_hidden_layers * hidden_loss(pairs, layout)

    def layout(self, lengths: np.ndarray, chosen: np.ndarray, step: int) -> Layout:
        """Return the rows in which step `step` reads the examples `chosen` (B,) of `lengths` (B,): see --pad_loss."""
        config = self.config
        if self.cls_only or config.pad_loss == "masked":
            return packed(lengths, config.max_seq_len)
        if config.pad_loss == "sampled":
            keys = ((config.seed, step, example) for example in chosen)
            return sampled(lengths, config.max_seq_len, config.pad_samples, keys)
        return full(lengths, config.max_seq_len)


def distil(flags: Namespace, make_method: Callable[[Namespace, int], Method]) -> None:
    """Distil the student that `flags` describe; `make_method` takes them and the number of teacher layers."""
    method_flag = "gate_device_id" if hasattr(flags, "gate_device_id") else "device_id"
    devices = distributed.select_devices(flags, "tdevice_id", "device_id", method_flag)
    check_precision(flags, devices)
    teacher_run = read_teacher(flags)
    flags = inherit(flags, teacher_run)
    if experiment.settled(flags):
        return
    if flags.d_emb is not None:
        say(f"--d_emb {flags.d_emb} has no effect: a student's embeddings have the width of --d_model")
    folder = run_folder(flags, flags.teacher_exp, flags.tmodel)
    source = f"--teacher_exp {flags.teacher_exp}"
    pretrained = models.find_pretrained(flags.ptrain_ver, f"{source}: its --ptrain_ver {flags.ptrain_ver}")
    tokenizer = models.run_tokenizer(teacher_run, folder, pretrained.config.vocab_size, source)
    tokens, data_sha256 = experiment.training_data(flags, tokenizer)

    def load_teacher() -> models.BertClassifier:
        teacher = models.empty_classifier(teacher_run, source)
        checkpoint.load_weights(teacher, folder / f"model-{flags.tckpt}.pt")
        if flags.compile:
            compile_rows(teacher.encoder)
        return teacher.to(devices[0]).eval().requires_grad_(False)  # it learns nothing

    teacher_sha256 = sha256(folder / f"model-{flags.tckpt}.pt")
    if flags.cache_teacher:
        cache = Path(flags.experiment_dir) / "cache"
        kept = (load_teacher, tokens, flags.mu > 0, flags.precision, teacher_sha256, cache)
        answers = distributed.main_process_first(lambda: cached_answers(*kept))
        teacher = CachedTeacher(answers, flags.num_class, flags.d_model)
    else:
        teacher = load_teacher()

    torch.manual_seed(flags.seed)
    student = models.new_student(pretrained, flags).to(devices[1])
    method = make_method(flags, pretrained.config.num_hidden_layers).to(devices[2])
    if flags.compile:
        compile_rows(student.encoder)
    config = experiment.described(
        flags,
        labels=list(TASKS[flags.task].labels),
        encoder=models.sizes(student.encoder.config),
        data_sha256=data_sha256,
        teacher_sha256=teacher_sha256,
    )
    distillation = Distillation(teacher, student, method, config, devices)
    if distillation.cls_only and config.pad_loss != "all":
        say(f"--pad_loss {config.pad_loss} has no effect: only [CLS] is read, so padding is never computed")
    groups = {"lr": experiment.optimizer_group(config, [student])}
    if method.gates:
        groups["gate_lr"] = experiment.optimizer_group(config, list(method.gates.values()), "gate_")
    parts = {"model": student} | {f"gate-{index}": gate for index, gate in method.gates.items()}
    tag = f"{config.task}/{config.dataset}/{config.model}"
    job = experiment.Job(config, parts, groups, distillation, tokens, tokenizer, distillation.layout, tag)
    experiment.run(job, flags.overwrite)
