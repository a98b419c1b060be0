"""A run that is there already, as far as what reads its checkpoints needs it: its model's shape, tokenizer, data."""

from argparse import Namespace
from typing import Any

from fine_tune.cli.runs import own_folder
from fine_tune.core.errors import UserError
from fine_tune.data.tasks import task_spec
from fine_tune.data.tokens import Tokens
from fine_tune.models.bert import BertClassifier, empty_classifier, run_tokenizer
from fine_tune.models.precision import choose_threads
from fine_tune.training import distributed
from fine_tune.training.run import load_split


def load_run(flags: Namespace) -> tuple[BertClassifier, Tokens]:
    """Return an empty model of the run's shape on its device, and the split that `flags` name.

    The checksum of the split's file becomes `flags.data_sha256`.
    """
    model, tokenizer = load_model(flags)
    tokens, flags.data_sha256 = load_split(flags, tokenizer)
    return model, tokens


def load_model(flags: Namespace) -> tuple[BertClassifier, Any]:
    """Return an empty model of the run's shape on its device, and the run's tokenizer; set `flags.max_seq_len`."""
    config, folder, source = flags.run_config, own_folder(flags), f"--experiment {flags.experiment}"
    if flags.device_id is None:
        flags.device_id = config.device_id
    device = distributed.select_devices(flags)["device_id"]
    model = empty_classifier(config, source).to(device)
    choose_threads(model.encoder.config.hidden_size)
    tokenizer = run_tokenizer(config, folder, model.encoder.config.vocab_size, source)
    expected = task_spec(flags).num_class
    if config.num_class != expected:
        raise UserError(f"{source}: has {config.num_class} classes, but --task {flags.task} needs {expected}")
    flags.max_seq_len = config.max_seq_len
    return model, tokenizer
