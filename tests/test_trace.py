"""The laws of channels, held by a trace: what was recorded is what is dropped, wherever it runs."""

import functools
import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from mappings import MAPPINGS, awkward_params, mesh, places

import rps_jax as rps

KEY = jax.random.key(5)
ITERATIONS, PACKETS = 3, 11


def recorded(n, share=0.6, seed=0):
    """What arrived: `[iteration, phase, source, destination, packet]`."""
    arrived = np.random.default_rng(seed).random((ITERATIONS, 2, n, n, PACKETS)) < share
    return arrived | np.eye(n, dtype=bool)[:, :, None]


def as_trace(arrived, **fields):
    return rps.Trace(np.packbits(arrived, axis=-1), arrived.shape[-1], **fields)


def save(path, arrived, /, **changes):
    fields = {"arrived": np.packbits(arrived, axis=-1), "packets": np.int64(arrived.shape[-1])}
    fields |= {"format": np.int64(1), "description": np.array("{}")}
    np.savez_compressed(path, **(fields | changes))


def views_of(arrived, iteration):
    """All workers' deliveries, fields `[worker, other, packet]`, by their definition."""
    scattered, gathered = arrived[iteration % len(arrived)]
    return rps.Delivery(scattered, np.swapaxes(scattered, 0, 1), np.swapaxes(gathered, 0, 1))


def assert_close(a, b):
    """Equal up to the order of summation."""
    tolerance = 0.06 if a.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        a.astype(np.float32), b.astype(np.float32), rtol=tolerance, atol=tolerance
    )


@functools.cache
def program(way, n):
    """The rules on one exchange; the trace is an argument, `[worker, ...]` here as all others."""

    def one_worker(axis, trace, state, params, step):
        delivery, state = rps.draw_exchange(trace, state, KEY, step, axis)
        models = rps.average_models(params, delivery, axis)
        grads = rps.average_gradients(params, delivery, axis, "zero")
        fractions = rps.delivered_fraction(delivery, axis)
        return models, grads, fractions, delivery, state

    return MAPPINGS[way](one_worker, n)


def exchange(way, trace, state, params, step):
    """Returns what `program` does."""
    n = trace.num_hosts
    trace = jax.tree.map(lambda x: jnp.stack([x] * n), trace)
    args = jax.tree.map(jnp.asarray, (trace, state, params, np.full(n, step, np.int32)))
    return jax.device_get(program(way, n)(*args))


@pytest.mark.parametrize(("way", "n"), places())
def test_replays_what_was_recorded_and_begins_anew(way, n):
    arrived, params = recorded(n), awkward_params(n)
    trace = as_trace(arrived, start=1)
    state = np.full(n, trace.init(n))
    links = ~np.eye(n, dtype=bool)
    shifts = set()
    for step in range(ITERATIONS + 1):
        models, grads, fractions, delivery, state = exchange(way, trace, state, params, step)
        expected = views_of(arrived, trace.start + step)._replace(shift=delivery.shift)
        jax.tree.map(np.testing.assert_array_equal, delivery, expected)

        jax.tree.map(assert_close, models, reference.average_models(params, expected))
        zero = reference.average_gradients(params, expected, "zero")
        jax.tree.map(assert_close, grads, zero)
        if n > 1:
            scattered, gathered = arrived[(trace.start + step) % ITERATIONS][:, links].mean((1, 2))
            np.testing.assert_allclose(fractions.reduce_scatter, scattered, rtol=1e-6)
            np.testing.assert_allclose(fractions.all_gather, gathered, rtol=1e-6)
        shifts.add(int(delivery.shift[0]))
    assert n < 5 or len(shifts) > 1  # Whoever serves a block, its link drops what it dropped.


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing(share):
    n = 8
    params = awkward_params(n)
    trace = as_trace(recorded(n, share))
    models = exchange("shard_map", trace, np.zeros(n, np.int32), params, 0)[0]
    if share == 0:
        jax.tree.map(np.testing.assert_array_equal, models, params)
    else:
        np.testing.assert_allclose(
            models["matrix"], reference.all_reduce(params)["matrix"], rtol=1e-5, atol=1e-6
        )


