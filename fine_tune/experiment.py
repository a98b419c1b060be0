"""What every training run does: open its folder, start or resume, drive the loop with log and save, close."""

import platform
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from fine_tune import checkpoint, data, distributed, interrupt
from fine_tune.config import data_file, log_folder, run_folder
from fine_tune.data import Batch, Tokens, micro_batches
from fine_tune.errors import UserError
from fine_tune.files import locked, make_folder, read_json, remove_parts, replacing, sha256, write_json
from fine_tune.layout import Layout
from fine_tune.log import Log, say
from fine_tune.optim import NonFiniteGuard, OptimizerGroup
from fine_tune.tasks import TASKS
from fine_tune.train import Named, train

# A run may be resumed with other values of these: they shape where and how often, never the result.
FREE = set(
    "device_id tdevice_id gate_device_id cache_teacher log_step ckpt_step keep_last data_dir experiment_dir".split()
)
FACTS = {"kind", "method", "labels", "encoder", "data_sha256", "teacher_sha256"}  # in config.json, but no flags


@dataclass
class Job:
    """All that a run needs: `config` is what config.json says; parts and groups go by their names in files and logs.

    `layout` says from the examples' lengths (B,), their numbers (B,) and the step which rows of them are computed.
    """

    config: Namespace
    parts: dict[str, nn.Module]
    groups: dict[str, OptimizerGroup]
    losses_of: nn.Module
    tokens: Tokens
    tokenizer: Any
    layout: Callable[[np.ndarray, np.ndarray, int], Layout]
    tag: str


def optimizer_group(config: Namespace, modules: list[nn.Module], prefix: str = "") -> OptimizerGroup:
    """Return the group of `modules` that the flags with `prefix` describe."""
    flag = {name.removeprefix(prefix): value for name, value in vars(config).items() if name.startswith(prefix)}
    same = {name: flag[name] for name in ("eps", "weight_decay", "max_norm", "warmup_step", "total_step")}
    return OptimizerGroup(modules, peak_lr=flag["lr"], betas=(flag["beta1"], flag["beta2"]), **same)


def described(flags: Namespace, **facts: Any) -> Namespace:
    """Return what config.json holds: the flags, `facts` of the run, and the versions it runs on."""
    kept = {name: value for name, value in vars(flags).items() if name not in ("overwrite", "d_emb")}
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    return Namespace(**kept, **facts, ranks=distributed.WORLD_SIZE, versions=versions)


def training_data(flags: Namespace, tokenizer: Any) -> tuple[Tokens, str]:
    """Return the split that the run trains on, and the checksum of its file."""
    task = TASKS[flags.task]
    split = task.splits[flags.dataset]
    path = data_file(flags, split)
    what = (path, task, split, tokenizer, flags.max_seq_len, Path(flags.experiment_dir) / "cache")
    return distributed.main_process_first(lambda: data.load(*what)), sha256(path)


def settled(flags: Namespace) -> bool:
    """Tell whether the run is there and finished, after saying so; a run of other flags raises UserError.

    Reads only, and needs no model: it comes before anything slow.
    """
    folder = run_folder(flags, flags.experiment, flags.model)
    if flags.overwrite or not (folder / "config.json").is_file():
        return False
    compare(folder, flags)
    done = (folder / f"model-{flags.total_step}.pt").is_file() and not (folder / checkpoint.STATE).is_file()
    if done:
        say(f"{folder} is finished ({flags.total_step} steps); nothing to do")
    return done


def compare(folder: Path, config: Namespace) -> None:
    """Raise UserError that names each setting in which `config` differs from the run in `folder`."""
    saved = read_json(folder / "config.json")
    if "kind" not in saved:
        raise UserError(
            f"--experiment {config.experiment}: {folder} was trained by other code, which cannot be resumed; "
            "use another name, or --overwrite to start afresh"
        )
    before = saved.get("ranks", 1)
    if getattr(config, "ranks", before) != before:  # flags alone do not say
        raise UserError(
            f"--experiment {config.experiment}: {folder} was started with {before} processes, now there "
            f"are {config.ranks}; go on with as many as before (torchrun --nproc_per_node), or use another name"
        )
    now = {name: value for name, value in vars(config).items() if name not in FREE | {"ranks", "versions"}}
    shared = [name for name in now if name in saved and saved[name] != now[name]]
    changed = [f"{'' if name in FACTS else '--'}{name} was {saved[name]}, now {now[name]}" for name in shared]
    if changed:
        raise UserError(
            f"--experiment {config.experiment}: {folder} was started with other settings: {', '.join(changed)}; "
            "use another name, or --overwrite to start afresh"
        )


def move_aside(folder: Path) -> None:
    """Rename the run in `folder`, and its tensorboard log, to the first free `<name>.old-<n>`."""
    number = 1
    while any(place.with_name(f"{folder.name}.old-{number}").exists() for place in (folder, log_folder(folder))):
        number += 1
    for place in (folder, log_folder(folder)):
        if place.exists():
            place.rename(place.with_name(f"{folder.name}.old-{number}"))
            say(f"the earlier run is now {place.with_name(f'{folder.name}.old-{number}')}")


