"""BERT classifiers: the teacher from a pre-trained model, the student and how it starts, and saved ones again.

Shapes: B batch, R rows of a batch, D hidden size, C classes, L layers.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig

from fine_tune.core.errors import UserError
from fine_tune.core.files import folder_sha256
from fine_tune.data.tokens import Batch
from fine_tune.models.encoder import Bert
from fine_tune.models.linear import Linear
from fine_tune.models.precision import no_autocast
from fine_tune.models.pretrained import Pretrained, find_pretrained, load_tokenizer

SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob max_position_embeddings type_vocab_size layer_norm_eps pad_token_id initializer_range"
).split()
REALS = ("layer_norm_eps", "initializer_range")  # for which BertConfig takes no whole number


class BertClassifier(nn.Module):
    """A BERT, dropout on its pooler output, Linear(D, C); head weight N(0, .02), bias 0."""

    def __init__(self, encoder: Bert, num_class: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.linear_layer = Linear(encoder.config.hidden_size, num_class)
        nn.init.normal_(self.linear_layer.weight, std=0.02)
        nn.init.zeros_(self.linear_layer.bias)

    def forward(self, batch: Batch, cls_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits (B, C), and L times the state after a layer: of the batch's rows (R, D), or of [CLS] (B, D)."""
        pooled, hiddens = self.encoder(batch, cls_only)
        with no_autocast(pooled.device):
            return self.linear_layer(self.dropout(pooled.float())), hiddens


def freeze(model: nn.Module) -> nn.Module:
    """Return `model` in eval mode and without gradients, in which no call of train() on it or a part changes it."""
    for part in model.eval().requires_grad_(False).modules():
        part.train = lambda mode=True, part=part: part
    return model


# --- teacher and student ----------------------------------------------------------------------------------------------


def sizes(config: BertConfig) -> dict[str, Any]:
    """Return what it takes to build the encoder again, as kept in a run's config.json."""
    return {key: getattr(config, key) for key in SIZES}


def student_sizes(flags: Namespace) -> dict[str, int]:
    """Return the sizes of the student's encoder that flags say."""
    return {
        "hidden_size": flags.d_model,
        "intermediate_size": flags.d_ff,
        "num_attention_heads": flags.num_attention_heads,
        "num_hidden_layers": flags.num_hidden_layers,
        "type_vocab_size": flags.type_vocab_size,
        "max_position_embeddings": flags.max_seq_len,
    }


def empty_encoder(encoder_sizes: dict[str, Any]) -> Bert:
    """Return a randomly initialised BERT of the given sizes."""
    reals = {name: float(encoder_sizes[name]) for name in REALS if name in encoder_sizes}
    return Bert(BertConfig(**encoder_sizes | reals))


def new_teacher(pretrained: Pretrained, flags: Namespace) -> BertClassifier:
    """Return the pre-trained model under a new head; its encoder keeps its own config's dropout."""
    return BertClassifier(pretrained.encoder(), flags.num_class, flags.dropout)


def new_student(teacher_sizes: dict[str, Any], pretrained: Pretrained | None, flags: Namespace) -> BertClassifier:
    """Return a student of a teacher of the given sizes, as --student_init and --embedding_init start it.

    They take their weights from the teacher's pre-trained model, None where both start at random.
    """
    dropout = {"hidden_dropout_prob": flags.dropout, "attention_probs_dropout_prob": flags.dropout}
    encoder = empty_encoder(teacher_sizes | student_sizes(flags) | dropout)
    student = BertClassifier(encoder, flags.num_class, flags.dropout)
    if pretrained:
        start_student(student.encoder, pretrained.encoder(), flags)
    return student


@torch.no_grad()
def start_student(student: Bert, source: Bert, flags: Namespace) -> None:
    """Copy embeddings, layers and pooler from the pre-trained `source`.

    Layers skip, 2 * skip, ... N * skip (`even`) or 1 .. N (`first`); of the position embeddings the first S.
    """
    if flags.embedding_init == "pretrained":
        weights = source.embeddings.state_dict()
        weights["position_embeddings.weight"] = weights["position_embeddings.weight"][: flags.max_seq_len]
        student.embeddings.load_state_dict(weights)
    if flags.student_init != "random":
        taken = len(student.encoder.layer)
        skip = len(source.encoder.layer) // taken if flags.student_init == "even" else 1
        for layer, number in zip(student.encoder.layer, range(skip, skip * taken + 1, skip), strict=True):
            layer.load_state_dict(source.encoder.layer[number - 1].state_dict())
        student.pooler.load_state_dict(source.pooler.state_dict())


# --- saved runs -------------------------------------------------------------------------------------------------------


def run_sizes(config: Namespace, source: str) -> dict[str, Any]:
    """Return the encoder's sizes of a saved run; the authors' config.json has only a student's, by their flags."""
    if hasattr(config, "encoder"):
        return {key: config.encoder[key] for key in SIZES if key in config.encoder}
    base = sizes(find_pretrained(config.ptrain_ver, source).config)
    if config.kind == "teacher":
        return base
    try:
        return base | student_sizes(config)
    except AttributeError as error:
        raise UserError(f"{source}: its config.json lacks {error.name}, so its student cannot be built") from error


def run_tokenizer(config: Namespace, folder: Path, vocab_size: int, source: str) -> Any:
    """Return the tokenizer saved in the run's folder, or for the authors' folders that of the pre-trained model.

    Raises UserError when it is no longer the one that the run saved.
    """
    saved = folder / "tokenizer"
    if not saved.is_dir():
        return find_pretrained(config.ptrain_ver, source).tokenizer
    known = getattr(config, "tokenizer_sha256", None)
    if known not in (None, folder_sha256(saved)):
        raise UserError(f"{source}: {saved} is not what the run saved there, so its texts would be read otherwise")
    return load_tokenizer(saved, vocab_size, source)


def empty_classifier(config: Namespace, source: str) -> BertClassifier:
    """Return an untrained classifier of the shape of a saved run, for its checkpoints to be loaded into.

    Raises UserError when there is no BERT of such sizes.
    """
    shape = run_sizes(config, source)
    try:
        return BertClassifier(empty_encoder(shape), config.num_class, getattr(config, "dropout", 0.0))
    except (KeyError, ValueError, AssertionError) as error:  # whatever the library makes of sizes that do not fit
        raise UserError(f"{source}: its config.json describes no BERT ({error})") from error
