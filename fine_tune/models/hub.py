"""Between our classifiers and the library's BertForSequenceClassification, which everybody can load.

Shapes: n examples, C classes.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from fine_tune.core.errors import UserError
from fine_tune.data.tasks import TaskSpec
from fine_tune.data.tsv import Example
from fine_tune.models.bert import BertClassifier, sizes
from fine_tune.models.pretrained import Pretrained, from_library, quiet_transformers

PREFIXES = {"encoder.": "bert.", "linear_layer.": "classifier."}  # ours and the library's


def to_library(model: BertClassifier, labels: tuple[str, ...]) -> BertForSequenceClassification:
    """Return the same classifier in the library's class; `labels` are listed by id, none for regression."""
    facts: dict[str, Any] = {"num_labels": len(labels) or 1}
    facts["problem_type"] = "single_label_classification" if labels else "regression"
    if labels:
        facts |= {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    result = BertForSequenceClassification(BertConfig(**sizes(model.encoder.config), **facts))
    weights = {}
    for ours, theirs in PREFIXES.items():
        found = {key: value for key, value in model.state_dict().items() if key.startswith(ours)}
        weights |= {theirs + key.removeprefix(ours): value.cpu() for key, value in found.items()}
    result.load_state_dict(weights)
    return result.eval()


def save_library(model: BertForSequenceClassification, tokenizer: Any, max_seq_len: int, folder: Path) -> None:
    """Write model and tokenizer into `folder` as `from_pretrained` reads them; texts are cut at `max_seq_len`."""
    tokenizer.model_max_length = max_seq_len
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # which is made for its owner alone


@torch.inference_mode()
def library_logits(folder: Path, examples: list[Example], batches: Iterable[np.ndarray], device: int) -> np.ndarray:
    """Return the logits (n, C) of the model in `folder`, by the library alone: its tokenizer, padding, truncation."""
    quiet_transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    model.to("cpu" if device < 0 else f"cuda:{device}").eval()
    logits = np.zeros((len(examples), model.config.num_labels), np.float32)
    for chosen in batches:
        texts = [examples[index].text for index in chosen]
        pairs = [examples[index].pair for index in chosen]
        encoded = tokenizer(
            texts, None if pairs[0] is None else pairs, truncation=True, padding=True, return_tensors="pt"
        )
        logits[chosen] = model(**encoded.to(model.device)).logits.cpu().numpy()
    return logits


# --- from the library -------------------------------------------------------------------------------------------------


def load_library(found: Pretrained, spec: TaskSpec) -> BertClassifier:
    """Return the fine-tuned classifier in `found` in our class, in fp32, its outputs in their own order.

    Raises UserError when it has no head, or not one output per label of the task.
    """
    model, info = found.load(BertForSequenceClassification)
    if any(key.startswith("classifier.") for key in info["missing_keys"]):
        cure = "fine-tune it by run_fine_tune.py --ptrain_ver"
        raise UserError(f"{found.source}: {found.folder} holds a model without a classifier's head; {cure}")
    bad = sorted(info["missing_keys"])
    strange = [key for key in sorted(info["unexpected_keys"]) if not key.endswith("position_ids")]
    if bad or strange:
        what = f"lacks {bad[0]}" if bad else f"holds {strange[0]}, which BERT classifiers do not have"
        raise UserError(f"{found.source}: {found.folder} {what}")
    if model.config.num_labels != spec.num_class:
        outputs = f"has {model.config.num_labels} outputs, but the task has {spec.num_class}"
        raise UserError(f"{found.source}: {found.folder} {outputs}")
    result = BertClassifier(from_library(model.bert), spec.num_class, 0.0)
    result.linear_layer.load_state_dict(model.classifier.state_dict())
    return result.eval()


def found_labels(config: BertConfig) -> list[str]:
    """Return the labels of a classifier by its outputs."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def by_name(names: list[str], labels: tuple[str, ...]) -> list[int] | None:
    """Return for each label the output of that name, whatever its case and punctuation; None if not all have one."""
    plain = ["".join(filter(str.isalnum, name.casefold())) for name in names]
    wanted = ["".join(filter(str.isalnum, label.casefold())) for label in labels]
    if sorted(plain) != sorted(wanted) or len(set(wanted)) < len(wanted):
        return None
    return [plain.index(name) for name in wanted]


@torch.no_grad()
def reorder(model: BertClassifier, order: list[int]) -> None:
    """Put output order[i] in place i."""
    head = model.linear_layer
    head.weight.copy_(head.weight[order].clone())
    head.bias.copy_(head.bias[order].clone())
