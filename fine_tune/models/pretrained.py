"""Pre-trained BERTs: found by hub name or local folder, with a tokenizer that fits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from transformers import BertConfig, BertModel

from fine_tune.core.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Pretrained:
    """A pre-trained BERT in a local folder; `source` is how messages call it."""

    source: str
    folder: Path
    config: BertConfig
    tokenizer: Any

    @property
    def info(self) -> dict[str, str]:
        """Return what a run's config.json says of where it started: the commit of a hub model, of a folder nothing."""
        return {"ptrain_commit": self.folder.name} if self.folder.parent.name == "snapshots" else {}

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
    """Find a pre-trained BERT by hub name, also name@revision, or local folder, with a tokenizer that fits it.

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
    repository, _, revision = name.partition("@")
    wanted = ["config.json", "tokenizer_config.json", "special_tokens_map.json", *TOKENIZER_FILES]
    for offline in (True, False):
        for weights in WEIGHT_FILES:
            try:
                folder = huggingface_hub.snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=[*wanted, weights],
                    local_files_only=offline,
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
    """Load the tokenizer in `folder`; raises UserError unless it has `vocab_size` word pieces and its case is theirs.

    The library makes a tokenizer of five words from a folder without a vocabulary, and every text becomes [UNK].
    """
    quiet_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = len(tokenizer) if tokenizer.is_fast else 0
    except Exception as error:  # whatever the library makes of damaged tokenizer files
        raise UserError(f"{source}: the tokenizer in {folder} cannot be loaded ({error})") from error
    if found != vocab_size:
        raise UserError(f"{source}: the vocabulary in {folder} has {found} entries, but the model needs {vocab_size}")
    if lowers_cased_words(tokenizer):
        cure = 'a tokenizer_config.json with {"do_lower_case": false} beside it, as the model came with'
        raise UserError(
            f"{source}: the vocabulary in {folder} is cased, but its tokenizer lower-cases all texts; it needs {cure}"
        )
    return tokenizer


def lowers_cased_words(tokenizer: Any) -> bool:
    """Tell whether a tokenizer lower-cases texts that are to be cut into a cased vocabulary's word pieces.

    The library assumes so of a folder with vocab.txt alone. An uncased vocabulary may hold a few odd capitals.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or normalizer.normalize_str("Hello") != "hello":
        return False
    words = [word for word in tokenizer.get_vocab() if not word.startswith("[")]
    return sum(word != word.lower() for word in words) > len(words) / 100
