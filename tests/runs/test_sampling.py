"""Sampling into folders: the same images whatever the devices, hosts and batches; nothing done twice; bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import free_address, some_prompt, with_devices
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import main
import promptgen_jax as pg
from promptgen_jax import devices, parts
from promptgen_jax.commands.sample import option
from promptgen_jax.devices import compilations_kept
from promptgen_jax.generators import nvae, stylegan2
from promptgen_jax.runs import sampling
from promptgen_jax.store import images

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved prompt of two flows on the shipped generator."""
    folder = tmp_path_factory.mktemp("saved") / "prompt"
    some_prompt(some_prompt(pg.load_generator("dcgan_digiface"), "inner"), "outer").save(folder)
    return folder


KILLED = """
import os, signal, sys
import main
from promptgen_jax import images
save, saved = images.save_png, []

def save_and_die(path, picture):
    saved.append(save(path, picture))
    if len(saved) >= 50:
        os.kill(os.getpid(), signal.SIGKILL)

images.save_png = save_and_die
sys.exit(main.main(sys.argv[1:]))
"""


def start(*arguments, devices=1, program=("main.py",)):
    command = [sys.executable, *program, "--mode=sample", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=with_devices(devices), **pipes)


def finish(process):
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".npz")}


def test_images_on_one_device_killed_and_on_four(saved, tmp_path):
    """Bit-identical files; after a kill what is there is left alone."""
    common = (f"--prompt={saved}", "--num_samples=200", "--npz", "--latents")
    one, four = tmp_path / "one", tmp_path / "four"
    process = start(*common, f"--output={one}", program=("-c", KILLED))
    _, error = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, error
    done = {path.name: path.stat().st_mtime_ns for path in one.glob("0*.png")}
    assert 50 <= len(done) < 200
    assert not list(one.glob("*.npz"))
    output = finish(start(*common, f"--output={one}"))
    assert f"{200 - len(done)} of 200 images left" in output
    assert all((one / name).stat().st_mtime_ns == written for name, written in done.items())
    assert "images/s" in output

    finish(start(*common, f"--output={four}", devices=4))
    assert sum(bool(re.fullmatch(r"\d+\.png", name)) for name in contents(one)) == 200
    assert contents(one) == contents(four)


@pytest.mark.full
def test_two_hosts_share_a_folder(saved, tmp_path):
    common = (f"--prompt={saved}", "--num_samples=50", "--batch_size=4", "--npz")
    hosts = (f"--coordinator={free_address()}", "--num_processes=2")
    both = [start(*common, f"--output={tmp_path / 'two'}", *hosts, f"--process_id={rank}") for rank in (0, 1)]
    outputs = [finish(process) for process in both]
    finish(start(*common, f"--output={tmp_path / 'one'}"))
    assert all("sampling: 25 of 50" in output for output in outputs)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


ROUND_TRIP = """
import jax, numpy as np, promptgen_jax as pg, sys
folder = sys.argv[1]
if jax.device_count() == 4:
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), (pg.FunctionControl(lambda x: 50 * x.mean((1, 2, 3))),))
    prompt, _ = pg.fit(ebm, flow={"hidden_dim": 8, "num_layers": 2}, num_steps=3, batch_size=8, quiet=True)
    prompt.save(folder + "/prompt")
else:
    prompt = pg.Prompt.from_pretrained(folder + "/prompt")
np.save(f"{folder}/{jax.device_count()}.npy", prompt.sample(jax.random.key(3), 10))
"""


@pytest.mark.full
def test_trained_on_four_devices_sampled_on_one(tmp_path):
    """A fresh process without controls, whose batches are of another size, makes the same images."""
    for count in (4, 1):
        command, environment = [sys.executable, "-c", ROUND_TRIP, str(tmp_path)], with_devices(count)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    four, one = (np.load(tmp_path / f"{count}.npy") for count in (4, 1))
    assert four.std() > 0.1
    np.testing.assert_allclose(four, one, atol=1e-5)


