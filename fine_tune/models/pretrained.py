"""Pre-trained BERTs: found by hub name or local folder, with a tokenizer that fits."""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
import transformers
from transformers import BertConfig

from fine_tune.cli.runs import ENCODER
from fine_tune.core.errors import UserError
from fine_tune.core.files import sha256
from fine_tune.core.shapes import misfit
from fine_tune.models.encoder import Bert
from fine_tune.models.precision import first_non_finite

if TYPE_CHECKING:  # seconds to import
    from transformers import PreTrainedModel

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
WEIGHT_FILES = {  # what holds the weights, whole or an index of parts; what those are called on the hub
    "model.safetensors": "model.safetensors",
    "model.safetensors.index.json": "model-*-of-*.safetensors",
    "pytorch_model.bin": "pytorch_model.bin",
    "pytorch_model.bin.index.json": "pytorch_model-*-of-*.bin",
}
# Settings of config.json that change what a BERT computes, and the values of them that models/encoder.py computes;
# of hidden_act those that the library knows.
COMPUTED: dict[str, Collection[Any]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "quantization_config": (None,),
}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
WIDTHS = (  # settings of config.json that its weights' shapes follow from
    "num_hidden_layers hidden_size intermediate_size type_vocab_size vocab_size max_position_embeddings".split()
)
PADDED = 8, 128  # rows of embeddings beyond the vocabulary: to a multiple of the first, fewer than the second


@dataclass
class Pretrained:
    """A pre-trained BERT in a local folder; `source` is how messages call it, `notes` what loading its weights found.

    `source` begins every UserError.
    """

    source: str
    folder: Path
    config: BertConfig
    tokenizer: Any
    notes: list[str] = field(default_factory=list)

    @cached_property
    def info(self) -> dict[str, str]:
        """Return what a run's config.json says of where it started: its weights' checksum, and a hub model's commit."""
        digests = [sha256(path) for path in weight_files(self.folder, self.source)]
        whole = digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
        commit = {"ptrain_commit": self.folder.name} if self.folder.parent.name == "snapshots" else {}
        return {"ptrain_sha256": whole} | commit

    def require_fit(self, max_seq_len: int, pairs: bool) -> None:
        """Raise UserError unless it reads so many word pieces, and of two texts if there are `pairs`."""
        longest = self.config.max_position_embeddings
        if max_seq_len > longest:
            raise UserError(f"--max_seq_len {max_seq_len}: {self.source} reads at most {longest} word pieces")
        if pairs and self.config.type_vocab_size < 2:
            raise UserError(f"{self.source}: has type_vocab_size 1, but the task has pairs of texts, which need 2")

    def require_sizes(self, sizes: dict[str, Any]) -> None:
        """Raise UserError unless its weights have the `sizes` of a teacher that is said to have started from it."""
        for name in WIDTHS:
            own = getattr(self.config, name)
            if own != sizes[name]:
                raise UserError(f"{self.source}: has {name} {own}, but the teacher started from one of {sizes[name]}")

    def load(self, kind: "type[PreTrainedModel]") -> "tuple[PreTrainedModel, dict[str, Any]]":
        """Load the weights in fp32 into a model of the library's class `kind`; return it, and what was found amiss.

        Raises UserError when they cannot be read, or one has another shape than config.json says, or no finite number.
        """
        quiet_transformers()
        try:
            # The checkpoint's own precision would otherwise decide ours. Of wrong shapes the library prints tables.
            model, info = kind.from_pretrained(
                self.folder,
                config=self.config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
            )
        except Exception as error:  # the library raises a dozen kinds for a damaged file, or one that would run code
            raise UserError(f"{self.source}: the weights in {self.folder} cannot be loaded ({error})") from error
        for name, found, wanted in sorted(info["mismatched_keys"]):
            shapes = f"has the shape {tuple(found)}, but config.json says {tuple(wanted)}"
            raise UserError(f"{self.source}: {self.folder}: {name} {shapes}")
        bad = first_non_finite({str(self.folder): model})
        if bad:
            raise UserError(f"{self.source}: {bad} holds numbers that are not finite")
        return model, info

    def encoder(self) -> Bert:
        """Load the encoder; raises UserError when one of its weights is missing or would not be used.

        A pooler that is missing, as in a masked language model, starts at random.
        """
        from transformers import BertModel  # seconds, which whoever reads a saved run does not need

        model, info = self.load(BertModel)
        poolers = POOLER if POOLER <= set(info["missing_keys"]) else set()
        bad = sorted(set(info["missing_keys"]) - poolers)
        if bad:
            raise UserError(f"{self.source}: {self.folder} lacks {len(bad)} of BERT's weights, {bad[0]} first")
        over = sorted(key.removeprefix("bert.") for key in info["unexpected_keys"] if not key.endswith("position_ids"))
        own = [key for key in over if key.startswith(("encoder.", "embeddings.", "pooler."))]
        if own:
            raise UserError(f"{self.source}: {self.folder} holds {own[0]}, which a BERT does not compute with")
        if poolers:
            self.notes.append(f"note: {self.source} has no pooler; a new one starts at random")
        if any(key.startswith("classifier.") for key in over):
            self.notes.append(
                f"note: {self.source} is a fine-tuned classifier, whose head is left out for a new one; "
                f"to take it as it is: python -m fine_tune.import_teacher --from {self.folder}"
            )
        return from_library(model)


