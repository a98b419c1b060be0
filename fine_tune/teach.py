"""A teacher: a pre-trained BERT fine-tuned on a task's labels."""

from argparse import Namespace

import numpy as np
import torch
from torch import nn

from fine_tune import distributed, experiment, models
from fine_tune.data import Batch
from fine_tune.layout import Layout, packed
from fine_tune.losses import hard_loss
from fine_tune.precision import autocast, check_precision, compile_rows
from fine_tune.tasks import TASKS
from fine_tune.train import Named


class FineTuning(nn.Module):
    """A classifier on its device, and the loss between its logits and the labels."""

    def __init__(self, model: models.BertClassifier, config: Namespace, device: torch.device) -> None:
        super().__init__()
        self.model, self.config, self.device = model, config, device

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Named]:
        """Return the loss of a batch, also by name."""
        batch = batch.to(self.device)
        with autocast(self.config.precision, [self.device]):
            logits, _ = self.model(batch, cls_only=True)
        loss = hard_loss(logits, batch.labels)
        return loss, {"loss": loss}

    def layout(self, lengths: np.ndarray, chosen: np.ndarray, step: int) -> Layout:
        """Return the rows in which examples of `lengths` (B,) are read: the real ones, since only [CLS] is read."""
        return packed(lengths, self.config.max_seq_len)


def teach(flags: Namespace) -> None:
    """Fine-tune the teacher that `flags` describe."""
    [device] = distributed.select_devices(flags, "device_id")
    check_precision(flags, [device])
    if experiment.settled(flags):
        return
    pretrained = models.find_pretrained(flags.ptrain_ver, f"--ptrain_ver {flags.ptrain_ver}")
    torch.manual_seed(flags.seed)
    model = models.new_teacher(pretrained, flags).to(device)
    if flags.compile:
        compile_rows(model.encoder)
    tokens, data_sha256 = experiment.training_data(flags, pretrained.tokenizer)

    config = experiment.described(
        flags,
        labels=list(TASKS[flags.task].labels),
        encoder=models.sizes(pretrained.config),
        data_sha256=data_sha256,
    )
    groups = {"lr": experiment.optimizer_group(config, [model])}
    tag = f"{config.task}/{config.dataset}"
    tuning, parts = FineTuning(model, config, device), {"model": model}
    job = experiment.Job(config, parts, groups, tuning, tokens, pretrained.tokenizer, tuning.layout, tag)
    experiment.run(job, flags.overwrite)