@pytest.mark.parametrize("adapter", [stylegan2, pytest.param(nvae, marks=pytest.mark.full)])
def test_sample_i_depends_on_its_number_alone(adapter):
    """Also of a generator with noise of its own."""
    prompt = some_prompt(adapter.tiny())
    whole = prompt.sample(KEY, 7)
    np.testing.assert_allclose(prompt.sample(KEY, 7, batch_size=4), whole, atol=1e-5)
    np.testing.assert_allclose(prompt.sample(KEY, 4), whole[:4], atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 0.01
    assert np.abs(prompt.sample(jax.random.key(1), 7) - whole).max() > 0.01


@pytest.mark.parametrize(("size", "made", "seen"), [(1, 64, 64), (64, 32, 8), (256, 2, 1), (512, 1, 1), (1024, 1, 1)])
def test_images_at_a_time(monkeypatch, size, made, seen):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert (devices.images_at_a_time(size), devices.seen_at_a_time(size)) == (made, seen)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    both = devices.images_at_a_time(size), devices.seen_at_a_time(size)
    assert both == 2 * ({1: 64, 64: 64, 256: 64, 512: 16, 1024: 4}[size],)
    assert (devices.images_at_a_time(size, 5), devices.seen_at_a_time(size, 5)) == (5, 5)


SPARED = """
import sys
from promptgen_jax import commands
assert commands.main(["sample", f"--prompt={sys.argv[1]}", f"--output={sys.argv[2]}", "--num_samples=2"]) == 0
print(*sorted(set(sys.modules) & {"orbax", "optax", "matplotlib", "transformers", "torch", "promptgen_jax.training"}))
"""


def test_sampling_imports_no_training(saved, tmp_path):
    command = [sys.executable, "-c", SPARED, str(saved), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1].split() == []


def test_files_hold_what_they_say(saved, tmp_path):
    """Latents give the images; more images are added to those that are there."""
    prompt = pg.Prompt.from_pretrained(saved)
    lines = []
    pg.write_samples(prompt, tmp_path, num_samples=3, seed=5, say=lines.append)
    (tmp_path / sampling.ABOUT).rename(tmp_path / "samples.json")  # as an earlier release called it
    pg.write_samples(prompt, tmp_path, num_samples=6, seed=5, batch_size=3, npz=True, latents=True, say=lines.append)
    assert "3 of 6 images left" in "".join(lines)
    assert np.asarray(Image.open(tmp_path / "contact_sheet.png")).shape[1] > 6 * 64
    visible = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert visible == {"contact_sheet.png", "images.npz", "latents.npz", *(f"{i:06d}.png" for i in range(6))}
    assert sampling._read(tmp_path, 2).dtype == np.uint8  # floats of 50,000 pictures are 39 GB at 256 pixels
    pictures = np.load(tmp_path / "images.npz")["arr_0"]
    assert (pictures.shape, pictures.dtype) == ((6, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(pictures[4], np.asarray(Image.open(tmp_path / "000004.png")))
    latents = np.load(tmp_path / "latents.npz")
    made = 255 * np.clip(pg.load_generator("dcgan_digiface")(KEY, latents["z"]), 0, 1)
    assert np.abs(made - pictures).max() <= 1
    np.testing.assert_allclose(prompt.generator.latents(prompt.latents(latents["eps"])), latents["z"], atol=1e-4)
    drawn = 255 * np.clip(prompt.sample(jax.random.key(5), 6), 0, 1)
    assert np.abs(drawn - pictures).max() <= 1


@pytest.fixture
def no_cache():
    """JAX without a place for what it compiles."""
    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


def test_compilations_are_the_users_own(saved, tmp_path, no_cache, monkeypatch):
    """Never those of a folder that came from elsewhere; those of this user are not compiled again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    prompt = pg.Prompt.from_pretrained(saved)
    kept, found = tmp_path / "cache" / "promptgen_jax" / "compiled", []
    for name in ("a", "b"):
        jax.clear_caches()
        pg.write_samples(prompt, tmp_path / name, num_samples=2)
        found.append(sorted(path.name for path in kept.iterdir()))
    assert found[0] == found[1] != []
    assert kept.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob("[ab]/compil*"))
    assert not jax.config.jax_compilation_cache_dir
    assert jax.config.jax_persistent_cache_min_compile_time_secs == seconds


def test_compilations_of_others_are_not_used(tmp_path, no_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with compilations_kept():
        assert not jax.config.jax_compilation_cache_dir


def test_options_of_the_generator(tmp_path):
    """Truncation and noise by name, in memory and from the command line; other options make other images."""
    generator = stylegan2.tiny()
    some_prompt(generator).save(tmp_path / "prompt")

    def load(**options):
        return pg.Prompt.load(tmp_path / "prompt", generator=generator.replace(**options))

    assert np.ptp(load(truncation_psi=0.0, noise="none").sample(KEY, 3), axis=0).max() < 1e-5
    pg.write_samples(load(), tmp_path / "samples", num_samples=2)
    with pytest.raises(ValueError, match="another run .differs in fingerprint, generator"):
        pg.write_samples(load(truncation_psi=0.5), tmp_path / "samples", num_samples=2)
    assert option("truncation_psi=0.5") == ("truncation_psi", 0.5)
    assert option("noise=const") == ("noise", "const")


def test_bad_folders(saved, tmp_path):
    prompt = pg.Prompt.from_pretrained(saved)
    pg.write_samples(prompt, tmp_path / "a", num_samples=1)
    before = contents(tmp_path / "a")
    with pytest.raises(ValueError, match="another run .differs in seed"):
        pg.write_samples(prompt, tmp_path / "a", num_samples=1, seed=1)
    with pytest.raises(ValueError, match="another run .differs in fingerprint, prompt"):
        pg.write_samples(prompt.generator, tmp_path / "a", num_samples=1)
    assert contents(tmp_path / "a") == before
    (tmp_path / "a" / sampling.ABOUT).unlink()
    with pytest.raises(ValueError, match=r"pictures but no \.samples\.json"):
        pg.write_samples(prompt, tmp_path / "a", num_samples=1)


def test_a_folder_is_of_one_prompt_with_one_choice_of_options(tmp_path):
    """Also of options that leave all arrays as they are."""
    generator = stylegan2.tiny()
    prompt = some_prompt(generator)
    pg.write_samples(prompt, tmp_path, num_samples=1)
    flow = prompt.flow.replace(module=prompt.flow.module.clone(negative_slope=0.3))
    for other in (prompt.replace(flow=flow), prompt.replace(generator=generator.replace(noise="const"))):
        with pytest.raises(ValueError, match="another run .differs in fingerprint"):
            pg.write_samples(other, tmp_path, num_samples=1)
    pg.write_samples(prompt.with_note("of a card", "changes nothing"), tmp_path, num_samples=1)


def test_truncated_noise_is_nearer_to_the_mean(tmp_path):
    """And a folder is of one truncation."""
    prompt = some_prompt(stylegan2.tiny())
    for name, truncation in (("whole", 1.0), ("half", 0.5)):
        pg.write_samples(prompt, tmp_path / name, num_samples=2, truncation=truncation, latents=True)
    with np.load(tmp_path / "whole" / "latents.npz") as whole, np.load(tmp_path / "half" / "latents.npz") as half:
        np.testing.assert_allclose(half["eps"], 0.5 * whole["eps"], rtol=1e-5, atol=1e-6)
        made = images.to_uint8(pg.draws.images_of(prompt, pg.draws.sample_keys(KEY, np.arange(2)), half["eps"]))
    written = np.stack([np.asarray(Image.open(tmp_path / "half" / f"{number:06d}.png")) for number in range(2)])
    assert np.abs(written.astype(int) - made).max() <= 1
    with pytest.raises(ValueError, match="another run .differs in truncation"):
        pg.write_samples(prompt, tmp_path / "half", num_samples=1)


def test_a_folder_from_before_an_option_of_the_generator_goes_on(saved, tmp_path):
    prompt, about, lines = pg.Prompt.load(saved), tmp_path / sampling.ABOUT, []
    pg.write_samples(prompt, tmp_path, num_samples=1)
    told = json.loads(about.read_text())
    del told["generator"]["options"]["precision"]
    about.write_text(json.dumps(told))
    pg.write_samples(prompt, tmp_path, num_samples=2, say=lines.append)
    assert "1 of 2 images left" in lines[0]


def test_a_folder_of_version_0_1_goes_on(tmp_path):
    """One that it sampled of a prompt that it saved; of another prompt it is refused and left as it was."""
    prompt = pg.Prompt.load(GOLDEN / "prompt_0_1")
    about = tmp_path / sampling.ABOUT
    shutil.copy(GOLDEN / "prompt_0_1" / "samples.json", tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "000000.png")
    cond, lines = np.array([0.1, 0.2]), []
    changed = prompt.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, prompt.params))
    with pytest.raises(ValueError, match=r"another run .*fingerprint"):
        pg.write_samples(changed, tmp_path, num_samples=2, cond=cond)
    assert about.read_bytes() == (GOLDEN / "prompt_0_1" / "samples.json").read_bytes()
    pg.write_samples(prompt, tmp_path, num_samples=2, cond=cond, say=lines.append)
    assert "1 of 2 images left" in lines[0]
    assert json.loads(about.read_text())["fingerprint"] == parts.fingerprint(prompt)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--prompt={saved}",), "--output is missing"),
        (("--prompt={tmp}/no", "--output={tmp}/x"), "no such folder"),
        (("--prompt={tmp}/other_version", "--output={tmp}/x"), "format_version 7; this release reads 1"),
        (("--prompt={tmp}/other_generator", "--output={tmp}/x"), "sha256 000000000000…"),
        (("--prompt={tmp}/damaged", "--output={tmp}/x"), "generator.checksum is missing. Save the prompt again."),
        (("--prompt={saved}", "--output={tmp}/x", "--num_samples=0"), "num_samples: got 0"),
        (("--prompt={saved}", "--output={tmp}/x", "--num_samples=many"), "--num_samples=many: expected an integer."),
        (("--prompt={saved}", "--output={tmp}/x", f"--seed={2**64}"), "seed: got 18446744073709551616; expected an"),
        (("--prompt={tmp}/half", "--output={tmp}/x"), "half/flow_1: missing or incomplete. Copy the whole folder"),
        (("--prompt={saved}", "--output={tmp}/bad_json"), "samples.json: not valid JSON"),
        (("--workdir={tmp}/bad_json",), "config.json: not valid JSON"),
        (("--workdir={tmp}/old", "--output={tmp}/x"), "- config: generator is missing. Add it."),
        (
            ("--workdir={tmp}/begun", "--output={tmp}/x"),
            "its stage smile is not trained to the end. Repeat the command",
        ),
        (("--workdir={tmp}/begun", "--mode=evaluate"), "its stage smile is not trained to the end. Repeat the command"),
        (("--prompt={saved}", "--output={tmp}/x", "--batch_size=-1"), "batch_size: got -1"),
        (("--prompt={saved}", "--output={tmp}/x", "--condition=3,4"), "this prompt takes no condition"),
        (("--prompt={saved}", "--output={tmp}/x", "--options=psi"), "expected name=value"),
        (("--prompt={saved}", "--output={tmp}/x", "--truncation=1.5"), "truncation is 1.5; expected a number above 0"),
        (("--prompt={saved}", "--output={tmp}/x", "--options=weight=dcgan_digiface"), "'weights'"),
        (("--prompt={saved}", "--output=/proc/x"), "cannot be made"),
        (("--workdir={tmp}/x",), "Train first"),
    ],
    ids=range(21),
)
def test_bad_input(arguments, match, saved, tmp_path, capsys):
    about = json.loads((saved / "prompt.json").read_text())
    wrong = {
        "other_version": {"format_version": 7},
        "other_generator": {"generator": {"name": "dcgan_digiface", "checksum": 64 * "0"}},
        "damaged": {"generator": {"name": "dcgan_digiface"}},
    }
    for name, change in wrong.items():
        shutil.copytree(saved, tmp_path / name)
        (tmp_path / name / "prompt.json").write_text(json.dumps(about | change))
    shutil.copytree(saved, tmp_path / "half", ignore=shutil.ignore_patterns("flow_1"))
    begun = json.dumps(
        {"generator": {"name": "dcgan_digiface"}, "stages": {"smile": {"controls": {"a": {"kind": "synthetic"}}}}}
    )
    for name, content in (("bad_json", "{"), ("old", '{"seed": 1}'), ("begun", begun)):
        (tmp_path / name).mkdir()
        for file in ("config.json", "samples.json"):
            (tmp_path / name / file).write_text(content)
    assert main.main(["--mode=sample", *(each.format(tmp=tmp_path, saved=saved) for each in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert match in error
    assert "Traceback" not in error
    assert not (tmp_path / "x").exists()