def from_library(model: "PreTrainedModel") -> Bert:
    """Return the weights of the library's BertModel as our encoder, which takes them without a copy."""
    with torch.device("meta"):
        encoder = Bert(model.config)
    encoder.load_state_dict(model.state_dict(), assign=True)
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
    folder = Path(ptrain_ver) if os.path.isdir(ptrain_ver) else download(ptrain_ver, source)
    absent = missing_files(folder, source)
    if absent:
        raise UserError(f"{source}: {folder} holds no {absent}")
    try:
        values = BertConfig.get_config_dict(folder)[0]
        config = BertConfig.from_dict(values)
    except Exception as error:  # whatever the library makes of a damaged config.json
        raise UserError(f"{source}: {folder / 'config.json'} cannot be read ({error})") from error
    if (values.get("model_type") or "bert") != "bert":
        raise UserError(f"{source}: {folder} holds a {values['model_type']} model; only BERT models can be teachers")
    from transformers.activations import ACT2FN  # seconds, which whoever reads a saved run does not need

    computed = COMPUTED | {"hidden_act": ACT2FN}
    for name in sorted(values.keys() & computed):
        if values[name] not in computed[name]:
            known = ", ".join(map(str, computed[name]))
            raise UserError(
                f"{source}: {folder / 'config.json'} has {name} {values[name]}; only {known} is computed here"
            )
    problem = misfit({name: getattr(config, name) for name in ENCODER}, ENCODER)
    if problem:
        raise UserError(f"{source}: {folder / 'config.json'}: {problem}")
    return Pretrained(source, folder, config, load_tokenizer(folder, config.vocab_size, source))


def weight_files(folder: Path, source: str) -> list[Path]:
    """Return the files that the library reads a model's weights from, there or not: one, an index's, or none."""
    first = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if first is None or first.suffix != ".json":
        return [first] if first else []
    try:
        return [folder / name for name in sorted(set(json.loads(first.read_bytes())["weight_map"].values()))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: {first} is no index of weights ({error})") from error


def missing_files(folder: Path, source: str) -> str:
    """Return what a model's folder lacks, "" if nothing."""
    for wanted in (("config.json",), TOKENIZER_FILES):
        if not any((folder / name).is_file() for name in wanted):
            return " or ".join(wanted)
    weights = weight_files(folder, source)
    if not weights:
        return "model.safetensors or pytorch_model.bin"
    return next((path.name for path in weights if not path.is_file()), "")


def download(name: str, source: str) -> Path:
    """Return the local copy of a hub model: the cache's if it is whole, so that a second run needs no network."""
    repository, _, revision = name.partition("@")
    wanted = ["config.json", "tokenizer_config.json", "special_tokens_map.json", *TOKENIZER_FILES]
    absent = ""
    for offline in (True, False):
        problem: Exception | None = None
        for weights, parts in WEIGHT_FILES.items():
            try:
                folder = huggingface_hub.snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=[*wanted, weights, parts],
                    local_files_only=offline,
                )
            except Exception as error:  # unknown name, no network, no permission: each of its own kind
                problem = error
                break
            absent = missing_files(Path(folder), source)
            if not absent:
                return Path(folder)
    cure = "check the name and the network, or give a folder that holds the model"
    if absent and not problem:
        raise UserError(f"{source}: what could be had of it holds no {absent}; {cure}")
    kind = type(problem).__name__
    raise UserError(
        f"{source}: is neither a local folder nor a model that could be had from the hub ({kind}); {cure}"
    ) from problem


