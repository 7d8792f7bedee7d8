"""Train a control: `python main.py --config=configs/quickstart.py --workdir=runs/quickstart`.

Any key can be overridden: `--config.stages.smile.training.num_steps=50`. What else it can do, by --mode:

  evaluate  measures a finished run again: --workdir
  sample    writes pictures: --workdir of a finished run, or --prompt and --output; --num_samples and more below
  list      generators, controls, configs, and which weights are there
  doctor    versions and devices, and whether the shipped networks compute the right thing on this hardware
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
import traceback
import warnings
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
MODES = ("train", "evaluate", "sample", "list", "doctor")
HOSTS = ("coordinator", "num_processes", "process_id")
TAKES = {  # beside --mode, --debug and --help
    "train": ("config", "workdir", *HOSTS),
    "evaluate": ("config", "workdir", *HOSTS),
    "sample": (
        *("workdir", "prompt", "output", "num_samples", "batch_size", "seed", "condition", "options"),
        *("latents", "npz", "mixture", "stage", *HOSTS),
    ),
    "list": (),
    "doctor": (),
}


def main(argv: list[str]) -> int:
    """Runs a mode; returns the exit code. Mistakes of the user print one sentence and return 2."""
    try:
        return run(argv)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except Exception as error:  # a config file and the accelerator's libraries raise what they like
        if "--debug" in argv:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"interrupted: {error or 'at once'}; the same command goes on from what was written.", file=sys.stderr)
        return 130


def _sentence(error: Exception) -> str:
    """What to tell of an error; one that Python raised for lack of a name says nothing alone."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}. Correct the file."
    if isinstance(error, AssertionError):
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"{last.filename}, line {last.lineno}: {last.line} does not hold{f': {error}' if str(error) else ''}."
    if not isinstance(error, (ValueError, TypeError, ImportError, OSError, RuntimeError)) or not str(error):
        return f"{error!r}. Run it again with --debug to see where."
    return str(error) if isinstance(error, OSError) or not error.args else str(error.args[0])