def test_a_worker_hears_itself_whatever_the_trace_says():
    n = 5
    trace = as_trace(np.zeros((1, 2, n, n, PACKETS), bool))
    sample = lambda worker: trace.sample(trace.init(n), KEY, worker, n)[0]  # noqa: E731
    for view in jax.vmap(sample)(jnp.arange(n)).masks:
        assert (view == np.eye(n, dtype=bool)[:, :, None]).all()


def test_the_optax_form_carries_the_place_in_the_trace():
    n, size = 5, 40
    arrived = recorded(n)
    optimizer = rps.optax_average_models(
        optax.identity(), as_trace(arrived), "workers", assignment="fixed", num_workers=n
    )
    params = np.random.default_rng(0).normal(size=(n, size)).astype(np.float32)
    state = jax.tree.map(lambda x: jnp.stack([x] * n), optimizer.init(params[0]))

    def one_worker(axis, params, state):
        updates, state = optimizer.update(jnp.zeros(size), state, params)
        return optax.apply_updates(params, updates), state

    step, expected = MAPPINGS["vmap"](one_worker, n), params
    for iteration in range(ITERATIONS + 2):
        params, state = step(params, state)
        expected = reference.average_models(expected, views_of(arrived, iteration))
        np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-5)
    assert (state.exchange.channel == 2).all()


def test_the_masks_need_no_communication_and_no_copy_of_the_trace():
    n, arrived = 8, np.ones((500, 2, 8, 8, 100), bool)
    trace = as_trace(arrived)

    def one_worker(trace):
        delivery, _ = trace.sample(trace.init(n), KEY, jax.lax.axis_index("workers"), n)
        return jax.tree.map(lambda x: x[None], delivery)

    everywhere, apart = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("workers")
    mapped = jax.shard_map(one_worker, mesh=mesh(n), in_specs=everywhere, out_specs=apart)
    compiled = jax.jit(mapped).lower(trace).compile()
    text = compiled.as_text()
    for collective in ("all-reduce(", "all-gather(", "reduce-scatter(", "permute(", "to-all("):
        assert collective not in text
    assert compiled.memory_analysis().temp_size_in_bytes < trace.arrived.nbytes / 50


def test_a_file_is_read_back(tmp_path):
    arrived = recorded(4)
    save(tmp_path / "trace.npz", arrived)
    trace = rps.Trace.load(tmp_path / "trace.npz", start=2)
    assert (trace.num_hosts, trace.packets, trace.start) == (4, PACKETS, 2)
    np.testing.assert_array_equal(trace.arrived, np.packbits(arrived, axis=-1))


@pytest.mark.parametrize(
    ("changes", "start", "message"),
    [
        ({"format": np.int64(2)}, 0, "format=2: expected 1"),
        ({"packets": np.int64(17)}, 0, r"arrived has shape \(3, 2, 4, 4, 2\) .* 17 packets"),
        ({"packets": np.int64(0)}, 0, "packets=0: expected at least 1"),
        ({"packets": np.arange(3)}, 0, "packets=.* expected an integer"),
        ({"packets": np.float64(3.7)}, 0, "packets=3.7: expected an integer"),
        ({"packets": np.float64("inf")}, 0, "packets=inf: expected an integer"),
        ({"packets": np.array("3")}, 0, "packets='3': expected an integer"),
        ({"format": np.True_}, 0, "format=True: expected an integer"),
        ({}, 1.5, "start=1.5: expected an integer"),
        ({}, True, "start=True: expected an integer"),
        ({"arrived": np.zeros((3, 2, 4, 5, 2), np.uint8)}, 0, r"arrived has .* \(3, 2, 4, 5, 2\)"),
        ({"arrived": np.zeros((3, 2, 4, 4, 2))}, 0, "dtype float64: expected uint8"),
        ({"arrived": np.zeros((0, 2, 4, 4, 2), np.uint8)}, 0, r"arrived has shape \(0, 2"),
        ({"arrived": np.uint8(0)}, 0, r"arrived has shape \(\)"),
        ({}, 3, r"start=3: expected an iteration in \[0, 3\)"),
        ({}, -1, r"start=-1: expected an iteration in \[0, 3\)"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, changes, start, message):
    path = tmp_path / "trace.npz"
    save(path, recorded(4), **changes)
    with pytest.raises(ValueError, match=f"^{path}: .*{message}") as refused:
        rps.Trace.load(path, start)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", ["empty", "text", "array", "other arrays", "cut", "flipped"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "trace.npz"
    save(path, recorded(4))
    whole = path.read_bytes()
    if damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "other arrays":
        np.savez(path, x=np.zeros(3))
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"drops",
                "cut": whole[:-40],
                "flipped": whole[:90] + bytes(255 - byte for byte in whole[90:150]) + whole[150:],
            }[damage]
        )
    with pytest.raises(ValueError, match=f"^{path}: expected a trace, an .npz file"):
        rps.Trace.load(path)


