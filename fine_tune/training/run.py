"""The order of every training run: devices, task, folder, start or resume, the loop with log and save, end."""

import os
import platform
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from fine_tune.cli import runs
from fine_tune.cli.parser import program
from fine_tune.cli.runs import SavedConfig
from fine_tune.core import interrupt
from fine_tune.core.errors import NotFinite, UserError
from fine_tune.core.files import (
    atomic_folder,
    folder_sha256,
    locked,
    make_folder,
    remove_parts,
    rewrite_json,
    sha256,
    write_json,
)
from fine_tune.core.memory import needs_memory
from fine_tune.data.tasks import task_spec
from fine_tune.data.tokens import Batch, Tokens, load, micro_batches
from fine_tune.models.precision import check_precision, first_non_finite
from fine_tune.training import checkpoint, distributed
from fine_tune.training.dry_run import dry_run
from fine_tune.training.graphs import learner
from fine_tune.training.log import Log, print0
from fine_tune.training.loop import Named, train
from fine_tune.training.optim import NonFiniteGuard
from fine_tune.training.summary import Usage, duration, memory_words, print_summary
from fine_tune.training.task import Task

NOT_KEPT = ("overwrite", "dry_run", "d_emb", "teacher_config")  # flags that config.json does without
Devices = dict[str, torch.device]  # by the flags that name them
BuiltTask = tuple[Task, Tokens, Any, Namespace]  # what is trained, on what, its tokenizer, and the run's config


@needs_memory("in training; what was saved stays")
def run(flags: Namespace, build_task: Callable[[Namespace, Devices], BuiltTask]) -> None:
    """Train what `build_task` makes of `flags` to its last step, from the last saved state if there is one."""
    devices = distributed.select_devices(flags)
    check_precision(flags, list(devices.values()))
    saved = runs.saved_config(flags)
    if already_finished(flags, saved):
        return
    task, tokens, tokenizer, config = build_task(flags, devices)
    if flags.dry_run:
        print_summary(runs.own_folder(config), config, task, tokens)
        distributed.seed_rank(config.seed)
        dry_run(config, task, shard_batches(config, task, tokens, 0, lambda step, tokens: False))
        return
    dev = None
    if flags.eval_step:
        dev, _ = load_split(Namespace(**vars(flags) | {"dataset": flags.eval_dataset}), tokenizer)
    with open_run(config, saved, tokenizer, flags.overwrite) as folder:
        distributed.seed_rank(config.seed)
        start, before = checkpoint.resume(folder, task, config)
        usage = Usage(before, task.gpus)
        print_summary(folder, config, task, tokens)
        print0(f"resuming after step {start}" if start else "starting at step 1")
        fit(folder, config, task, tokens, dev, start, usage)
        written = vars(config) if flags.overwrite or not saved.values else saved.values
        distributed.on_main_process(lambda: finish(folder, config, written | usage.facts()))


def already_finished(flags: Namespace, saved: SavedConfig) -> bool:
    """Tell whether the run is there and finished, after saying so; a run of other flags raises UserError.

    Reads only, and needs no model: it comes before anything slow.
    """
    if flags.overwrite or not saved.values:
        return False
    runs.require_same_settings(saved.values, flags)
    folder = runs.own_folder(flags)
    finished = runs.is_finished(folder, flags)
    if finished:
        print0(f"{folder} is finished ({flags.total_step} steps); nothing to do")
    return finished


# --- what every task is built from ------------------------------------------------------------------------------------


def make_run_config(flags: Namespace, **facts: Any) -> Namespace:
    """Return what config.json holds: the flags, `facts` of the run, and the versions it runs on."""
    kept = {name: value for name, value in vars(flags).items() if name not in NOT_KEPT}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    labels = list(task_spec(flags).labels)
    return Namespace(**kept, program=program(), labels=labels, **facts, ranks=distributed.WORLD_SIZE, versions=versions)


def load_split(flags: Namespace, tokenizer: Any) -> tuple[Tokens, str]:
    """Return the split that `flags` name, and the checksum of its file."""
    spec = task_spec(flags)
    split = spec.splits[flags.dataset]
    path = runs.data_file(flags, split)
    digest = sha256(path)
    cache = Path(flags.experiment_dir) / "cache"
    wanted = (path, digest, spec, split, tokenizer, flags.max_seq_len, cache)
    keep = not getattr(flags, "dry_run", False)  # evaluation has no such flag
    return distributed.main_process_first(lambda: load(*wanted, keep=keep)), digest


# --- the folder -------------------------------------------------------------------------------------------------------


@contextmanager
def open_run(config: Namespace, saved: SavedConfig, tokenizer: Any, overwrite: bool) -> Iterator[Path]:
    """Yield the run's folder, with its config.json and tokenizer, locked until the block ends."""
    folder = runs.own_folder(config)
    with ExitStack() as held:
        distributed.on_main_process(lambda: enter(folder, config, saved, tokenizer, overwrite, held))
        yield folder


