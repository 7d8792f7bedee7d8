"""Flows of the user's own: the one of the documentation from training to a fresh process, and what is refused."""

import os
import subprocess
import sys

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

import promptgen_jax as pg
from promptgen_jax.evaluation.closed_forms import linear_target
from promptgen_jax.flows.base import build_module, init_flow, load_flow, save_flow
from promptgen_jax.runs.config import RunConfig

KEY, PRIOR = jax.random.key(0), pg.Prior.standard(2)
FRESH = """
import sys
import jax, numpy as np
import promptgen_jax as pg
generator = pg.load_generator("synthetic", problem="linear", dim=2)
prompt = pg.Prompt.load("my_chain", generator=generator, trust="mypackage")
np.save("fresh.npy", prompt.sample(jax.random.key(5), 8))
"""
MODULES = {
    "made": "def build(prior, *, made): return made",
    "shear": """
        import distrax, jax.numpy as jnp

        class Shear:
            num_params = 1

            def __call__(self, shift):
                return distrax.ScalarAffine(self.factor * shift)

        def build(*, factor=2.0):
            shear = Shear()
            shear.factor = factor
            return shear
        """,
    "flat": """
        import distrax, jax.numpy as jnp

        class Flat:
            def __init__(self, bijector): self.made = bijector
            def init(self, key): return (jnp.zeros(3), [{"scale": jnp.ones(2)}])
            def bijector(self, params): return self.made(params)

        class OneWay(distrax.Bijector):
            def __init__(self): super().__init__(event_ndims_in=1)
            def forward_and_log_det(self, x): return x, jnp.zeros(x.shape[:-1])

        BIJECTORS = {
            "scale": lambda params: distrax.ScalarAffine(params[0][:2], scale=params[1][0]["scale"]),
            "wide": lambda params: distrax.ScalarAffine(params[0]),
            "whole": lambda params: distrax.Block(distrax.ScalarAffine(params[0][:2]), 2),
            "one way": lambda params: OneWay(),
        }

        def build(prior, *, bijector="scale", num=1): return Flat(BIJECTORS[bijector])
        """,
    "nothing": "def build(prior): return prior",
    "priorless": "def build(num_layers=2): return None",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with importable packages: `mine` of the modules above, and the documentation's `mypackage`."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine").mkdir()
    for name, text in MODULES.items():
        lines = text.splitlines()
        (folder / "mine" / f"{name}.py").write_text("\n".join(line.removeprefix(8 * " ") for line in lines) + "\n")
    for block in pages.blocks(pages.ROOT / "docs" / "extending.md"):
        if block.title == "mypackage/chain.py":
            pages.write_module(block, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        yield folder


def test_chain_of_the_documentation(package):
    """It trains on an exact bench, is certified, saved, loaded in a fresh process, and by consent alone."""
    blocks = pages.blocks(pages.ROOT / "docs" / "extending.md")
    (trained,) = (
        block.content for block in blocks if block.language == "python" and "mypackage.chain" in block.content
    )
    names = {"jax": jax, "pg": pg}
    exec(trained, names)
    prompt, bench = names["prompt"], names["bench"]
    certificate = pg.certify(prompt, bench, KEY)
    exact = linear_target(bench.generator, [1.0, -1.0], 0.5)
    print(certificate)
    assert certificate.verdict == "good"
    assert certificate.reverse_kl < 0.05
    assert abs(certificate.log_z - exact.log_z) < 0.05
    assert prompt.flow.spec.to_json() == {"kind": "mypackage.chain", "options": {"num_layers": 2, "num_bins": 4}}

    pictures = prompt.sample(jax.random.key(5), 8)
    np.testing.assert_array_equal(names["again"].sample(jax.random.key(5), 8), pictures)
    paths = os.pathsep.join([str(package), str(pages.ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", FRESH], check=True, env=environment, cwd=package, timeout=300)
    np.testing.assert_array_equal(np.load("fresh.npy"), pictures)
    for trust in ((), "mine"):
        with pytest.raises(
            ValueError, match="my_chain/flow_0: names a part of the package 'mypackage'.*trust='mypackage'"
        ):
            pg.Prompt.load("my_chain", generator=bench.generator, trust=trust)


def test_config_names_an_own_flow(package):
    stage = {"controls": {"near": {"kind": "synthetic", "energy": "quadratic", "target": [1.0, -1.0]}}}
    config = {"generator": {"name": "synthetic", "problem": "linear", "dim": 2}, "stages": {"mine": stage}}
    stage["flow"] = {"kind": "mypackage.chain", "num_bins": 3}
    RunConfig.from_dict(config).load_parts()
    stage["flow"] = {"kind": "mypackage.chain", "num_bin": 3}
    with pytest.raises(ValueError, match="mypackage.chain: option: unknown name 'num_bin'. Did you mean 'num_bins'"):
        RunConfig.from_dict(config).load_parts()


def test_any_pytree_of_parameters_is_saved(package, tmp_path):
    """Tuples and lists too, under an elementwise bijector."""
    flow, params = init_flow(KEY, PRIOR, kind="mine.flat")
    params = jax.tree.map(lambda leaf: leaf + 0.5 + jnp.arange(leaf.size), params)
    save_flow(tmp_path / "flow", flow, params)
    again, found = load_flow(tmp_path / "flow", trust=["mine"])
    assert jax.tree.structure(found) == jax.tree.structure(params)
    eps = PRIOR.sample(KEY, 3)
    z, log_det = again.forward_and_log_det(found, eps)
    np.testing.assert_allclose(z, eps * jnp.array([1.5, 2.5]) + jnp.array([0.5, 1.5]), rtol=1e-6)
    np.testing.assert_allclose(log_det, np.log(1.5 * 2.5), rtol=1e-6)
    np.testing.assert_array_equal(again.forward_and_log_dets(found, eps)[1][0], log_det)
    with pytest.raises(ValueError, match="the package 'mine'"):
        load_flow(tmp_path / "flow")


def test_own_transformer(package, tmp_path):
    transformer = {"kind": "mine.shear", "factor": 3.0}
    flow, params = init_flow(KEY, PRIOR, architecture="coupling", num_layers=2, hidden_dim=4, transformer=transformer)
    eps = PRIOR.sample(KEY, 3)
    moved = jax.tree.map(lambda leaf: leaf + 0.3, params)
    z, log_det = flow.forward_and_log_det(moved, eps)
    assert np.all(np.asarray(log_det) == 0)
    assert np.all(z != eps)
    np.testing.assert_allclose(flow.inverse_and_log_det(moved, z)[0], eps, atol=1e-5)
    save_flow(tmp_path / "flow", flow, moved)
    with pytest.raises(ValueError, match="the package 'mine'"):
        load_flow(tmp_path / "flow")
    again, found = load_flow(tmp_path / "flow", trust="mine")
    assert again.module == flow.module
    np.testing.assert_array_equal(again.forward_and_log_det(found, eps)[0], z)


def test_splines_train():
    """On the exact bench, from the identity and closer to the target."""
    bench = pg.LatentEBM(
        pg.load_generator("synthetic", problem="linear", dim=2),
        (pg.load_control("synthetic", energy="quadratic", target=[1.0, -1.0]),),
    )
    flow = {"transformer": {"kind": "spline", "num_bins": 4}, "num_layers": 2, "hidden_dim": 8, "identity_start": True}
    _, history = pg.fit(bench, flow=flow, num_steps=150, batch_size=64, learning_rate=1e-2, quiet=True)
    best = -linear_target(bench.generator, [1.0, -1.0], 0.5).log_z
    gaps = [metrics["loss"] - best for metrics in history]
    print(f"{gaps[0]:.2f} to {gaps[-1]:.2f} nats")
    assert np.mean(gaps[-3:]) < 0.25 * gaps[0]


def local_build(prior):
    return None


REFUSED = {
    "function": (lambda prior: None, TypeError, "flow is function <lambda>, which a saved prompt could not name"),
    "bijector": (distrax.Tanh(), TypeError, "flow is Tanh.*flow={'kind': 'mypackage.chain'}"),
    "kind": ({"kind": local_build}, TypeError, "flow is function local_build"),
    "array": ({"num_layers": jnp.ones(2)}, TypeError, "flow option num_layers is ArrayImpl.*could not hold"),
    "own object": ({"kind": "mine.made", "made": object()}, TypeError, "flow option made is object"),
    "unknown": ({"kind": "realnpv"}, ValueError, "Did you mean 'realnvp'"),
    "helper": ({"kind": "bijectors"}, ValueError, "flow kind: unknown name 'bijectors'"),
    "module": ({"kind": "mine.missing"}, ValueError, "mine.missing: cannot be imported"),
    "option": ({"kind": "mine.flat", "nmu": 2}, ValueError, "Did you mean 'num'"),
    "no prior": ({"kind": "mine.priorless"}, ValueError, r"takes no prior. Write build\(prior, ...\)"),
    "result": ({"kind": "mine.nothing"}, ValueError, "made a Prior without init"),
    "inverse": ({"kind": "mine.flat", "bijector": "one way"}, ValueError, "lacks a direction"),
    "width": ({"kind": "mine.flat", "bijector": "whole"}, ValueError, r"with log_det \(\); expected"),
    "transformer": ({"transformer": "splines"}, ValueError, "Did you mean 'spline'"),
    "bins": ({"transformer": {"kind": "spline", "num_bins": 0}}, ValueError, "num_bins: got 0"),
    "bend": ({"transformer": {"kind": "spline", "bnd": 1.0}}, ValueError, "Did you mean 'bound'"),
    "plain": ({"transformer": "mine.shear"}, ValueError, "flow transformer is 'mine.shear'.*give the kind"),
    "clamp": ({"transformer": "spline", "clamp": "tanh"}, ValueError, "option of the affine transformer alone"),
    "preset": ({"preset": "lagre"}, ValueError, "Did you mean 'large'"),
    "slope": ({"negative_slope": "x"}, ValueError, "negative_slope is 'x'; expected a number"),
    "scale": ({"cond_scale": "x"}, ValueError, "cond_scale is 'x'; expected a number"),
    "start": ({"identity_start": "no"}, ValueError, "identity_start is 'no'; expected True or False"),
    "part": ({"kind": "mixture", "part": "large"}, ValueError, "part is 'large'; expected options of a flow"),
    "shares": ({"kind": "mixture", "shares": 0.5}, ValueError, "shares are 0.5; expected 4 positive numbers"),
    "names": ({"kind": "mixture", "shares": ["a", "b"]}, ValueError, "expected 4 positive numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_training(package, name):
    flow, error, message = REFUSED[name]
    bench = pg.LatentEBM(
        pg.load_generator("synthetic", problem="wells"), (pg.load_control("synthetic", energy="wells"),)
    )
    with pytest.raises(error, match=message):
        pg.fit(bench, flow=flow, quiet=True)


def test_own_flow_without_conditions_refuses_them(package):
    with pytest.raises(ValueError, match=r"takes no cond_dim. Write build\(prior, \*, cond_dim=0, ...\)"):
        init_flow(KEY, PRIOR, kind="mine.flat", cond_dim=2)


def test_preset():
    module = build_module(PRIOR, preset="large", hidden_dim=4)
    assert (module.num_layers, module.hidden_dim) == (16, 4)
    assert build_module(PRIOR, preset="large").hidden_dim == 128
