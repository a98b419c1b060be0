"""How alike the layers of a student and of its teacher are: the picture that evaluation draws with --layers.

Shapes: R tokens of a batch, D hidden size, N student layers, L teacher layers.
"""

from argparse import Namespace

import numpy as np
import torch
import torch.nn.functional as F

from fine_tune.cli.runs import own_folder, teacher_folder
from fine_tune.data.layout import packed
from fine_tune.data.tokens import Tokens
from fine_tune.models.bert import BertClassifier, empty_classifier
from fine_tune.training import checkpoint, pictures
from fine_tune.training.log import EventFile, print0

EXAMPLES = 256  # the first of the split
TITLE = "mean cosine of the hidden states"


def draw_similarity(
    flags: Namespace, model: BertClassifier, tokens: Tokens, events: EventFile, steps: list[int]
) -> None:
    """Draw a similarity map of each checkpoint of `steps` that is still there; its weights are loaded into `model`."""
    run, folder = flags.run_config, own_folder(flags)
    teacher = empty_classifier(flags.teacher_config, f"--layers: teacher {run.teacher_exp}")
    teacher_path = teacher_folder(Namespace(**vars(run) | {"experiment_dir": flags.experiment_dir}))
    checkpoint.load_weights(teacher, teacher_path / f"model-{run.tckpt}.pt")
    teacher.to(model.linear_layer.weight.device)
    tag = f"{flags.task}/{flags.dataset}/similarity_map"
    for step in steps:
        path = folder / f"model-{step}.pt"
        if path.is_file():
            checkpoint.load_weights(model, path)
            values = similarity(model, teacher, tokens, flags.batch_size)
            events.add(step=step, summary=pictures.summary(tag, values, TITLE))
    print0(f"drawn: {tag}, over {min(EXAMPLES, len(tokens))} examples")


@torch.inference_mode()
def similarity(student: BertClassifier, teacher: BertClassifier, tokens: Tokens, batch_size: int) -> np.ndarray:
    """Return the mean cosine of s_i and t_j, (N, L), over all word pieces of the first EXAMPLES examples."""
    student.eval(), teacher.eval()
    device, every = student.linear_layer.weight.device, np.arange(min(EXAMPLES, len(tokens)))
    total, count = 0.0, 0
    for start in range(0, len(every), batch_size):
        chosen = every[start : start + batch_size]
        lengths = tokens.lengths(chosen)
        batch = tokens.batch(chosen, packed(lengths, lengths.max())).to(device)
        s_NRD, t_LRD = (
            F.normalize(torch.stack(model(batch, cls_only=False)[1]), dim=2) for model in (student, teacher)
        )
        total = total + torch.einsum("nrd,lrd->nl", s_NRD, t_LRD)
        count += len(batch.layout)
    return (total / count).cpu().numpy()
