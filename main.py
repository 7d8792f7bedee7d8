"""Train, evaluate or sample a control: `python main.py --config=configs/quickstart.py --workdir=runs/quickstart`.

Any key can be overridden: `--config.stages.smile.training.num_steps=50`.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

MODES = ("train", "evaluate", "sample")


def main(argv: list[str]) -> int:
    """Runs a mode; returns the exit code. Mistakes of the user print one sentence and return 2."""
    try:
        return run(argv)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, FileNotFoundError, PermissionError) as error:
        if "--debug" in argv:
            raise
        message = error.args[0] if error.args else repr(error)
        print(f"error: {message}" if not isinstance(error, OSError) else f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3


def run(argv: list[str]) -> int:
    """Parses the flags and calls the library."""
    from absl import flags
    from ml_collections import config_flags

    from promptgen_jax import checks

    config_path = next((arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")), None)
    if config_path is not None and not Path(config_path.split(":")[0]).is_file():
        known = [str(path) for path in Path("configs").glob("*.py") if path.stem != "pieces"]
        raise FileNotFoundError(f"--config={config_path}: no such file. {checks.nearest(config_path, known)}")
    values = flags.FlagValues()
    config_flag = config_flags.DEFINE_config_file("config", None, "Path of a config file.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("mode", "train", "train, evaluate or sample.", flag_values=values)
    flags.DEFINE_integer("num_samples", 64, "Images to write in --mode=sample.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of --mode=sample.", flag_values=values)
    flags.DEFINE_list("condition", [], "Angles in degrees of --mode=sample, e.g. 10,-15.", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host:port of process 0 of a multi-host run.", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "Processes of a multi-host run; -1 detects them.", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "Rank of this process.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show the traceback of errors.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values)
    try:
        rest = values(["main.py", *argv])
    except flags.Error as error:
        raise ValueError(_what_a_config_said(str(error))) from None
    except (KeyError, AttributeError) as error:
        raise ValueError(_mistyped_key(str(error.args[0]), argv)) from None
    if values.help:
        print(__doc__, values.main_module_help(), values.get_help(), sep="\n")
        return 0
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}; options look like --workdir=runs/x. See --help.")
    checks.check_known("--mode", values.mode, MODES)
    if values.workdir is None:
        raise ValueError("--workdir is missing: name a folder for the run, e.g. --workdir=runs/quickstart.")
    if values.num_processes:
        from promptgen_jax import sharding

        sharding.start_hosts(values.coordinator, values.num_processes, values.process_id)

    from promptgen_jax import run as runs

    if values.mode == "sample":
        try:
            condition = tuple(map(float, values.condition))
        except ValueError:
            raise ValueError(f"--condition={','.join(values.condition)}: expected degrees, e.g. 10,-15.") from None
        folder = runs.sample(values.workdir, num_samples=values.num_samples, seed=values.seed, condition=condition)
        print(f"wrote {values.num_samples} images to {folder}")
        return 0
    if values.mode == "evaluate":
        config = runs.read_config(Path(values.workdir).resolve())
    elif config_path is None:
        raise ValueError("--config is missing: name a config file, e.g. --config=configs/quickstart.py.")
    else:
        config = config_flag.value.to_dict()
    command = "python main.py " + " ".join(shlex.quote(arg) for arg in argv)
    print(f"report: {runs.train_and_evaluate(config, values.workdir, command=command)}")
    return 0


def _what_a_config_said(message: str) -> str:
    """The last line, without its class, of a traceback that the flag of the config file wraps; else all of it."""
    if "Traceback" not in message:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


def _mistyped_key(message: str, argv: list[str]) -> str:
    """What ml_collections says of a key that a config lacks, nested quotes and two lines, as one sentence."""
    if not message.startswith(("'", '"')):
        return message
    key, near = re.search(r"\w+", message)[0], re.search(r'Did you mean "(\w+)"', message)
    option = next((arg.split("=")[0] for arg in argv if re.search(rf"\.{key}\b", arg)), "--config")
    return f"{option}: the config has no key {key!r}. " + (f"Did you mean {near[1]!r}?" if near else "See its file.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
