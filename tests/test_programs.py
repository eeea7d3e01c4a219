"""Compiled programs that are kept: in processes beyond the first of a job on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from launch.distributed.programs import compile_or_find

MESH = jax.make_mesh((1,), ("workers",), (AxisType.Auto,), devices=jax.devices()[:1])


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where the programs are kept, as in a second process."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    programs = tmp_path / "programs"
    settings = {
        "jax_compilation_cache_dir": str(programs),
        "jax_persistent_cache_min_compile_time_secs": 1e9,  # JAX itself keeps none.
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield programs
    for name, value in before.items():
        jax.config.update(name, value)


class Counted:
    """A lowered program that counts how often it is compiled."""

    def __init__(self, scale):
        def step(state, batch):
            return {"w": state["w"] + scale * batch}, jnp.sum(batch)

        self._lowered = jax.jit(step, donate_argnums=0).lower(*arguments())
        self.compiled = 0

    def __getattr__(self, name):
        return getattr(self._lowered, name)

    def compile(self):
        self.compiled += 1
        return self._lowered.compile()


def arguments():
    return {"w": jnp.zeros(5)}, jnp.arange(5.0)


def test_a_program_is_compiled_once(folder):
    first, again, other = Counted(2), Counted(2), Counted(3)
    expected, found, of_other = (
        compile_or_find(x, MESH)(*arguments()) for x in (first, again, other)
    )
    assert (first.compiled, again.compiled, other.compiled) == (1, 0, 1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(of_other[0]["w"], 3 * np.arange(5.0))
    assert len(list(folder.iterdir())) == 2


def test_what_it_was_compiled_for_counts(folder, monkeypatch):
    compile_or_find(Counted(2), MESH)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    again = Counted(2)
    compile_or_find(again, MESH)
    assert again.compiled == 1


def test_a_damaged_file_is_written_anew(folder):
    compile_or_find(Counted(2), MESH)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    damaged, mended = Counted(2), Counted(2)
    for each in (damaged, mended):
        state, _ = compile_or_find(each, MESH)(*arguments())
        np.testing.assert_array_equal(state["w"], 2 * np.arange(5.0))
    assert (damaged.compiled, mended.compiled) == (1, 0)


def test_a_folder_that_cannot_be_written_is_no_failure(folder):
    folder.write_text("a file")
    state, _ = compile_or_find(Counted(2), MESH)(*arguments())
    np.testing.assert_array_equal(state["w"], 2 * np.arange(5.0))


def test_what_jax_keeps_itself_is_left_to_it(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    compile_or_find(Counted(2), MESH)
    assert not folder.exists()


def test_a_program_that_calls_the_host_is_not_kept(folder):
    def step(x):
        return jax.pure_callback(
            lambda x: 2 * np.asarray(x), jax.ShapeDtypeStruct((5,), jnp.float32), x
        )

    program = compile_or_find(jax.jit(step).lower(jnp.arange(5.0)), MESH)
    np.testing.assert_array_equal(program(jnp.arange(5.0)), 2 * np.arange(5.0))
    assert not folder.exists()
