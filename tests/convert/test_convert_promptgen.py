"""The converter of official checkpoints: what it takes from a file, and what it says about a wrong one."""

import json
import re

import jax
import numpy as np
import official
import pytest
import torch

from convert import promptgen_to_flax
from promptgen_jax.flows.base import load_flow
from promptgen_jax.store import weights

INNER = "gan_wrapper.generator."
LAYERS = "eps_to_z.module_list."


def normal(key, *shape):
    return np.random.RandomState(sum(key.encode())).standard_normal(shape).astype(np.float32)


def inn(prefix, *, dim=6, hidden=5, cond_dim=0, num_layers=2):
    """One flow in official layout."""
    state, half = {}, dim // 2
    for layer in range(num_layers):
        name = f"{prefix}module_list.{layer}."
        state |= {name + key: normal(name + key, 1, dim) for key in ("global_scale", "global_offset")}
        state |= {name + "subnet.0.weight": normal(name + "a", hidden, dim - half + cond_dim)}
        state |= {name + "subnet.0.bias": normal(name + "b", hidden)}
        state |= {name + "subnet.2.weight": normal(name + "c", 2 * half, hidden)}
        state |= {name + "subnet.2.bias": normal(name + "d", 2 * half)}
        rotation = np.linalg.qr(normal(name + "e", dim, dim))[0]
        state |= {name + "w_perm": rotation, name + "w_perm_inv": rotation.T.copy()}
    return state


def checkpoint(**options):
    """A whole run: flow, fixed evaluation noise, frozen generator and control."""
    return inn("module.eps_to_z.", **options) | {
        "module.fixed_eps": normal("fixed_eps", 10, options.get("dim", 6)),
        "module.gan_wrapper.mean_latent": normal("mean_latent", 6),
        "module.gan_wrapper.generator.style.1.weight": normal("style", 4, 4),
        "module.energy_modules.0.class_type2lambda.age": normal("age", 9),
        "module.energy_modules_paired.0.facenet.weight": normal("facenet", 3),
    }


def nested(outer, inner):
    """Iterated control: a run whose generator is a whole run."""
    inner = {key.replace("module.", "module." + INNER, 1): value for key, value in inner.items()}
    return {key: value for key, value in outer.items() if not key.startswith("module." + INNER)} | inner


def run(tmp_path, state, *arguments):
    official.write_bin(tmp_path / "in.bin", state)
    return promptgen_to_flax.main([str(tmp_path / "in.bin"), str(tmp_path / "out"), *arguments])


def test_flow(tmp_path):
    state = checkpoint(cond_dim=3, num_layers=3)
    assert run(tmp_path, state) == 0
    flow, params = load_flow(tmp_path / "out")
    assert flow.prior.blocks == (6,)
    assert flow.cond_dim == 3
    assert (flow.module.num_layers, flow.module.hidden_dim, flow.module.clamp) == (3, 5, "tanh")
    for name, value in official.by_official_name(params).items():
        np.testing.assert_array_equal(value, state["module.eps_to_z." + name])
    tree, config = weights.load_weights(tmp_path / "out")
    assert config["kind"] == "flow"
    np.testing.assert_array_equal(tree["extras"]["fixed_eps"], state["module.fixed_eps"])
    np.testing.assert_array_equal(tree["extras"]["mean_latent"], state["module.gan_wrapper.mean_latent"])


def test_a_run_on_one_gpu_has_no_prefix(tmp_path):
    assert run(tmp_path, {key.removeprefix("module."): value for key, value in checkpoint().items()}) == 0
    single = load_flow(tmp_path / "out")[1]
    assert run(tmp_path, checkpoint()) == 0
    jax.tree.map(np.testing.assert_array_equal, single, load_flow(tmp_path / "out")[1])


def test_levels(tmp_path):
    outer, inner = checkpoint(), checkpoint(dim=8)
    for level, (wanted, dim) in enumerate([(outer, 6), (inner, 8)]):
        assert run(tmp_path, nested(outer, inner), f"--level={level}") == 0
        flow, params = load_flow(tmp_path / "out")
        assert flow.prior.dim == dim
        got = official.by_official_name(params)["module_list.1.subnet.2.bias"]
        np.testing.assert_array_equal(got, wanted["module." + LAYERS + "1.subnet.2.bias"])
        tree, _ = weights.load_weights(tmp_path / "out")
        np.testing.assert_array_equal(tree["extras"]["fixed_eps"], wanted["module.fixed_eps"])


