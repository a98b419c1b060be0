"""Models in and out: a checkpoint leaves for transformers, a classifier from there becomes a teacher's run.

Shapes: n examples, C classes.
"""

from argparse import Namespace
from itertools import permutations
from pathlib import Path

import numpy as np

from fine_tune.cli.runs import data_file, own_folder, sealed
from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_folder, atomic_write, locked, make_folder, sha256, write_json
from fine_tune.core.memory import needs_memory
from fine_tune.data.tasks import TaskSpec, task_spec
from fine_tune.data.tokens import by_length
from fine_tune.data.tsv import read_examples
from fine_tune.models import card, hub
from fine_tune.models.bert import sizes
from fine_tune.models.precision import choose_threads
from fine_tune.models.pretrained import find_pretrained
from fine_tune.training import checkpoint, distributed
from fine_tune.training.log import print0
from fine_tune.training.run import load_split, make_run_config, save_tokenizer
from fine_tune.training.saved_run import load_model
from fine_tune.training.scoring import predict, scores

TOLERANCE = 1e-5  # between our logits and the exported model's; of the largest one where that is above 1
MOST_EXAMPLES = 2000  # of dev on which orders of labels are compared
MOST_CLASSES = 5  # whose orders are compared; 6 have 720


@needs_memory("in export; nothing was written")
def export(flags: Namespace) -> None:
    """Write a checkpoint as a model of transformers, after its logits on all of dev were found equal to ours."""
    spec, path = task_spec(flags), own_folder(flags) / f"model-{flags.ckpt}.pt"
    if flags.choice:
        print0(flags.choice)
    model, tokenizer = load_model(flags)
    checkpoint.load_weights(model, path)
    tokens, _ = load_split(flags, tokenizer)
    ours = predict(model, tokens, flags.batch_size, path)
    folder = Path(flags.out)
    with atomic_folder(folder) as part:
        hub.save_library(hub.to_library(model, spec.labels), tokenizer, flags.max_seq_len, part)
        split = spec.splits[flags.dataset]
        examples = read_examples(data_file(flags, split), spec, split)
        batches = by_length(tokens.lengths(), flags.batch_size)
        require_equal(flags, ours, hub.library_logits(part, examples, batches, flags.device_id))
        checksums = sha256(path), sha256(part / "model.safetensors")
        exported = card.Exported(folder.name, scores(spec, ours, tokens.labels), *checksums, flags.license)
        with atomic_write(part / "README.md") as file:
            file.write(card.model_card(flags, spec, exported).encode())
    for name, value in exported.scores.items():
        print(f"{name}\t{value:.4f}")
    print0(f"written: {folder}; its logits on {flags.dataset} are those of step {flags.ckpt}")


def require_equal(flags: Namespace, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Raise UserError unless the logits (n, C) are equal but for rounding."""
    difference, scale = np.abs(ours - theirs).max(1), max(1.0, float(np.abs(ours).max()))
    if difference.max() > TOLERANCE * scale:
        row = int(difference.argmax())
        raise UserError(
            f"--experiment {flags.experiment}: transformers gives other logits, by {difference[row]:.2g} at example "
            f"{row} of {flags.dataset}, so nothing was exported; is the tokenizer in {own_folder(flags)} the run's?"
        )


# --- in ---------------------------------------------------------------------------------------------------------------


@needs_memory("in import; nothing was written")
def import_teacher(flags: Namespace) -> None:
    """Make a teacher's run with one checkpoint, 0, of a fine-tuned classifier of transformers."""
    spec, name = task_spec(flags), getattr(flags, "from")
    found = find_pretrained(name, f"--from {name}")
    found.require_fit(flags.max_seq_len, spec.reads_pairs)
    device = distributed.select_devices(flags)["device_id"]
    choose_threads(found.config.hidden_size)
    model = hub.load_library(found, spec).to(device)
    tokens, _ = load_split(flags, found.tokenizer)
    sample = tokens.every(-(-len(tokens) // MOST_EXAMPLES))
    logits = predict(model, sample, flags.batch_size, found.folder)
    if spec.labels:
        outputs = hub.found_labels(found.config)
        by_label = hub.by_name(outputs, spec.labels)
        order = choose_order(flags, spec, outputs, by_label, accuracies(logits, sample.labels))
        hub.reorder(model, order)
        logits = logits[:, order]
    # What a run is, and no flag of this command alone; students start from these layers, as --ptrain_ver says.
    told = {key: vars(flags)[key] for key in ("experiment", "model", "task", "device_id", "data_dir", "experiment_dir")}
    told |= {"dataset": "train", "max_seq_len": flags.max_seq_len, "num_class": spec.num_class, "ptrain_ver": name}
    config = make_run_config(Namespace(kind="teacher", **told, total_step=0), encoder=sizes(found.config), **found.info)
    folder = own_folder(flags)
    make_folder(folder.parent)
    with locked(folder):
        make_folder(folder)
        checkpoint.save(folder / "model-0.pt", {key: value.cpu() for key, value in model.state_dict().items()})
        config.tokenizer_sha256 = save_tokenizer(found.tokenizer, folder / "tokenizer")
        write_json(folder / "config.json", sealed(vars(config)))  # last: it says that the folder is a run's
    for metric, value in scores(spec, logits, sample.labels).items():
        print(f"{metric}\t{value:.4f}")
    print0(f"written: {folder}; scores on {len(sample)} examples of {flags.dataset}; it teaches by --tckpt 0")


def accuracies(logits: np.ndarray, labels: np.ndarray) -> dict[tuple[int, ...], float]:
    """Return for every order of the outputs, as label i is output order[i], the accuracy, the highest first.

    Nothing for more than MOST_CLASSES outputs.
    """
    classes = logits.shape[1]
    if classes > MOST_CLASSES:
        return {}
    guesses = logits.argmax(1)
    orders = permutations(range(classes))
    found = {order: float((np.array(order)[labels] == guesses).mean()) for order in orders}
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def choose_order(
    flags: Namespace,
    spec: TaskSpec,
    outputs: list[str],
    by_label: list[int] | None,
    scored: dict[tuple[int, ...], float],
) -> list[int]:
    """Return which of the `outputs` is label 0, 1, ...: as --labels says, or else their names, `by_label`.

    All orders and their scores are printed unless the names are right. Raises UserError when nothing tells the order,
    or another one than the names' scores higher.
    """
    order = [flags.labels.index(label) for label in spec.labels] if flags.labels else by_label
    best = next(iter(scored), None)
    if order and (best is None or scored[tuple(order)] == scored[best]):
        print0(f"labels: outputs 0, 1, ... are {', '.join(in_outputs(order, spec))}")
        return order
    print("\n".join(f"{value:.4f}  --labels {','.join(in_outputs(each, spec))}" for each, value in scored.items()))
    shown = f"the accuracies on {flags.dataset} above tell which order is meant" if scored else "its card tells them"
    if flags.labels:
        print0(f"note: as --labels says, though on {flags.dataset} another order scores higher")
        return order
    names = f"its outputs are called {', '.join(outputs)}"
    if order:
        raise UserError(f"--from {getattr(flags, 'from')}: {names}, but {shown}; say it by --labels")
    wanted = ", ".join(spec.labels)
    raise UserError(f"--from {getattr(flags, 'from')}: {names}, not {wanted}; {shown}: say it by --labels")


def in_outputs(order: list[int] | tuple[int, ...], spec: TaskSpec) -> list[str]:
    """Return the label that each output means, where label i is output order[i]."""
    return [spec.labels[order.index(output)] for output in range(len(order))]