def enter(
    folder: Path, config: Namespace, saved: SavedConfig, tokenizer: Any, overwrite: bool, held: ExitStack
) -> None:
    """Lock the folder until `held` ends, and check its config against the run's, or write that into a new one."""
    make_folder(folder.parent)
    held.enter_context(locked(folder))
    if overwrite and folder.exists():
        move_aside(folder)
    make_folder(folder)
    remove_parts(folder)
    path = folder / "config.json"
    if not os.path.lexists(path):
        config.tokenizer_sha256 = save_tokenizer(tokenizer, folder / "tokenizer")
        write_json(path, runs.sealed(vars(config)))  # last: it says that the folder is a run's
    elif runs.last_written(path) != saved.written:
        raise UserError(f"{path}: was written by another process just now; give the command again")
    else:
        runs.require_same_settings(saved.values, config)
        if runs.is_finished(folder, config):
            raise UserError(f"{folder}: another process has finished this run just now; there is nothing to do")
        before = saved.values.get("versions") or {}
        others = [name for name, now in config.versions.items() if before.get(name) != now]
        if others:
            apart = ", ".join(f"{name} {before.get(name)} (now {config.versions[name]})" for name in others)
            print0(f"note: the run was started on {apart}: numbers may differ slightly")


def move_aside(folder: Path) -> None:
    """Rename the run in `folder`, and its tensorboard log, to the first free `<name>.old-<n>`."""
    moved = (folder, runs.log_folder(folder))
    number = 1
    while any(each.with_name(f"{folder.name}.old-{number}").exists() for each in moved):
        number += 1
    for each in moved:
        if each.exists():
            target = each.rename(each.with_name(f"{folder.name}.old-{number}"))
            print0(f"the earlier run is now {target}")


def save_tokenizer(tokenizer: Any, folder: Path) -> str:
    """Write the tokenizer's files, all or none; return their checksum."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before it had a config.json
    with atomic_folder(folder) as part:
        try:
            tokenizer.save_pretrained(part)
        except Exception as error:  # its makers' word for a full disk
            raise OSError(str(error)) from error
        return folder_sha256(part)


# --- training ---------------------------------------------------------------------------------------------------------


def fit(
    folder: Path, config: Namespace, task: Task, tokens: Tokens, dev: Tokens | None, start: int, usage: Usage
) -> None:
    """Run the loop from the step after `start` to the end; `dev` is the split of --eval_step, if that is given."""
    guard = NonFiniteGuard(task.optimizers, task.scaler)
    log = Log(runs.log_folder(folder), task.tag, start, config.total_step, config.log_step, guard.raise_if_tripped)
    log.describe(config)
    save = partial(save_if_due, folder, config, task, guard, log, usage)

    after = save
    if dev is not None:
        from fine_tune.training.scoring import score_if_due  # only here: scikit-learn takes a second to import

        def after(step: int, vectors: Named) -> None:
            score_if_due(config, task, dev, log, step)  # first: a saved step is one that was scored
            save(step, vectors)

    steps = range(start + 1, config.total_step + 1)
    batches = shard_batches(config, task, tokens, start, log.expect)
    task.train()
    try:
        train(steps, config.accum_step, batches, learner(task), task.optimizers, guard, log, after)
    finally:
        log.close()


def shard_batches(
    config: Namespace, task: Task, tokens: Tokens, start: int, watched: Callable[[int, int], bool]
) -> Iterator[Batch]:
    """Yield this rank's shards of the micro-batches of the steps after `start`, without end.

    `watched` takes the step and the number of tokens of a whole micro-batch, and tells whether more of it is logged.
    """
    before = start * config.accum_step
    size = config.batch_size // config.accum_step
    for number, chosen in enumerate(micro_batches(len(tokens), size, config.seed, before), before):
        own, fraction = distributed.shard(chosen)
        step = number // config.accum_step + 1
        batch = tokens.batch(own, task.layout(tokens.lengths(own), own, step), fraction)
        yield replace(batch, watched=watched(step, int(tokens.lengths(chosen).sum())))


def save_if_due(
    folder: Path,
    config: Namespace,
    task: Task,
    guard: NonFiniteGuard,
    log: Log,
    usage: Usage,
    step: int,
    vectors: Named,
) -> None:
    """Save the state after a step that ends in a checkpoint, or in which a signal has come; then heed the signal."""
    due = step % config.ckpt_step == 0 or step == config.total_step
    interrupted = distributed.interrupted()
    if not interrupted and not due:
        return
    guard.raise_if_tripped()
    bad = first_non_finite(task.trainable_modules)
    if bad:  # only finite weights are saved, and only they take the place of others
        raise NotFinite(f"step {step}: the update left {bad} not finite; what was saved before stays; try a lower rate")
    streams = distributed.all_gather(checkpoint.random_streams(task.gpus))

    def write() -> None:
        if due:
            checkpoint.save_checkpoint(folder, step, task, vectors)
        checkpoint.save_state(folder, step, task, streams, usage.seconds(), config)  # last: it vouches for all before
        if due and config.keep_last:
            checkpoint.prune(folder, config.keep_last)

    distributed.on_main_process(write)
    if interrupted:  # and not where a signal has come to this rank alone since: the others would wait for it
        interrupt.poll(f"saved after step {step}; the same command goes on from there")


def finish(folder: Path, config: Namespace, content: dict[str, Any]) -> None:
    """Make `content` that of config.json, and drop what only a resume needs."""
    rewrite_json(folder / "config.json", runs.sealed(content))
    if config.keep_last:
        checkpoint.prune(folder, config.keep_last)  # once more: the last time may have been cut short
    (folder / runs.STATE).unlink(missing_ok=True)
    used = f"{duration(content['wall_seconds'])}, {memory_words(content['peak_memory_gib'])} at most"
    print0(f"done: {folder / f'model-{config.total_step}.pt'}; {used}")