def run(argv: list[str]) -> int:
    """Parses the flags and calls the library."""
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from promptgen_jax import checks

    config_path, mode = _value_of(argv, "--config"), _value_of(argv, "--mode") or "train"
    stored = _stored_config(argv) if mode == "evaluate" and config_path is None else None
    if config_path is not None and not Path(config_path.split(":")[0]).is_file():
        known = [os.path.relpath(path) for path in CONFIGS.glob("*.py") if path.stem != "pieces"]
        raise FileNotFoundError(f"--config={config_path}: no such file. {checks.nearest(config_path, known)}")
    values = flags.FlagValues()
    if stored is None:
        config_flag = config_flags.DEFINE_config_file("config", None, "Path of a config file.", flag_values=values)
    else:
        config_flag = config_flags.DEFINE_config_dict(
            "config", ConfigDict(stored), "Of the run.", flag_values=values, sys_argv=["main.py", *argv]
        )
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("mode", "train", ", ".join(MODES), flag_values=values)
    flags.DEFINE_string("prompt", None, "sample: folder of a saved prompt, or its name on the Hub.", flag_values=values)
    flags.DEFINE_string("output", None, "sample: folder of the pictures, default WORKDIR/samples.", flag_values=values)
    flags.DEFINE_integer("num_samples", 64, "sample: noises to draw.", flag_values=values)
    flags.DEFINE_integer("batch_size", 16, "sample: images per device at a time.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "sample: of the noise.", flag_values=values)
    flags.DEFINE_list(
        "condition", [], "sample: angles in degrees, e.g. 10,-15; without, a grid of them.", flag_values=values
    )
    flags.DEFINE_list(
        "options", [], "sample: of the generator, e.g. truncation_psi=0.5,noise=const.", flag_values=values
    )
    flags.DEFINE_string("mixture", "", "sample: group of stages that a run has, by name.", flag_values=values)
    flags.DEFINE_string("stage", "", "sample: stage of the run, default the last one.", flag_values=values)
    flags.DEFINE_bool("latents", False, "sample: also write latents.npz.", flag_values=values)
    flags.DEFINE_bool("npz", False, "sample: also write images.npz.", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host:port of process 0 of a multi-host run.", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "Processes of a multi-host run; -1 detects them.", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "Rank of this process.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show the traceback of errors.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", flag_values=values)
    try:
        rest = values(["main.py", *argv])
    except flags.Error as error:
        raise ValueError(_what_a_flag_said(str(error))) from None
    except (KeyError, AttributeError) as error:
        raise ValueError(_mistyped_key(str(error.args[0]), argv)) from None
    if values.help:
        print(__doc__, values.main_module_help(), values.get_help(), sep="\n")
        return 0
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}; options look like --workdir=runs/x. See --help.")
    checks.check_known("--mode", values.mode, MODES)
    _check_taken(values.mode, argv, values)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if values.mode == "list":
        from promptgen_jax.runs import inventory

        print(inventory.describe(CONFIGS))
        return 0
    if values.mode == "doctor":
        from promptgen_jax.runs import doctor

        return doctor.examine()
    if values.mode == "sample" and values.prompt is not None:
        if values.output is None:
            raise ValueError("--output is missing: name a folder for the pictures, e.g. --output=samples.")
    elif values.workdir is None:
        raise ValueError("--workdir is missing: name a folder for the run, e.g. --workdir=runs/quickstart.")
    if values.num_processes:
        from promptgen_jax import devices

        devices.start_hosts(values.coordinator, values.num_processes, values.process_id)
    if values.mode == "sample":
        print(f"pictures: {_sample(values)}")
        return 0

    from promptgen_jax.runs import run as runs

    if values.mode == "evaluate":
        runs.read_config(values.workdir)
    elif config_path is None:
        raise ValueError("--config is missing: name a config file, e.g. --config=configs/quickstart.py.")
    config = config_flag.value.to_dict()
    command = "python main.py " + " ".join(shlex.quote(arg) for arg in argv)
    print(f"report: {runs.train_and_evaluate(config, values.workdir, command=command)}")
    return 0


def _value_of(argv: list[str], flag: str) -> str | None:
    """What follows a flag, with an equals sign or a blank; None without it."""
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else next(words, "")
    return None


def _stored_config(argv: list[str]) -> dict | None:
    """The config of the finished run that --workdir names, for --config.<key>=<value> to change how it is measured."""
    from promptgen_jax.runs import run as runs

    workdir = _value_of(argv, "--workdir")
    return runs.read_config(workdir) if workdir else None


def _check_taken(mode: str, argv: list[str], values) -> None:
    """Raises ValueError for a flag that a mode would ignore."""
    from promptgen_jax import checks

    given = [arg.partition("=")[0].removeprefix("--").removeprefix("no") for arg in argv if arg.startswith("--")]
    for name in given:
        flag = "config" if name.startswith("config") else name
        owners = [other for other, flags in TAKES.items() if flag in flags]
        if owners and mode not in owners:
            near = checks.nearest(f"--{name}", [f"--{each}" for each in (*TAKES[mode], "mode", "debug", "help")])
            raise ValueError(f"--{name}: not used by --mode={mode}, but by {' and '.join(owners)}. {near}")


def _sample(values) -> Path:
    """Writes pictures of a run or a saved prompt, as the flags say."""
    from promptgen_jax import Prompt
    from promptgen_jax.runs import run as runs

    options = dict(_option(text) for text in values.options)
    if values.prompt is not None:
        prompts, output = {"": Prompt.from_pretrained(values.prompt, **options)}, Path(values.output)
    else:
        prompts = runs.load_prompts(values.workdir, mixture=values.mixture, stage=values.stage, **options)
        output = Path(values.output or Path(values.workdir) / "samples")
    for name, prompt in prompts.items():
        _write(prompt, output / name, values, -(-values.num_samples // len(prompts)))
    return output


def _write(prompt, folder: Path, values, num_samples: int) -> None:
    from promptgen_jax.runs import sampling

    sampling.write_samples(
        prompt,
        folder,
        num_samples=num_samples,
        seed=values.seed,
        batch_size=values.batch_size,
        cond=_conditions(prompt, values.condition),
        latents=values.latents,
        npz=values.npz,
    )


def _option(text: str) -> tuple:
    """`name=value`, the value a number, True, False, or else text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--options={text}: expected name=value, e.g. truncation_psi=0.7.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _conditions(prompt, angles: list[str]):
    """The condition of the command line in radians, a grid if it names none, or None for a prompt without."""
    import numpy as np

    from promptgen_jax import checks

    dim, names = prompt.flow.cond_dim, prompt.conditions.names if prompt.conditions else ()
    try:
        condition = np.radians(np.array(angles, np.float32))
        checks.check_finite("--condition", "angles", condition)
    except ValueError:
        raise ValueError(f"--condition={','.join(angles)}: expected degrees, e.g. 10,-15.") from None
    if len(condition) and not dim:
        raise ValueError(f"--condition={','.join(angles)}: this prompt takes no condition. Leave it out.")
    if len(condition) not in (0, dim):
        expected = f"{dim} angles{' (' + ', '.join(names) + ')' if names else ''}"
        raise ValueError(f"--condition={','.join(angles)}: {len(condition)} given; expected {expected}, or none.")
    if len(condition) or not dim:
        return condition if dim else None
    if prompt.conditions is None:
        raise ValueError(f"--condition is missing: this prompt takes {dim} angles in degrees.")
    return prompt.conditions.grid()


def _what_a_flag_said(message: str) -> str:
    """Of a traceback that the flag of the config file wraps, the last line without its class; else all, but plainer."""
    if "invalid literal for int" in message:
        return f"{message.partition(':')[0]}: expected an integer."
    if "Traceback" not in message:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


def _mistyped_key(message: str, argv: list[str]) -> str:
    """What ml_collections says of a key that a config lacks, nested quotes and two lines, as one sentence."""
    if "'get_config'" in message:
        return "--config: this file is no config, it has no get_config. Choose another one of configs/."
    if not message.startswith(("'", '"')):
        return message
    key, near = re.search(r"\w+", message)[0], re.search(r'Did you mean "(\w+)"', message)
    option = next((arg.split("=")[0] for arg in argv if re.search(rf"\.{key}\b", arg)), "--config")
    return f"{option}: the config has no key {key!r}. " + (f"Did you mean {near[1]!r}?" if near else "See its file.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
