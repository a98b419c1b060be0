"""Distillation: a student learns a fine-tuned teacher's logits and, by way of a method, its hidden states."""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fine_tune.cli.checks import Rule, no_rule, require, student_problems
from fine_tune.cli.runs import teacher_folder
from fine_tune.core.errors import UserError
from fine_tune.core.files import sha256
from fine_tune.data.layout import Layout, full, moved, packed, sampled
from fine_tune.data.tokens import Batch, Tokens
from fine_tune.methods.losses import hard_loss, layer_losses, soft_loss
from fine_tune.methods.method import Hiddens, Method, Vectors
from fine_tune.models import bert, pretrained
from fine_tune.models.bert import BertClassifier
from fine_tune.models.precision import autocast, choose_threads, compile_gates, compile_rows, keep_rounded
from fine_tune.training import checkpoint, distributed
from fine_tune.training.log import print0
from fine_tune.training.optim import optimizer_group
from fine_tune.training.run import BuiltTask, Devices, load_split, make_run_config, run
from fine_tune.training.summary import method_line, sizes_line, teacher_line
from fine_tune.training.task import Task, TaskOutput
from fine_tune.training.teacher_cache import CachedTeacher, cached_outputs, what_is_kept

Teacher = BertClassifier | CachedTeacher
BuildMethod = Callable[[Namespace, int], Method]  # from the flags and the number of teacher layers


class Distillation(Task):
    """Teacher, student and method, each on its own device, and the losses between them."""

    def __init__(
        self, teacher: Teacher, student: nn.Module, method: Method, config: Namespace, devices: Devices
    ) -> None:
        super().__init__(config)
        self.teacher, self.student, self.method = teacher, student, method
        self.devices = [devices[flag] for flag in distributed.DEVICE_FLAGS]
        self.teacher_device, self.device, self.method_device = self.devices
        self.cls_only = what_is_read(config, method) in ("logits", "cls")
        compiles = config.compile and self.method_device.type == "cuda"
        self.layer_losses = torch.compile(layer_losses, dynamic=True) if compiles else layer_losses
        self.can_have_few_shapes = self.cls_only or config.pad_loss != "sampled"
        self.tag = f"{config.task}/{config.dataset}/{config.model}"
        gates = {f"gate-{index}": gate for index, gate in method.gates.items()}
        self.trainable_modules = {"model": student} | gates
        self.optimizers = {"lr": optimizer_group(config, "student", [student])}
        if gates:
            self.optimizers["gate_lr"] = optimizer_group(config, "gates", list(gates.values()), "gate_")

    def forward(self, batch: Batch) -> TaskOutput:
        """Return loss = logits_loss + hidden_loss of a batch, and the method's vectors."""
        terms, vectors, shown = self.compute(batch)
        logits_loss, hidden = terms["hard"] + terms["soft"], terms["hidden"]
        loss = logits_loss + hidden
        losses = {"loss": loss, "logits_loss": logits_loss, "hidden_loss": hidden}
        return TaskOutput(loss, losses, vectors, shown)

    def terms(self, batch: Batch) -> Vectors:
        """Return the scalars whose sum is the loss of a batch, by name."""
        return self.compute(batch)[0]

    def compute(self, batch: Batch) -> tuple[Vectors, Vectors, Vectors]:
        """Return the terms of the loss, hard, soft and hidden, the method's vectors, and what else to log."""
        config, device = self.config, self.device
        with autocast(config.precision, self.devices):
            batch = batch.to(self.teacher_device)
            with torch.no_grad():
                teacher_logits, teacher_hiddens = self.teacher(batch, self.cls_only)
            batch = batch.to(device)
            logits, student_hiddens = self.student(batch, self.cls_only)
            layout = batch.layout.cls if self.cls_only else batch.layout
            hidden, vectors, shown = self.hidden_loss(teacher_hiddens, student_hiddens, layout, batch.watched)
        hard = config.hard_weight * hard_loss(logits, batch.labels)
        soft = config.soft_weight * soft_loss(logits, moved(teacher_logits, device), config.softmax_temp)
        return {"hard": hard, "soft": soft, "hidden": hidden.to(device)}, vectors, shown

    def hidden_loss(
        self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout, watched: bool
    ) -> tuple[torch.Tensor, Vectors, Vectors]:
        """Return mu / N times the method's loss between the states of both models, each (R, D), and its vectors.

        The last is what else to log: the layers' terms and what the method shows, if the batch is `watched`.
        """
        config, device = self.config, self.method_device
        if config.mu == 0:  # the gates' gradient is zero, not absent: AdamW still decays them
            sums = [parameter.sum() for parameter in self.method.parameters()]
            return 0 * torch.stack([torch.zeros((), device=device), *sums]).sum(), {}, {}
        states = (teacher_hiddens, student_hiddens)
        teacher_hiddens, student_hiddens = ([moved(rows, device) for rows in hiddens] for hiddens in states)
        layout = layout.to(device)
        pairs, vectors = self.method(teacher_hiddens, student_hiddens, layout)
        scale, terms = config.mu / config.num_hidden_layers, self.layer_losses(list(pairs.values()), layout)
        shown = {}
        if watched:
            with torch.no_grad():
                shown = {f"hidden_loss_layer/{i}": scale * term for i, term in zip(pairs, terms, strict=True)}
                shown |= self.method.watch(teacher_hiddens, student_hiddens, layout)
        return scale * terms.sum(), vectors, shown

    def layout(self, lengths: np.ndarray, chosen: np.ndarray, step: int) -> Layout:
        """Return the rows that --pad_loss asks for; of the padding nothing is computed where only [CLS] is read."""
        config = self.config
        if self.cls_only or config.pad_loss == "masked":
            return packed(lengths, config.max_seq_len, self.few_shapes)
        if config.pad_loss == "sampled":
            keys = ((config.seed, step, example) for example in chosen)
            return sampled(lengths, config.max_seq_len, config.pad_samples, keys)
        return full(lengths, config.max_seq_len, self.few_shapes)


