"""When, where and with what a page is made."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import jax

from promptgen_jax import __version__
from promptgen_jax.store import home

VERSIONS = ("jax", "flax", "optax", "distrax", "orbax-checkpoint", "numpy")


def how(command: str) -> dict:
    """When, where, by which command and with which versions a page is made; the commit only in a clone."""
    ours = {"promptgen_jax": __version__} | ({"commit": found} if (found := commit()) else {})
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "command": command,
        "versions": {
            **ours,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONS},
        },
    }


def commit() -> str:
    """The commit of the clone that the library is used from, and whether files differ from it; "" without one."""
    if not (home.in_clone() and (home.folder() / ".git").exists()):
        return ""
    call = ["git", "-C", str(home.folder()), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or a folder that it does not trust
        return ""
    return done.stdout.strip().replace("-dirty", " with changes")


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _hardware() -> str:
    device = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {device}, {processor()}, {os.cpu_count()} cores, {platform.machine()}"
