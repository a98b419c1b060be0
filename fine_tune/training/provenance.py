"""Where a run comes from, as tensorboard shows it: command, settings and versions, and its row under HPARAMS."""

import hashlib
import json
import shlex
import subprocess
import sys
from argparse import Namespace
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb

from fine_tune.cli.runs import NOT_FLAGS, PROJECT_ROOT, shared_settings


def texts(config: Namespace) -> dict[str, str]:
    """Return what tensorboard shows as text, in Markdown, by name."""
    versions = vars(config)["versions"] | {"git commit": git_commit()}
    flags = {name: value for name, value in sorted(vars(config).items()) if name not in ("versions", "encoder")}
    return {"command": command(["python", *sys.argv]), "config": table(flags), "versions": table(versions)}


def command(words: list[str]) -> str:
    """Return a command as a block of Markdown, with a line break before the first flag beyond each 80 columns."""
    lines = [""]
    for word in words:
        if word.startswith("--") and len(lines[-1]) > 80:
            lines.append("    ")
        lines[-1] += f"{shlex.quote(word)} "
    return "    " + "\\\n    ".join(lines).rstrip()


def table(values: dict[str, Any]) -> str:
    """Return names and values as a table in Markdown."""
    rows = (f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in values.items())
    return "\n".join(["| name | value |", "|---|---|", *rows])


def git_commit() -> str:
    """Return the commit of the project's own repository, and whether files differ from it; "unknown" without one."""
    described = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= with changes"]
    try:
        top, commit = (
            subprocess.run(
                ["git", "-C", PROJECT_ROOT, *words], check=True, capture_output=True, text=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "--show-toplevel"], described)
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit if top == str(PROJECT_ROOT) else "unknown"  # a repository that the project was put into


def hparams(config: Namespace) -> Summary:
    """Return the row of a run under HPARAMS: repeats of a run with other seeds share one, by the hash of the rest."""
    settings = shared_settings(vars(config))
    content = json.dumps(settings, sort_keys=True, default=str).encode()
    shown = {name: value for name, value in settings.items() if name not in NOT_FLAGS or name == "method"}
    plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in shown.items()}
    return hparams_pb(plain, trial_id=hashlib.sha256(content).hexdigest()[:16])