def test_no_damage_is_an_error_of_another_kind(tmp_path):
    """Bytes of the file changed, cut out and put in, at random, seeded."""
    path, rng = tmp_path / "trace.npz", np.random.default_rng(0)
    as_trace(recorded(4)).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    messages, tries = [], 400
    for _ in range(tries):
        bytes_, place = whole.copy(), int(rng.integers(len(whole)))
        length = int(rng.integers(1, 20))
        noise = rng.integers(0, 256, length, dtype=np.uint8)
        if rng.random() < 0.6:
            bytes_[place : place + length] = noise[: len(bytes_) - place]
        else:
            bytes_ = np.concatenate([bytes_[:place], noise, bytes_[place + length :]])
        path.write_bytes(bytes_.tobytes())
        try:
            rps.Trace.load(path)  # What was changed does not matter, or makes another trace.
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > tries / 2
    for message in messages:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message


def test_a_file_that_says_it_is_huge_is_refused(tmp_path):
    path = tmp_path / "trace.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 2, 4, 4, 2)}" % 2**60
    header = header.ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    save(path, recorded(4))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("arrived.npy", array)
        for name, value in (("packets", 11), ("format", 1)):
            content = io.BytesIO()
            np.save(content, np.int64(value))
            file.writestr(f"{name}.npy", content.getvalue())
    with pytest.raises(ValueError, match=f"^{path}: expected a trace"):
        rps.Trace.load(path)


def test_what_is_saved_is_loaded(tmp_path):
    trace = as_trace(recorded(5))
    trace.save(tmp_path / "trace.npz", {"rate": 0.1})
    loaded = rps.Trace.load(tmp_path / "trace.npz", start=2)
    np.testing.assert_array_equal(loaded.arrived, trace.arrived)
    assert (loaded.packets, loaded.start) == (PACKETS, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]
    with pytest.raises(ValueError, match="packets=0"):
        rps.Trace(trace.arrived, 0).save(tmp_path / "other.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]


def test_a_state_beyond_the_end_is_refused_or_begins_anew():
    trace = as_trace(recorded(4))
    with pytest.raises(ValueError, match=r"state=3: expected an iteration in \[0, 3\)"):
        trace.sample(jnp.int32(ITERATIONS), KEY, 1, 4)
    sample = jax.jit(lambda state: trace.sample(state, KEY, 1, 4))
    beyond, state = sample(jnp.int32(ITERATIONS + 1))
    jax.tree.map(np.testing.assert_array_equal, beyond, sample(jnp.int32(1))[0])
    assert state == 2


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trace\.npz"):
        rps.Trace.load(tmp_path / "trace.npz")


def test_another_number_of_workers_raises_at_trace_time():
    trace = as_trace(recorded(4))
    sample = lambda worker: trace.sample(trace.init(6), KEY, worker, 6)[0]  # noqa: E731
    with pytest.raises(ValueError, match="num_workers=6: expected 4, the hosts of the trace"):
        jax.eval_shape(sample, 0)
