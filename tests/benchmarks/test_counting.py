"""What is counted, and what is foretold from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cost, counting, page
from benchmarks.parts import devices, recipes


def test_operations_of_loops_are_those_of_all_rounds():
    """A product of (8, 16) with (16, 4) takes 2 · 8 · 16 · 4 operations; one on which nothing depends takes none."""

    def one(x, y):
        x @ x.T  # noqa: B018
        return x @ y

    def many(x, y):
        return jax.lax.scan(lambda total, _: (total + jax.checkpoint(one)(x, y), None), jnp.zeros((8, 4)), length=5)[0]

    arguments = jnp.ones((8, 16)), jnp.ones((16, 4))
    assert counting.gflop(jax.jit(one).trace(*arguments)) == pytest.approx(1024e-9)
    assert counting.gflop(jax.jit(many).trace(*arguments)) == pytest.approx(5 * 1024e-9)


def test_operations_of_a_convolution():
    """3 x 3 taps of 2 channels for each of 4 outputs in 5 x 5 pixels."""
    images, kernel = jnp.ones((1, 7, 7, 2)), jnp.ones((3, 3, 2, 4))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert counting.gflop(jax.jit(convolve).trace(images, kernel)) == pytest.approx(2e-9 * 5 * 5 * 4 * 9 * 2)


def test_messages():
    """Kinds, counts and bytes, also of tuples and of the form that starts and ends apart."""

    class Compiled:
        def as_text(self):
            return """
              %all-reduce.1 = (f32[10,2]{1,0}, f32[]) all-reduce(%a, %b), replica_groups={}
              ROOT %g = bf16[8]{0} all-gather-start(f32[4]{0} %c), dimensions={0}
              %h = f32[4] add(%all-reduce.1, %g)
            """

    found = counting.messages(Compiled())
    assert found == {"all-reduce": {"count": 1, "bytes": 84}, "all-gather": {"count": 1, "bytes": 16}}


def test_cost_is_the_slower_of_both_and_the_link():
    card = cost.Card(gflops=100.0, gbytes=10.0, link=2.0)
    assert cost.predict(card, gflop=50.0, gbytes=1.0) == pytest.approx(0.5)
    assert cost.predict(card, gflop=50.0, gbytes=20.0, sent_gbytes=1.0) == pytest.approx(2.5)


def test_page_says_what_was_measured():
    side = {"median": 2.0, "spread": 0.1, "peak_mib": 100.0, "gflop": 80.0, "xla_gflop": 90.0, "xla_gbytes": 1.0}
    side |= {"temporary_mib": 5.0, "compile_seconds": 3.0, "equations": 1234}
    common = {"quick": False, "where": {"processor": "a processor", "threads": 2}, "date": "2026-11-28"}
    case = {"kind": "case", "name": "x/1", "title": "some case", "label": "torch", "ratio": 0.5, "memory_ratio": 0.25}
    case |= {"ours": side, "other": side | {"median": 4.0, "peak_mib": 400.0}, "differences": {"loss": 1e-6}}
    peak = {"kind": "peak", "name": "peak", "gflops": 100.0, "gbytes": 10.0}
    device = {"kind": "devices", "devices": 2, "about": "a step", "losses": [1.5], "parameters": 7, "gflop": 1.0}
    device |= {"messages": {"all-reduce": {"count": 1, "bytes": 28}}, "temporary_mib": 1.0, "argument_mib": 2.0}
    records = [{**each, **common} for each in (case, peak, device)]
    made = page.performance(records)
    assert "| some case | 2 | 4 | 0.50 | 10% | 100 | 400 | 0.25 | 1e-06 |" in made
    assert "| some case | 80.00 | 90.00 | 40% | 5 | 3.0 | 1,234 |" in made
    assert "a processor, threads: 2" in made
    scaling = page.with_measured(f"before\n{page.START}old\n{page.END}after\n", page.scaling(records))
    assert "all-reduce 28" in scaling
    assert "| some case | 80 | 1 | 0.8 | 2 | 2.50 |" in scaling
    assert "old" not in scaling
    assert scaling.startswith("before\n")
    assert scaling.endswith("after\n")


def test_page_puts_recipes_beside_the_longest_training_of_the_paper():
    """Of the same seed, at the end: what was lower half way does not count."""

    def training(recipe, steps, seed, *looks):
        looks = [{"seconds": s, "energy": e, "loss": 60 * e, "divergence": 0.5} for s, e in looks]
        way = {"recipe": recipe, "batch_size": 8, "views": 12, "num_steps": steps, "learning_rate": 1e-3, "seed": seed}
        return {"text": "a smile", "weight": 60.0, "samples": 8} | way | {"looks": looks}

    short = [training("paper", 2, 0, (25.0, 0.9))]
    paper = [training("paper", 9, 0, (50.0, 0.9), (100.0, 0.8)), training("paper", 9, 1, (50.0, 0.9), (100.0, 0.7))]
    fast = [training("fast", 4, 0, (10.0, 0.85), (20.0, 0.79)), training("fast", 4, 1, (10.0, 0.6), (30.0, 0.75))]
    made = page.recipes(short + paper + fast)
    assert "asked for “a smile” with weight 60" in made
    assert (
        "| `fast` | 8 | 12 | 4 | 0.001 | 25 | 0.7700 | 0.50 | 46.20 | 0.20, 0.30 | -0.0100, +0.0500 | -0.60, +3.00 |"
        in made
    )
    assert "| `paper` | 8 | 12 | 2 | 0.001 | 25 | 0.9000 | 0.50 | 54.00 | 0.25 | +0.1000 | +6.00 |" in made


def test_recipes_differ_in_their_views_alone():
    """What judges all of them is the paper's energy, in its 50 views of every kind."""
    paper, fast = (recipes.target_of(name).controls[0] for name in ("paper", "fast"))
    assert (paper.num_augmentations, paper.recipe) == (50, "paper")
    assert (fast.num_augmentations, fast.recipe) == (12, "fast")
    assert paper.policy == fast.policy != ""
    assert float(paper.weight) == float(fast.weight)


@pytest.mark.full
def test_losses_and_messages_of_devices():
    """One and two virtual devices: equal losses, and one all-reduce about as long as the flow has numbers."""
    one, two = devices.measure(quick=True)
    np.testing.assert_allclose(one["losses"][0], two["losses"][0], rtol=1e-5)
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-3)  # Adam steps by signs, of rounding too
    assert one["messages"] == {}
    assert 1 <= two["messages"]["all-reduce"]["bytes"] / 4 / two["parameters"] < 1.001
