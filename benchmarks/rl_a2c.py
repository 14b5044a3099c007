"""A2C in JAX, for `rl.py`: environments, network, loss, and training of many replicas in one compiled program.

A2C as stable-baselines3 has it (Mnih et al., arXiv:1602.01783, made synchronous): 16 environments, 5 steps, an
advantage without GAE, gradients clipped by their norm to 0.5, weights that start orthogonal. MLPs have one tower for
the policy and one for the value; convolutional networks share all but the last layer.
"""

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import optax

ENVIRONMENTS, STEPS, GAMMA, ENTROPY, VALUE, NORM = 16, 5, 0.99, 0.01, 0.5, 0.5
#: Points of a learning curve.
BINS = 40
BIN_FRAMES = ENVIRONMENTS * STEPS * BINS

Layers = list[tuple[jax.Array, jax.Array]]


class Steps(NamedTuple):
    """What happened in some steps of all environments; arrays begin with (STEPS, ENVIRONMENTS)."""

    seen: Any
    action: Any
    reward: Any
    terminated: Any
    done: Any
    reached: Any  # what a step led to, also where a new episode begins after it
    finished: Any  # the return of the episode that ends here


def layers(key: jax.Array, sizes: list[int], last_gain: float) -> Layers:
    gains = [2**0.5] * (len(sizes) - 2) + [last_gain]
    keys = jax.random.split(key, len(gains))
    starts = [jax.nn.initializers.orthogonal(gain) for gain in gains]
    return [(start(k, s), jnp.zeros(s[1])) for start, k, s in zip(starts, keys, pairwise(sizes), strict=True)]


def dense(ws: Layers, x: jax.Array, between: Callable[[jax.Array], jax.Array]) -> jax.Array:
    for i, (w, b) in enumerate(ws):
        x = x @ w + b if i == 0 else between(x) @ w + b
    return x


def patches(x: jax.Array) -> jax.Array:
    """Every 3 x 3 square of images (..., h, w, c), flat: their product with weights is a convolution.

    XLA's own, with weights that differ between replicas, takes seven times as long.
    """
    h, w = x.shape[-3] - 2, x.shape[-2] - 2
    return jnp.concatenate([x[..., i : i + h, j : j + w, :] for i in range(3) for j in range(3)], -1)


def network(shape: tuple[int, ...], actions: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init(key)` and `apply(weights, observations)`, which gives logits and values."""
    is_image = len(shape) == 3

    def init(key: jax.Array) -> dict[str, Layers]:
        conv, body, policy, value = jax.random.split(key, 4)
        if not is_image:
            hidden = [*shape, 64, 64]
            return {"policy": layers(policy, [*hidden, actions], 0.01), "value": layers(value, [*hidden, 1], 1.0)}
        area = (shape[0] - 2) * (shape[1] - 2)
        return {
            "conv": layers(conv, [9 * shape[2], 16], 2**0.5),
            "body": layers(body, [16 * area, 128], 2**0.5),
            "policy": layers(policy, [128, actions], 0.01),
            "value": layers(value, [128, 1], 1.0),
        }

    def apply(ws: dict[str, Layers], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if is_image:
            x = jax.nn.relu(dense(ws["conv"], patches(x), jax.nn.relu))
            x = x.reshape(*x.shape[:-3], prod(x.shape[-3:]))
            x = jax.nn.relu(dense(ws["body"], x, jax.nn.relu))
        return dense(ws["policy"], x, jnp.tanh), dense(ws["value"], x, jnp.tanh)[..., 0]

    return init, apply


def targets(reward: jax.Array, done: jax.Array, ahead: jax.Array) -> jax.Array:
    """What values should be: rewards until the episode or the steps end, then `ahead`, the value of what came next.

    All are (STEPS, ENVIRONMENTS); `ahead` is 0 where the episode is over, and not where it was only cut off.
    """

    def back(later: jax.Array, x: tuple) -> tuple[jax.Array, jax.Array]:
        reward, done, ahead = x
        now = reward + GAMMA * jnp.where(done, ahead, later)
        return now, now

    return jax.lax.scan(back, ahead[-1], (reward, done, ahead), reverse=True)[1]


def trainer(name: str, frames: int, make: Callable[[jax.Array], optax.GradientTransformation]) -> Callable[..., Any]:
    """Training as one compiled function of learning rates and seeds, (n,) each.

    Args:
        name: an environment of gymnax.
        frames: how many to train for, a multiple of BIN_FRAMES.
        make: the optimizer of a learning rate.

    Returns:
        A function that gives the sum of the returns of the episodes that ended in each of BINS parts of the training,
        and their number, (n, BINS) each. A seed starts the same network and environments whatever the optimizer.
    """
    if frames % BIN_FRAMES:
        raise ValueError(f"frames={frames}: expected a multiple of {BIN_FRAMES}")
    env, env_params = gymnax.make(name)
    init, apply = network(env.observation_space(env_params).shape, env.num_actions)
    step_all = jax.vmap(env.step, (0, 0, 0, None))

    def act(ws: Any, carry: tuple, key: jax.Array) -> tuple[tuple, Steps]:
        state, seen, score = carry
        choose, move = jax.random.split(key)
        action = jax.random.categorical(choose, apply(ws, seen)[0])
        keys = jax.random.split(move, ENVIRONMENTS)
        new, state, reward, terminated, truncated, info = step_all(keys, state, action, env_params)
        done, score = terminated | truncated, score + reward
        now = Steps(seen, action, reward, terminated, done, info["final_observation"], jnp.where(done, score, 0.0))
        return (state, new, jnp.where(done, 0.0, score)), now

    def loss(ws: Any, s: Steps) -> jax.Array:
        logits, value = apply(ws, s.seen)
        ahead = jnp.where(s.terminated, 0.0, jax.lax.stop_gradient(apply(ws, s.reached)[1]))

        target = targets(s.reward, s.done, ahead)
        log = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log, s.action[..., None], -1)[..., 0]
        gain = jnp.mean(chosen * jax.lax.stop_gradient(target - value))
        entropy = -jnp.mean(jnp.sum(jnp.exp(log) * log, -1))
        return VALUE * jnp.mean((target - value) ** 2) - gain - ENTROPY * entropy

    def replica(lr: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        optimizer = optax.chain(optax.clip_by_global_norm(NORM), make(lr))
        begin, start, run = jax.random.split(jax.random.key(seed), 3)
        ws = init(begin)
        seen, state = jax.vmap(env.reset, (0, None))(jax.random.split(start, ENVIRONMENTS), env_params)

        def update(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            ws, memory, envs, total, ended = carry
            envs, steps = jax.lax.scan(lambda c, k: act(ws, c, k), envs, jax.random.split(key, STEPS))
            change, memory = optimizer.update(jax.grad(loss)(ws, steps), memory, ws)
            ws = optax.apply_updates(ws, change)
            return (ws, memory, envs, total + steps.finished.sum(), ended + steps.done.sum()), None

        def part(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
            keys = jax.random.split(key, frames // BIN_FRAMES)
            *carry, total, ended = jax.lax.scan(update, (*carry, 0.0, 0), keys)[0]
            return tuple(carry), (total, ended)

        first = ws, optimizer.init(ws), (state, seen, jnp.zeros(ENVIRONMENTS))
        return jax.lax.scan(part, first, jax.random.split(run, BINS))[1]

    return jax.jit(jax.vmap(replica))