def load_tokenizer(folder: Path, vocab_size: int, source: str) -> Any:
    """Load the tokenizer in `folder` of a model with `vocab_size` embeddings.

    Raises UserError unless its word pieces are the model's, in their case, and it puts texts together as BERT reads
    them. The library makes a tokenizer of five words from a folder without a vocabulary, and every text becomes [UNK].
    """
    quiet_transformers()
    same = {"local_files_only": True, "trust_remote_code": False}
    try:
        # The config says BERT where neither the folder's config.json nor its tokenizer_config.json does.
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=BertConfig(), **same)
        if not tokenizer.is_fast and type(tokenizer).__name__.startswith("BertTokenizer"):
            tokenizer = transformers.BertTokenizerFast.from_pretrained(folder, **same)
    except Exception as error:  # whatever the library makes of damaged tokenizer files
        raise UserError(f"{source}: the tokenizer in {folder} cannot be loaded ({error})") from error
    problem = tokenizer_problem(tokenizer, vocab_size)
    if problem:
        raise UserError(f"{source}: the tokenizer in {folder} {problem}")
    return tokenizer


def tokenizer_problem(tokenizer: Any, vocab_size: int) -> str:
    """Return why a tokenizer does not fit a BERT with `vocab_size` embeddings, "" if it does."""
    if not tokenizer.is_fast:
        return f"is a {type(tokenizer).__name__}, without a fast version (tokenizer.json), which is needed here"
    found, (multiple, most) = len(tokenizer), PADDED
    padded = vocab_size % multiple == 0 and 0 < vocab_size - found < most
    if found != vocab_size and not padded:
        return f"has {found} entries, but the model needs {vocab_size}"
    if max(tokenizer.get_vocab().values()) >= vocab_size:
        return f"has entries beyond the model's {vocab_size}"
    special = {tokenizer.cls_token: tokenizer.cls_token_id, tokenizer.sep_token: tokenizer.sep_token_id}
    added = [name for name, number in special.items() if number is not None and number >= tokenizer.vocab_size]
    if padded and added:  # by the library, as the first row that nothing was learned for
        return f"has no {added[0]} in its vocabulary"
    if lowers_cased_words(tokenizer):
        cure = 'a tokenizer_config.json with {"do_lower_case": false} beside it, as the model came with'
        return f"lower-cases all texts, but its vocabulary is cased; it needs {cure}"
    if not joins_as_bert(tokenizer):
        cure = 'tokenizer_config.json can say {"tokenizer_class": "BertTokenizer"}'
        return f"does not give [CLS] text [SEP] and [CLS] text [SEP] text [SEP] with segments 0 and 1; {cure}"
    return ""


def joins_as_bert(tokenizer: Any) -> bool:
    """Tell whether a text, and a pair, get BERT's special tokens and segments."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    # Two texts that differ in their length, also where both are unknown words.
    first, second = (backend.encode(text, add_special_tokens=False).ids for text in ("a", "a a"))
    alone, pair = backend.encode("a"), backend.encode("a", "a a")
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    return (alone.ids, pair.ids, pair.type_ids) == (cls + first + sep, cls + first + sep + second + sep, segments)


def lowers_cased_words(tokenizer: Any) -> bool:
    """Tell whether a tokenizer lower-cases texts that are to be cut into a cased vocabulary's word pieces.

    The library assumes so of a folder with vocab.txt alone. An uncased vocabulary may hold a few odd capitals.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or normalizer.normalize_str("Hello") != "hello":
        return False
    words = [word for word in tokenizer.get_vocab() if not word.startswith("[")]
    return sum(word != word.lower() for word in words) > len(words) / 100
