"""BERT classifiers: the teacher from a pre-trained model, the student and how it starts, and saved ones again.

Shapes: B batch, R rows of a batch, D hidden size, C classes, L layers.
"""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from torch import nn
from transformers import BertConfig, BertModel

from fine_tune.config import require, student_sizes
from fine_tune.data import Batch
from fine_tune.encoder import encode
from fine_tune.errors import UserError
from fine_tune.linear import convert
from fine_tune.precision import no_autocast

SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob max_position_embeddings type_vocab_size layer_norm_eps pad_token_id initializer_range"
).split()
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class BertClassifier(nn.Module):
    """BertModel, dropout on its pooler output, Linear(D, C); head weight N(0, .02), bias 0."""

    def __init__(self, encoder: BertModel, num_class: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.linear_layer = nn.Linear(encoder.config.hidden_size, num_class)
        convert(self)
        nn.init.normal_(self.linear_layer.weight, std=0.02)
        nn.init.zeros_(self.linear_layer.bias)

    def forward(self, batch: Batch, cls_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits (B, C), and L times the state after a layer: of the batch's rows (R, D), or of [CLS] (B, D)."""
        pooled, hiddens = encode(self.encoder, batch, cls_only)
        with no_autocast(pooled.device):
            return self.linear_layer(self.dropout(pooled.float())), hiddens


# --- pre-trained models -----------------------------------------------------------------------------------------------


@dataclass
class Pretrained:
    """A pre-trained BERT in a local folder; `source` is how messages call it."""

    source: str
    folder: Path
    config: BertConfig
    tokenizer: Any

    def encoder(self) -> BertModel:
        """Load the weights in fp32; raises UserError when one is missing or has another shape."""
        quiet_transformers()
        try:
            # The checkpoint's own precision would otherwise decide ours.
            encoder, info = BertModel.from_pretrained(self.folder, dtype=torch.float32, output_loading_info=True)
        except Exception as error:  # the library raises a dozen kinds for a damaged file
            raise UserError(f"{self.source}: the weights in {self.folder} cannot be loaded ({error})") from error
        bad = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
        if bad:
            raise UserError(f"{self.source}: {self.folder} lacks {len(bad)} of BERT's weights, {bad[0]} first")
        return encoder


def quiet_transformers() -> None:
    """Keep the library's progress bars and advice off the console; what matters is checked here and said in a line."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def find_pretrained(ptrain_ver: str, source: str) -> Pretrained:
    """Find a pre-trained BERT by hub name or local folder, with a tokenizer that fits it.

    Raises UserError, starting with `source`, when there is none or its parts do not fit each other.
    """
    quiet_transformers()
    folder = Path(ptrain_ver) if Path(ptrain_ver).is_dir() else download(ptrain_ver, source)
    for wanted in (("config.json",), TOKENIZER_FILES, WEIGHT_FILES):
        if not any((folder / name).is_file() for name in wanted):
            raise UserError(f"{source}: {folder} holds no {' or '.join(wanted)}")
    try:
        values = BertConfig.get_config_dict(folder)[0]
        config = BertConfig.from_dict(values)
    except Exception as error:  # whatever the library makes of a damaged config.json
        raise UserError(f"{source}: {folder / 'config.json'} cannot be read ({error})") from error
    if values.get("model_type", "bert") != "bert":
        raise UserError(f"{source}: {folder} holds a {values['model_type']} model; only BERT models can be teachers")
    return Pretrained(source, folder, config, load_tokenizer(folder, config.vocab_size, source))


def download(name: str, source: str) -> Path:
    """Return the local copy of a hub model: the cache's if it is whole, so that a second run needs no network."""
    wanted = ["config.json", "tokenizer_config.json", "special_tokens_map.json", *TOKENIZER_FILES]
    for offline in (True, False):
        for weights in WEIGHT_FILES:
            try:
                folder = huggingface_hub.snapshot_download(
                    name, allow_patterns=[*wanted, weights], local_files_only=offline
                )
            except Exception as error:  # unknown name, no network, no permission: each of its own kind
                problem = error
                break
            if (Path(folder) / weights).is_file():
                return Path(folder)
    raise UserError(
        f"{source}: is neither a local folder nor a model that could be had from the hub "
        f"({type(problem).__name__}); check the name and the network, or give a folder that holds the model"
    ) from problem


def load_tokenizer(folder: Path, vocab_size: int, source: str) -> Any:
    """Load the tokenizer in `folder`; raises UserError unless it has `vocab_size` word pieces.

    The library makes a tokenizer of five words from a folder without a vocabulary, and every text becomes [UNK].
    """
    quiet_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        found = len(tokenizer) if tokenizer.is_fast else 0
    except Exception as error:  # whatever the library makes of damaged tokenizer files
        raise UserError(f"{source}: the tokenizer in {folder} cannot be loaded ({error})") from error
    if found != vocab_size:
        raise UserError(f"{source}: the vocabulary in {folder} has {found} entries, but the model needs {vocab_size}")
    return tokenizer


# --- teacher and student ----------------------------------------------------------------------------------------------


def sizes(config: BertConfig) -> dict[str, Any]:
    """Return what it takes to build the encoder again, as kept in a run's config.json."""
    return {key: getattr(config, key) for key in SIZES}


def empty_encoder(encoder_sizes: dict[str, Any]) -> BertModel:
    """Return a randomly initialised BertModel of the given sizes."""
    return BertModel(BertConfig(**encoder_sizes))


def new_teacher(pretrained: Pretrained, config: Namespace) -> BertClassifier:
    """Return the pre-trained model under a new head; its encoder keeps its own config's dropout."""
    longest = pretrained.config.max_position_embeddings
    if config.max_seq_len > longest:
        raise UserError(f"--max_seq_len {config.max_seq_len}: {pretrained.source} reads at most {longest} word pieces")
    return BertClassifier(pretrained.encoder(), config.num_class, config.dropout)


def new_student(pretrained: Pretrained, config: Namespace) -> BertClassifier:
    """Return the student as --student_init and --embedding_init start it, from the pre-trained model's weights."""
    require(student_sizes(config, sizes(pretrained.config)))
    chosen = {
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "type_vocab_size": config.type_vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }
    student = BertClassifier(empty_encoder(sizes(pretrained.config) | chosen), config.num_class, config.dropout)
    if (config.student_init, config.embedding_init) != ("random", "random"):
        start_student(student.encoder, pretrained.encoder(), config)
    return student


@torch.no_grad()
def start_student(student: BertModel, source: BertModel, config: Namespace) -> None:
    """Copy embeddings, layers and pooler from the pre-trained `source`.

    Layers skip, 2 * skip, ... N * skip (`even`) or 1 .. N (`first`); of the position embeddings the first S.
    """
    if config.embedding_init == "pretrained":
        weights = source.embeddings.state_dict()
        weights["position_embeddings.weight"] = weights["position_embeddings.weight"][: config.max_seq_len]
        student.embeddings.load_state_dict(weights)
    if config.student_init != "random":
        taken = len(student.encoder.layer)
        skip = len(source.encoder.layer) // taken if config.student_init == "even" else 1
        for layer, number in zip(student.encoder.layer, range(skip, skip * taken + 1, skip), strict=True):
            layer.load_state_dict(source.encoder.layer[number - 1].state_dict())
        student.pooler.load_state_dict(source.pooler.state_dict())


# --- saved runs -------------------------------------------------------------------------------------------------------


def run_pretrained(run: Namespace) -> str:
    """Return the pre-trained model of a saved run; the authors' students do not name theirs."""
    return getattr(run, "ptrain_ver", "bert-base-uncased")


def run_sizes(run: Namespace, source: str) -> dict[str, Any]:
    """Return the encoder's sizes of a saved run; the authors' config.json has only a student's, by their flags."""
    if hasattr(run, "encoder"):
        return run.encoder
    base = sizes(find_pretrained(run_pretrained(run), source).config)
    if run.kind == "student":
        base |= {
            "hidden_size": run.d_model,
            "intermediate_size": run.d_ff,
            "num_attention_heads": run.num_attention_heads,
            "num_hidden_layers": run.num_hidden_layers,
            "type_vocab_size": run.type_vocab_size,
            "max_position_embeddings": run.max_seq_len,
        }
    return base


def run_tokenizer(run: Namespace, folder: Path, vocab_size: int, source: str) -> Any:
    """Return the tokenizer saved in the run's folder, or for the authors' folders that of the pre-trained model."""
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer", vocab_size, source)
    return find_pretrained(run_pretrained(run), source).tokenizer


def empty_classifier(run: Namespace, source: str) -> BertClassifier:
    """Return an untrained classifier of the shape of a saved run, for its checkpoints to be loaded into."""
    return BertClassifier(empty_encoder(run_sizes(run, source)), run.num_class, getattr(run, "dropout", 0.0))
