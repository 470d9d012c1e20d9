"""Sizes, fields and convolutions, each against JAX itself or another computation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import signal

import metalr
from metalr.convnet import (
    Conv,
    Dense,
    GlobalPool,
    Pool,
    apply,
    convolution_matrix,
    convolve2d,
    correlate2d,
    fields,
    filters,
    init,
    receptive_field,
    recover_image,
    shapes,
    size_table,
)

NOTES = [
    *(Conv(64, 3), Pool(2), Conv(128, 3), Pool(2)),
    *(Conv(256, 3), Conv(256, 3), Pool(2), Dense(1024), Dense(100)),
]
LENET = [
    *(Conv(6, 5, padding="valid"), Pool(2), Conv(16, 5, padding="valid"), Pool(2)),
    *(Dense(120), Dense(84), Dense(10)),
]
ALEXNET = [
    *(Conv(96, 11, 4, "valid"), Pool(3, 2), Conv(256, 5, padding=2), Pool(3, 2)),
    *(Conv(384, 3), Conv(384, 3), Conv(256, 3), Pool(3, 2)),
    *(Dense(4096), Dense(4096), Dense(1000)),
]
VGG16 = [
    *(Conv(64, 3), Conv(64, 3), Pool(2), Conv(128, 3), Conv(128, 3), Pool(2)),
    *(Conv(256, 3), Conv(256, 3), Conv(256, 3), Pool(2)),
    *(Conv(512, 3), Conv(512, 3), Conv(512, 3), Pool(2)),
    *(Conv(512, 3), Conv(512, 3), Conv(512, 3), Pool(2)),
    *(Dense(4096), Dense(4096), Dense(1000)),
]
ODD = [  # every option at once, on sides that nothing divides
    Conv(6, 3, stride=2, dilation=2),
    Conv(6, 5, 2, "valid", groups=6, bias=False),
    Pool(3, 2, padding=1, kind="average"),
    Conv(4, 2, padding="same", groups=2),
    Pool(2, 2, padding="same"),
    Conv(8, 1, bias=False),
    GlobalPool(),
    Dense(5, bias=False),
    Dense(3),
]
NETWORKS = {
    "notes": (NOTES, (112, 112, 3)),
    "lenet": (LENET, (32, 32, 1)),
    "alexnet": (ALEXNET, (227, 227, 3)),
    "vgg16": (VGG16, (224, 224, 3)),
    "odd": (ODD, (37, 30, 3)),
    "dense": ([Dense(7), Dense(2)], (5,)),
}
IMAGE = jnp.array(
    [
        [int(pixel) for pixel in row]
        for row in ["01100", "01110", "11110", "01110", "00100"]
    ]
)
LAPLACIAN = filters()["laplacian"].kernel


# Size


def test_the_notes_network_has_the_totals_of_the_notes():
    total = size_table(NOTES, (112, 112, 3)).total
    assert total.neurons == 1_957_988
    assert total.parameters == 52_444_644
    assert total.connections == 999_407_616
    assert total.connections_inside == 961_041_152


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("lenet", 61_706), ("alexnet", 62_378_344), ("vgg16", 138_357_544)],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    layers, shape = NETWORKS[name]
    assert size_table(layers, shape).total.parameters == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_is_that_of_the_real_network(name):
    """Parameters from the pytree; shapes from tracing each prefix of the network."""
    layers, shape = NETWORKS[name]
    rows = size_table(layers, shape, dtype=jnp.float64).rows
    params = jax.eval_shape(lambda: init(jax.random.key(0), layers, shape))
    images = jax.ShapeDtypeStruct((2, *shape), jnp.dtype("float64"))
    for depth, (row, part) in enumerate(zip(rows, params, strict=True), start=1):
        assert row.parameters == sum(x.size for x in jax.tree.leaves(part))
        out = jax.eval_shape(
            lambda p, x, n=depth: apply(layers[:n], p[:n], x), params, images
        )
        assert out.shape == (2, *row.shape)
        assert row.neurons == math.prod(row.shape)
        assert row.activation_bytes == out.size * out.dtype.itemsize // 2
        assert row.parameter_bytes == 8 * row.parameters


def test_the_total_sums_the_rows():
    table = size_table(ODD, (37, 30, 3))
    for name in table.total._fields[2:]:
        column = [getattr(row, name) for row in table.rows]
        assert getattr(table.total, name) == sum(column)
    assert str(table).splitlines()[-1].startswith("total")


@pytest.mark.parametrize(
    ("layer", "inputs"),  # inputs of one neuron
    [
        (Conv(4, 3), 3 * 3 * 2),
        (Conv(6, 3, 2, dilation=2, groups=2), 3 * 3),
        (Conv(2, 3, dilation=2), 3 * 3 * 2),
        (Pool(3, 2, padding=1, kind="average"), 3 * 3),
    ],
)
def test_connections_inside_are_the_nonzeros_of_the_layers_jacobian(layer, inputs):
    shape = (9, 7, 2)
    row = size_table([layer], shape).rows[0]
    params = jax.tree.map(jnp.ones_like, init(jax.random.key(0), [layer], shape))
    matrix = jax.jacfwd(lambda x: apply([layer], params, x[None]))(jnp.ones(shape))
    assert row.connections_inside == int(jnp.sum(matrix != 0.0))
    assert row.connections == inputs * row.neurons > row.connections_inside


def test_multiply_adds_are_half_the_flops_xla_counts_for_valid_convolutions():
    layers, shape = LENET[:1], (32, 32, 1)
    params = init(jax.random.key(0), layers, shape)
    x = jnp.ones((1, *shape))
    compiled = jax.jit(lambda p, x: apply(layers, p, x)).lower(params, x).compile()
    row = size_table(layers, shape).rows[0]
    assert row.multiply_adds == row.connections == row.connections_inside
    bias_additions = row.neurons
    analysis = compiled.cost_analysis()
    assert analysis is not None
    assert analysis["flops"] == 2 * row.multiply_adds + bias_additions


def test_batches_of_networks_run_and_max_pools_ignore_padding(key):
    params = init(key, ODD, (37, 30, 3))
    x = jax.random.normal(key, (2, 37, 30, 3))
    out = jax.jit(lambda p, x: apply(ODD, p, x))(params, x)
    assert bool(jnp.all(jnp.isfinite(out)))
    out = apply([Pool(2, padding="same")], [{}], -jnp.ones((1, 3, 3, 1)))
    np.testing.assert_array_equal(out, -1.0)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (3, 2), (4, 3), (5, 2)])
def test_same_padding_is_that_of_xla(key, kernel, stride):
    """On an even and an odd side: where the odd zero goes is a convention."""
    layers = [Conv(2, kernel, stride)]
    params = init(key, layers, (8, 9, 3))
    x = jax.random.normal(key, (1, 8, 9, 3))
    expected = jax.lax.conv_general_dilated(
        x,
        params[0]["kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(apply(layers, params, x), expected, atol=1e-13)


# Receptive field


def test_the_last_pool_of_the_notes_sees_30_pixels_and_38_with_one_more():
    assert receptive_field(NOTES) == [3, 4, 8, 10, 18, 26, 30]
    assert receptive_field([*NOTES[:7], Pool(2)])[-1] == 38


def test_a_stride_enlarges_only_later_fields():
    plain, strided = [Conv(1, 3)] * 3, [Conv(1, 3), Conv(1, 3, stride=2), Conv(1, 3)]
    assert receptive_field(plain) == [3, 5, 7]
    assert receptive_field(strided) == [3, 5, 9]


LINEAR = {
    "odd": (
        [
            Conv(2, 3, stride=2, dilation=2),
            Conv(2, 5, 2, "valid"),
            Pool(3, 2, padding=1, kind="average"),
        ],
        (37, 30, 1),
    ),
    "same": (
        [Conv(2, 3), Pool(2, kind="average"), Conv(1, 3, 2), Conv(1, 2)],
        (23,) * 2 + (1,),
    ),
    "pads": ([Conv(2, 4, 3, 2), Conv(2, 3, padding="same", dilation=3)], (31, 25, 1)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_the_field_is_the_extent_of_the_jacobian(name):
    """Of every unit: positive weights, so no path cancels another."""
    layers, shape = LINEAR[name]
    params = jax.tree.map(jnp.ones_like, init(jax.random.key(0), layers, shape))
    for depth, field in enumerate(fields(layers, shape), start=1):

        def output(image, n=depth):
            return apply(layers[:n], params[:n], image[None])[0, :, :, 0]

        seen = jax.jit(jax.jacrev(output))(jnp.zeros(shape))[..., 0] != 0.0
        for i, j in np.ndindex(*seen.shape[:2]):
            for axis, index in ((0, i), (1, j)):
                places = np.flatnonzero(np.any(seen[i, j], axis=1 - axis))
                center = field.offset[axis] + field.jump * index
                low, high = center - (field.size - 1) / 2, center + (field.size - 1) / 2
                assert low == int(low)
                if low >= 0:
                    assert places[0] == low
                if high <= shape[axis] - 1:
                    assert places[-1] == high
                assert places[0] >= low
                assert places[-1] <= high


def test_a_tap_on_a_later_layers_padding_sees_nothing_of_the_image():
    """A pool of 2 ends before the fifth pixel, and the padding after it is no pixel."""
    layers, shape = [Pool(2, kind="average"), Conv(1, 3)], (5, 5, 1)
    params = jax.tree.map(jnp.ones_like, init(jax.random.key(0), layers, shape))
    unit = lambda image: apply(layers, params, image[None])[0, 1, 1, 0]
    seen = jnp.flatnonzero(jnp.any(jax.grad(unit)(jnp.zeros(shape)) != 0.0, (1, 2)))
    field = fields(layers, shape)[-1]
    center = field.offset[0] + field.jump
    assert [center - (field.size - 1) / 2, center + (field.size - 1) / 2] == [0.0, 5.0]
    assert seen.tolist() == [0, 1, 2, 3]  # not 4, which lies in the box


def test_the_effective_field_is_the_spread_of_the_paths():
    layers = [Conv(1, 3), Conv(1, 3, stride=2, dilation=2), Pool(2, kind="average")]
    layers += [Conv(1, 5)]
    shape = (81, 81, 1)
    params = jax.tree.map(jnp.ones_like, init(jax.random.key(0), layers, shape))
    field = fields(layers, shape)[-1]
    middle = 10
    weight = jax.grad(lambda x: apply(layers, params, x[None])[0, middle, middle, 0])(
        jnp.zeros(shape)
    ).sum(axis=(1, 2))
    place = jnp.arange(81)
    mean = jnp.average(place, weights=weight)
    variance = jnp.average((place - mean) ** 2, weights=weight)
    np.testing.assert_allclose(mean, field.offset[0] + middle * field.jump, rtol=1e-12)
    np.testing.assert_allclose(jnp.sqrt(1 + 12 * variance), field.effective, rtol=1e-12)
    assert field.effective < field.size


# Convolution


@pytest.mark.parametrize("kernel_shape", [(3, 3), (1, 4), (2, 5)])
def test_convolution_is_scipys(key, kernel_shape):
    image = jax.random.normal(key, (6, 7))
    kernel = jax.random.normal(jax.random.key(1), kernel_shape)
    expected = signal.convolve2d(image, kernel, mode="same")
    np.testing.assert_allclose(convolve2d(image, kernel), expected, atol=1e-13)
    flipped = correlate2d(image, kernel[::-1, ::-1])
    np.testing.assert_allclose(flipped, expected, atol=1e-13)


def test_batches_and_channels_sum_plain_convolutions(key):
    images = jax.random.normal(key, (2, 5, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 2))
    output = convolve2d(images, kernel)
    for b, o in np.ndindex(2, 2):
        expected = sum(
            signal.convolve2d(images[b, :, :, i], kernel[:, :, i, o], mode="same")
            for i in range(3)
        )
        np.testing.assert_allclose(output[b, :, :, o], expected, atol=1e-13)


def test_the_notes_image_is_recovered_from_its_edges_alone():
    output = convolve2d(IMAGE, LAPLACIAN)
    assert output.shape == (5, 5)
    np.testing.assert_array_equal(output, correlate2d(IMAGE, LAPLACIAN))
    np.testing.assert_allclose(recover_image(output, LAPLACIAN), IMAGE, atol=1e-13)


def test_the_laplacian_has_the_spectrum_of_the_grid():
    values = jnp.linalg.eigvalsh(convolution_matrix(LAPLACIAN, (5, 5)))
    cosines = 2.0 * np.cos(np.pi * np.arange(1, 6) / 6)
    grid = np.sort((4.0 - cosines[:, None] - cosines[None]).ravel())
    np.testing.assert_allclose(values, grid, atol=1e-13)
    np.testing.assert_allclose(values[0], 4 - 4 * np.cos(np.pi / 6), atol=1e-13)


def test_recovery_fails_clearly_where_the_kernel_erases_images():
    kernel = filters()["sobel_x"].kernel
    # Antisymmetric: an odd width leaves one null direction in each of 5 rows.
    with pytest.raises(ValueError, match="erases 5 of 25"):
        recover_image(convolve2d(IMAGE, kernel), kernel)


def test_each_filter_does_what_it_says():
    bank, ramp = filters(), jnp.tile(jnp.arange(7.0), (7, 1))
    inner = (slice(1, -1), slice(1, -1))
    found = {n: correlate2d(ramp, f.kernel)[inner] for n, f in bank.items()}
    other = {n: correlate2d(ramp.T, f.kernel)[inner] for n, f in bank.items()}
    for name in ("laplacian", "laplacian_8", "sobel_y", "prewitt_y"):
        np.testing.assert_allclose(found[name], 0.0, atol=1e-13)
    np.testing.assert_allclose(found["sobel_x"], 8.0)
    np.testing.assert_allclose(found["prewitt_x"], 6.0)
    np.testing.assert_allclose(other["sobel_y"], 8.0)
    np.testing.assert_allclose(other["prewitt_y"], 6.0)
    np.testing.assert_allclose(found["gaussian"], ramp[inner])


# Errors


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([Conv(4, 7, padding="valid")], (5, 5, 1), r"layer 0 \(conv7-4\).*5 × 5"),
        ([Conv(4, 3), Pool(9)], (8, 8, 1), r"layer 1 \(max-pool\)"),
        ([Dense(3), Conv(4, 3)], (8, 8, 1), r"layer 1 \(conv3-4\).*cannot follow"),
        ([Conv(4, 3, groups=2)], (8, 8, 3), r"groups = 2 must divide"),
        ([Conv(4, 3)], (8, 8), "input_shape"),
        ([], (8, 8, 1), "empty"),
    ],
)
def test_an_impossible_shape_is_an_error_that_names_the_layer(layers, shape, message):
    with pytest.raises(ValueError, match=message):
        size_table(layers, shape)
    with pytest.raises(ValueError, match=message):
        shapes(layers, shape)


def test_a_wrong_layer_is_an_error_when_made():
    for make in (
        lambda: Conv(0, 3),
        lambda: Conv(4, 3, stride=0),
        lambda: Conv(4, 3, padding=-1),
        lambda: Pool(2, padding=2),
        lambda: Dense(0),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_convolve2d_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        convolve2d(jnp.ones((3, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match="channels"):
        convolve2d(jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 1, 1)))


# The classifier


@pytest.mark.slow
def test_a_described_network_learns_and_has_a_hypergradient(key):
    layers = [Conv(3, 3), Pool(2), Conv(4, 3, stride=2), GlobalPool(), Dense(3)]
    images = jax.random.normal(key, (6, 8, 8, 2))
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    loss = metalr.problems.classifier(layers, images, labels)
    params = loss.init(jax.random.key(1))
    batches = jnp.arange(6).reshape(2, 3)
    L = metalr.Unrolled(loss, optax.sgd, params, steps=2, batches=batches)
    _, grad = metalr.hypergradient(L, 0.1)
    step = 1e-5
    numeric = (L(0.1 + step) - L(0.1 - step)) / (2 * step)
    np.testing.assert_allclose(grad, numeric, rtol=1e-6)
    long = metalr.Unrolled(loss, optax.adam, params, steps=60)
    assert float(long(0.05)) < 0.2 * float(long(0.0))
    assert float(loss.accuracy(long.final_params(0.05), images, labels)) == 1.0
    # by hand, for one batch
    logits = loss.apply(params, images[:3])
    expected = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(3), labels[:3]])
    np.testing.assert_allclose(loss(params, None, jnp.arange(3)), expected, rtol=1e-14)


def test_labels_beyond_the_last_layer_are_an_error():
    with pytest.raises(ValueError, match="renumber"):
        metalr.problems.classifier([Dense(2)], jnp.ones((2, 3)), jnp.array([0, 2]))
    with pytest.raises(ValueError, match="must be Dense"):
        metalr.problems.classifier([Conv(2, 3)], jnp.ones((1, 3, 3, 1)), jnp.array([0]))
