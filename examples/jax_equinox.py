"""Trains a small convolutional network on scikit-learn's handwritten digits with JAX, Equinox and rmsprop.jax.

    python examples/jax_equinox.py

Bias correction and a falling learning rate; weights, but not biases, decay. The whole step is compiled, and its
parameters and state are donated: their memory is used again.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import rmsprop.jax

EPOCHS, BATCH = 10, 64


class Network(eqx.Module):
    """Two convolutions and a linear layer, from 8 x 8 pixels to 10 scores."""

    layers: list

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(1, 16, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(16, 32, 3, stride=2, key=keys[1]),
            eqx.nn.Linear(32 * 3 * 3, 10, key=keys[2]),
        ]

    def __call__(self, image: jax.Array) -> jax.Array:
        """The scores of one image."""
        first, second, last = self.layers
        return last(jax.nn.relu(second(jax.nn.relu(first(image[None])))).ravel())


def loss(model: Network, images: jax.Array, digits: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(images), digits).mean()


@eqx.filter_jit
def accuracy(model: Network, images: jax.Array, digits: jax.Array) -> jax.Array:
    """The share of images whose highest score is their digit's."""
    return (jax.vmap(model)(images).argmax(1) == digits).mean()


def main() -> None:
    """Trains, and prints the accuracy on images that were not trained on."""
    pixels, targets = load_digits(return_X_y=True)
    split = train_test_split(pixels.reshape(-1, 8, 8).astype("f4") / 16, targets, test_size=0.2, random_state=0)
    x, x_test, y, y_test = (jnp.asarray(part) for part in split)
    model = Network(jax.random.key(0))

    steps = EPOCHS * (len(x) // BATCH)
    optimizer = rmsprop.jax.rmsprop(
        optax.linear_schedule(1e-2, 0.0, steps),
        decay=0.99,
        bias_correction=True,
        weight_decay=0.01,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit(donate="all-except-first")
    def step(batch: tuple, model: Network, state: rmsprop.jax.RMSpropState) -> tuple:
        grads = eqx.filter_grad(loss)(model, *batch)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    rng = np.random.default_rng(0)
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(x))
        for rows in order[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
            model, state = step((x[rows], y[rows]), model, state)
        print(f"epoch {epoch:2}: {accuracy(model, x_test, y_test):.1%} of the test images right")


if __name__ == "__main__":
    main()
