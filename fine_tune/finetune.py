"""Fine-tuning: a pre-trained BERT becomes a teacher on a task's labels."""

from argparse import Namespace

import numpy as np
import torch

from fine_tune.data.layout import Layout, packed
from fine_tune.data.tasks import task_spec
from fine_tune.data.tokens import Batch
from fine_tune.methods.losses import hard_loss
from fine_tune.models import bert, pretrained
from fine_tune.models.precision import autocast, choose_threads, compile_rows
from fine_tune.training.log import print0
from fine_tune.training.optim import optimizer_group
from fine_tune.training.run import BuiltTask, Devices, load_split, make_run_config, run
from fine_tune.training.task import Task, TaskOutput


class FineTuning(Task):
    """A classifier on its device, and the loss between its logits and the labels."""

    def __init__(self, model: bert.BertClassifier, config: Namespace, device: torch.device) -> None:
        super().__init__(config)
        self.model, self.device, self.devices = model, device, [device]
        self.tag = f"{config.task}/{config.dataset}"
        self.trainable_modules = {"model": model}
        self.optimizers = {"lr": optimizer_group(config, "teacher", [model])}

    def forward(self, batch: Batch) -> TaskOutput:
        """Return the loss of a batch."""
        batch = batch.to(self.device)
        with autocast(self.config.precision, self.devices):
            logits, _ = self.model(batch, cls_only=True)
        loss = hard_loss(logits, batch.labels)
        return TaskOutput(loss, {"loss": loss}, {}, {})

    def layout(self, lengths: np.ndarray, chosen: np.ndarray, step: int) -> Layout:
        """Return the rows of the tokens alone, since only [CLS] is read."""
        return packed(lengths, self.config.max_seq_len, self.few_shapes)


def build_task(flags: Namespace, devices: Devices) -> BuiltTask:
    """Put the pre-trained model under a new head, and load the split that it learns."""
    start = pretrained.find_pretrained(flags.ptrain_ver, f"--ptrain_ver {flags.ptrain_ver}")
    start.require_fit(flags.max_seq_len, task_spec(flags).reads_pairs)
    torch.manual_seed(flags.seed)
    model = bert.new_teacher(start, flags).to(devices["device_id"])
    for note in start.notes:
        print0(note)
    if flags.compile:
        compile_rows(model.encoder)
    tokens, data_sha256 = load_split(flags, start.tokenizer)
    sizes = bert.sizes(start.config)
    choose_threads(sizes["hidden_size"])
    config = make_run_config(flags, encoder=sizes, data_sha256=data_sha256, **start.info)
    task = FineTuning(model, config, devices["device_id"])
    task.about = (f"{start.config.num_hidden_layers} layers; starts from {flags.ptrain_ver}",)
    return task, tokens, start.tokenizer, config


def finetune(flags: Namespace) -> None:
    """Fine-tune the teacher that `flags` describe."""
    run(flags, build_task)