def run(job: Job, overwrite: bool) -> None:
    """Train `job` to its last step in its own folder, from the last saved state if there is one."""
    config = job.config
    folder = run_folder(config, config.experiment, config.model)
    with ExitStack() as held:
        distributed.on_main_process(lambda: open_folder(folder, job, overwrite, held))
        distributed.seed_rank(config.seed)
        start = checkpoint.load_state(folder, job.parts, job.groups)
        summary(folder, job, start)
        drive(folder, job, start)


def open_folder(folder: Path, job: Job, overwrite: bool, held: ExitStack) -> None:
    """Lock the folder until `held` ends, and check its config against the job's, or write that into a new one."""
    make_folder(folder.parent)
    held.enter_context(locked(folder))
    if overwrite and folder.exists():
        move_aside(folder)
    make_folder(folder)
    remove_parts(folder)
    if (folder / "config.json").is_file():
        compare(folder, job.config)
        saved = read_json(folder / "config.json").get("versions")
        if saved != job.config.versions:
            say(f"note: the run was started on {saved}, this is {job.config.versions}: numbers may differ slightly")
    else:
        save_tokenizer(job.tokenizer, folder / "tokenizer")
        write_json(folder / "config.json", vars(job.config))  # last: it says that the folder is a run's


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files, each atomically."""
    make_folder(folder)
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        for path in Path(place).iterdir():
            with replacing(folder / path.name) as file:
                file.write(path.read_bytes())


def summary(folder: Path, job: Job, start: int) -> None:
    """Say what is about to happen, and the disk it will need."""
    config, micro = job.config, job.config.batch_size // job.config.accum_step
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in job.parts.items()}
    mebibytes = sum(millions.values()) * 4e6 / 2**20  # fp32; AdamW keeps two more numbers per parameter
    saved = -(-config.total_step // config.ckpt_step)
    saved = min(saved, config.keep_last or saved)
    say(f"{config.kind} {config.experiment}: {config.task} {config.dataset}, {len(job.tokens)} examples, in {folder}")
    gates = sum(millions.values()) - millions["model"]
    say(
        f"{millions['model']:.1f} M parameters"
        + (f", {len(millions) - 1} gates of {gates:.1f} M in all" if gates else "")
    )
    split = f", split over {distributed.WORLD_SIZE} processes" if distributed.WORLD_SIZE > 1 else ""
    say(f"{config.total_step} steps of {config.batch_size} examples ({config.accum_step} x {micro}{split})")
    disk = (saved + 6) * mebibytes / 1024  # the saved state is three times a checkpoint, and twice there while replaced
    say(f"disk: {saved} checkpoints of {mebibytes:.0f} MiB, {disk:.2f} GiB with the saved state")
    say(f"resuming after step {start}" if start else "starting at step 1")


def batches(job: Job, start: int) -> Iterator[Batch]:
    """Yield the micro-batches of the steps after `start`, without end."""
    config, before = job.config, start * job.config.accum_step
    size = config.batch_size // config.accum_step
    for number, chosen in enumerate(micro_batches(len(job.tokens), size, config.seed, before), before):
        own, fraction = distributed.shard(chosen)
        layout = job.layout(job.tokens.lengths(own), own, number // config.accum_step + 1)
        yield job.tokens.batch(own, layout, fraction)


def drive(folder: Path, job: Job, start: int) -> None:
    """Run the loop from the step after `start` to the end."""
    config = job.config
    guard = NonFiniteGuard(job.groups)
    log = Log(log_folder(folder), job.tag, start, config.total_step, config.log_step, before=guard.raise_if_tripped)

    def save(step: int, shown: Named) -> None:
        due = step % config.ckpt_step == 0 or step == config.total_step
        if distributed.interrupted() or due:
            guard.raise_if_tripped()
            streams = distributed.all_gather(checkpoint.random_streams())
            distributed.on_main_process(lambda: write(step, shown, due, streams))
            interrupt.poll(f"saved after step {step}; the same command goes on from there")

    def write(step: int, shown: Named, due: bool, streams: list[dict[str, Any]]) -> None:
        log.flush()
        if due:
            vectors = {name: value for name, value in shown.items() if value.ndim}
            checkpoint.save_parts(folder, step, job.parts, vectors)
        checkpoint.save_state(folder, step, job.parts, job.groups, streams)  # last: it vouches for all before
        if due and config.keep_last:
            checkpoint.prune(folder, config.keep_last)

    for part in job.parts.values():
        part.train()
    try:
        steps = range(start + 1, config.total_step + 1)
        losses_of = distributed.distribute(job.losses_of, config.accum_step)
        train(steps, config.accum_step, batches(job, start), losses_of, job.groups, guard, log, save)
    finally:
        log.close()
    distributed.on_main_process(lambda: finish(folder, config))


def finish(folder: Path, config: Namespace) -> None:
    """Drop what only a resume needs."""
    if config.keep_last:
        checkpoint.prune(folder, config.keep_last)  # once more: the last time may have been cut short
    checkpoint.remove([folder / checkpoint.STATE])
    say(f"done: {folder / f'model-{config.total_step}.pt'}")