def what_is_read(config: Namespace, method: Method) -> str:
    """Return what is read of the states after each layer, one of teacher_cache.READS."""
    if config.mu == 0:
        return "logits"
    if method.cls_only:
        return "cls"
    return "tokens" if config.pad_loss == "masked" else "all"


def build_task(flags: Namespace, devices: Devices, build_method: BuildMethod, rule: Rule) -> BuiltTask:
    """Put teacher, student and method together, and load the split that the teacher learned."""
    source = f"--teacher_exp {flags.teacher_exp}"
    start = find_start(flags, source)
    teacher_sizes = bert.run_sizes(flags.teacher_config, source)
    if start:
        start.require_sizes(teacher_sizes)
    require(student_problems(flags, teacher_sizes, rule))
    about_teacher = teacher_line(flags)
    folder = teacher_folder(flags)
    tokenizer = bert.run_tokenizer(flags.teacher_config, folder, teacher_sizes["vocab_size"], source)
    tokens, data_sha256 = load_split(flags, tokenizer)

    torch.manual_seed(flags.seed)
    student = bert.new_student(teacher_sizes, start, flags).to(devices["device_id"])
    method = build_method(flags, teacher_sizes["num_hidden_layers"]).to(devices["gate_device_id"])
    if flags.compile:
        compile_rows(student.encoder)
        compile_gates(method.gates)
    sizes = bert.sizes(student.encoder.config)
    choose_threads(sizes["hidden_size"])
    teacher, teacher_sha256 = load_teacher(flags, devices["tdevice_id"], tokens, what_is_read(flags, method))
    if isinstance(teacher, CachedTeacher):
        devices = devices | {"tdevice_id": torch.device("cpu")}
    facts = {"data_sha256": data_sha256, "teacher_sha256": teacher_sha256} | (start.info if start else {})
    config = make_run_config(flags, encoder=sizes, **facts)
    task = Distillation(teacher, student, method, config, devices)
    task.about = (method_line(config, teacher_sizes["num_hidden_layers"]), sizes_line(config), about_teacher)
    print_unused(flags, task)
    return task, tokens, tokenizer, config


def find_start(flags: Namespace, source: str) -> pretrained.Pretrained | None:
    """Return the pre-trained model that the teacher started from, or None where the student takes nothing from it."""
    if (flags.student_init, flags.embedding_init) == ("random", "random"):
        return None
    source = f"{source}: its --ptrain_ver {flags.ptrain_ver}"
    if Path(flags.ptrain_ver).is_absolute() and not Path(flags.ptrain_ver).is_dir():
        raise UserError(f"{source}: no such folder; if it lies elsewhere now, say so by --ptrain_ver")
    start = pretrained.find_pretrained(flags.ptrain_ver, source)
    known = getattr(flags.teacher_config, "ptrain_sha256", start.info["ptrain_sha256"])
    if known != start.info["ptrain_sha256"]:
        raise UserError(f"{start.source}: has other weights than the model that the teacher started from")
    return start


def load_teacher(flags: Namespace, device: torch.device, tokens: Tokens, reads: str) -> tuple[Teacher, str]:
    """Return the frozen teacher, or with --cache_teacher what it said before, and the checksum of its file."""
    path, source = teacher_folder(flags) / f"model-{flags.tckpt}.pt", f"--teacher_exp {flags.teacher_exp}"
    digest = sha256(path)

    def load() -> BertClassifier:
        with torch.random.fork_rng(devices=[]):  # whether a teacher is loaded moves no random stream
            teacher = bert.empty_classifier(flags.teacher_config, source)
        checkpoint.load_weights(teacher, path)
        teacher.to(device)
        if flags.compile:
            compile_rows(teacher.encoder)
        keep_rounded(teacher.encoder, flags.precision)
        return bert.freeze(teacher)

    if flags.cache_teacher and flags.dry_run:
        print0("--cache_teacher: a dry run writes none and asks the teacher itself; the run's steps are faster")
    if not flags.cache_teacher or flags.dry_run:
        return load(), digest
    kept = what_is_kept(reads, tokens, flags, flags.num_class, bert.run_sizes(flags.teacher_config, source))
    wanted = (load, tokens, kept, flags, digest, Path(flags.experiment_dir) / "cache")
    return CachedTeacher(distributed.main_process_first(lambda: cached_outputs(*wanted)), kept), digest


def print_unused(flags: Namespace, task: Distillation) -> None:
    """Say which of the flags given have no effect."""
    if flags.d_emb is not None:
        print0(f"--d_emb {flags.d_emb} has no effect: a student's embeddings have the width of --d_model")
    if task.cls_only and flags.pad_loss != "all":
        print0(f"--pad_loss {flags.pad_loss} has no effect: only [CLS] is read, so padding is never computed")


def distil(flags: Namespace, build_method: BuildMethod, rule: Rule = no_rule) -> None:
    """Distil the student that `flags` describe by the method that `build_method` makes; `rule` is what it asks."""
    run(flags, partial(build_task, build_method=build_method, rule=rule))