@pytest.mark.parametrize("given", [None, 0.7], ids=["from_the_embedding", "given"])
def test_biggan_is_one_flow_with_two_blocks(tmp_path, given):
    embedding = normal("embedding", 4, 10)
    state = checkpoint() | inn("module.xi_to_y.", dim=4) | {"module.fixed_xi": normal("fixed_xi", 10, 4)}
    state |= {} if given else {"module.gan_wrapper.generator.embeddings.weight": embedding}
    assert run(tmp_path, state, *([f"--y_scale={given}"] if given else [])) == 0
    flow, params = load_flow(tmp_path / "out")
    assert flow.prior.blocks == (6, 4)
    y_scale = given or np.sqrt(np.mean(embedding**2))
    np.testing.assert_allclose(flow.prior.scale, [1.0] * 6 + [y_scale] * 4, rtol=1e-6)
    got = official.by_official_name(params, 1)["module_list.0.global_scale"]
    np.testing.assert_array_equal(got, state["module.xi_to_y.module_list.0.global_scale"])


def test_betas(tmp_path):
    state = {f"module.class_type2lambda.{name}": normal(name, size) for name, size in [("race", 7), ("age", 9)]}
    frozen = ("gan_wrapper.generator.style.1.weight", "classifier.fc.weight", "fixed_z")
    state |= {f"module.{name}": normal(name, 2) for name in frozen}
    assert run(tmp_path, state, "--beta") == 0
    tree, config = weights.load_weights(tmp_path / "out")
    assert config["kind"] == "beta"
    assert {name: len(labels) for name, labels in config["attributes"].items()} == {"race": 7, "age": 9}
    for name in ("race", "age"):
        np.testing.assert_array_equal(tree[name], state[f"module.class_type2lambda.{name}"])


def without(*keys):
    return {key: value for key, value in checkpoint().items() if key not in keys}


def changed(key, change):
    state = checkpoint()
    return state | {key: change(state[key])}


BETAS = {"module.class_type2lambda.age": np.zeros(9, np.float32)}
FIRST = "module." + LAYERS + "0."
BAD_FILES = {
    "missing": (
        without(FIRST + "w_perm", FIRST + "subnet.0.bias"),
        (),
        "2 problems: missing .*0.subnet.0.bias; missing",
    ),
    "unexpected": (checkpoint() | {"module.surprise": np.zeros(1)}, (), "unexpected module.surprise"),
    "nan": (changed(FIRST + "global_scale", lambda a: a * np.nan), (), "global_scale holds NaN"),
    "shape": (changed(FIRST + "subnet.2.bias", lambda a: a[:-1]), (), r"Dense_1/bias is \(5,\), expected \(6,\)"),
    "layout": (changed(FIRST + "subnet.0.weight", lambda a: a[0]), (), "Dense_0/kernel cannot be made from"),
    "rotation": (changed(FIRST + "w_perm", lambda a: 1.01 * a), (), "are not rotations"),
    "transpose": (changed(FIRST + "w_perm_inv", lambda a: a.T.copy()), (), "are not rotations and their transposes"),
    "mixed-widths": (checkpoint() | inn("module.eps_to_z.", dim=4, num_layers=1), (), "rotations cannot be made from"),
    "level": (checkpoint(), ("--level=1",), "Flows are at level 0; pass one of them as --level"),
    "no-embedding": (checkpoint() | inn("module.xi_to_y.", dim=4), (), "missing .*embeddings.weight"),
    "betas-as-flow": (BETAS, (), "It holds betas; pass --beta"),
    "flow-as-betas": (checkpoint(), ("--beta",), "leave out --beta for a flow"),
    "beta-length": ({"module.class_type2lambda.age": np.zeros(8)}, ("--beta",), r"age is \(8,\), expected \(9,\)"),
    "other-model": ({"fc.weight": np.zeros(3)}, (), "no tensor begins with 'module.'"),
}


@pytest.mark.parametrize(("state", "arguments", "match"), BAD_FILES.values(), ids=BAD_FILES)
def test_wrong_files(tmp_path, capsys, state, arguments, match):
    assert run(tmp_path, state, *arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'in.bin'}: ")
    assert message.count("\n") == 1
    assert re.search(match, message), message
    assert not (tmp_path / "out").exists()


def test_damaged_files(tmp_path, capsys):
    official.write_bin(tmp_path / "whole.bin", checkpoint())
    content = (tmp_path / "whole.bin").read_bytes()
    torch.save([1, 2], tmp_path / "list.bin")
    torch.save({"module.eps_to_z.x": 1.0}, tmp_path / "number.bin")
    cases = {"truncated": content[: len(content) // 2], "text": b"404 not found", "empty": b""}
    for name, damaged in cases.items():
        (tmp_path / f"{name}.bin").write_bytes(damaged)
    for name in [*cases, "list", "number", "absent"]:
        assert promptgen_to_flax.main([str(tmp_path / f"{name}.bin"), str(tmp_path / "out")]) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"error: {tmp_path / name}.bin: "), message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_an_existing_folder_survives_an_error(tmp_path):
    assert run(tmp_path, checkpoint()) == 0
    before = json.loads((tmp_path / "out" / "config.json").read_text())
    assert run(tmp_path, without(FIRST + "w_perm")) == 1
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == before
    load_flow(tmp_path / "out")
