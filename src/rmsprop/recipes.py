"""The RMSprop of well-known papers: every constant of the update, what belongs to it outside, and where it was read.

A recipe stands for options of any front end; options given beside it win.

    >>> import numpy as np, rmsprop
    >>> w = np.zeros(3)
    >>> optimizer = rmsprop.RMSprop([w], lr=1e-3, **rmsprop.recipes.dqn)
    >>> optimizer.rule.epsilon, optimizer.rule.centered, optimizer.lr
    (0.01, True, 0.001)

What an optimizer cannot do is there as data, under names: schedule, batch size, norm to clip gradients to, ...

    >>> recipe = rmsprop.recipes.efficientnet
    >>> recipe.batch_size, recipe.weight_average, [round(recipe.schedule(epoch), 4) for epoch in (1, 5, 10)]
    (4096, 0.9999, [0.2, 0.9409, 0.8853])

`RECIPES` has them all by name. A source names repository, commit and file, or the paper's section.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from math import inf

from rmsprop.dialects import GRAVES, dialect
from rmsprop.rule import Rule


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the learning rate is multiplied by, as a function of the time trained.

    Args:
        unit: of time: "epochs", or "run" for the part of the whole run, 0 to 1.
        factor, every: multiply by `factor` after every `every` units, in steps as a staircase.
        warmup: over so many units first, rise linearly from 0; the staircase counts from the start all the same.
        end: fall linearly from 1 to 0 at this time, instead of the staircase.

    Example:
        >>> from rmsprop.recipes import Schedule
        >>> halves = Schedule(factor=0.5, every=2)
        >>> halves(0), halves(1.9), halves(2), halves(5)
        (1.0, 1.0, 0.5, 0.25)
    """

    unit: str = "epochs"
    factor: float = 1.0
    every: float = inf
    warmup: float = 0.0
    end: float = inf

    def __call__(self, time: float) -> float:
        """The multiplier at `time`, at least 0."""
        if time < self.warmup:
            return time / self.warmup
        return float(self.factor ** (time // self.every) * max(0.0, 1 - time / self.end))


_CONSTANT, _LINEAR = Schedule(), Schedule("run", end=1.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One paper's or repository's RMSprop: `**recipe` gives a front end its rule.

    Attributes:
        rule: every constant of the update. Weight decay is what the source applies, and `note` says to which weights.
        source: where the constants were read.
        schedule: of the learning rate, a factor of `rule.lr`.
        batch_size: examples a step, over all devices, where the source says it.
        clip_norm: what the norm of all gradients together is clipped to before the step.
        weight_average: decay a step of the average of the weights that is evaluated.
        critic_steps: updates of a WGAN's critic for each of the generator's.
        unverified: names among these, or of the rule's options, that the source does not give or that could not be
            checked in it; `note` says more.
        note: what else a user should know.
    """

    rule: Rule
    source: str
    schedule: Schedule = _CONSTANT
    batch_size: int | None = None
    clip_norm: float | None = None
    weight_average: float | None = None
    critic_steps: int | None = None
    unverified: tuple[str, ...] = ()
    note: str = ""

    def keys(self) -> tuple[str, ...]:
        """The names of the options, for `**recipe`."""
        return ("dialect",)

    def __getitem__(self, name: str) -> Rule:
        if name != "dialect":
            raise KeyError(name)
        return self.rule


inception_v3 = Recipe(
    dialect("tf1", lr=0.045, epsilon=1.0, momentum=0.9, weight_decay=4e-5),
    "arXiv:1512.00567, section 8; momentum: tensorflow/models @4f77686 research/inception/inception/"
    "inception_train.py; weight decay: @07ed366 research/slim/train_image_classifier.py",
    Schedule(factor=0.94, every=2),
    batch_size=32,
    clip_norm=2.0,
    unverified=("clip_norm",),
    note="32 examples on each of the paper's replicas; it clips 'with threshold 2.0' and does not say whether norm or "
    "entries. Evaluate a running average of the weights, whose decay it does not give.",
)
mobilenet_v2 = Recipe(
    dialect("tf1", lr=0.045, epsilon=1.0, momentum=0.9, weight_decay=4e-5),
    "arXiv:1801.04381, section 6.1; epsilon and average: tensorflow/models @0ba83cf research/slim/nets/mobilenet/"
    "README.md and, where that leaves the default, @07ed366 research/slim/train_image_classifier.py",
    Schedule(factor=0.98, every=1),
    batch_size=96,
    weight_average=0.9999,
    note="96 on each of 16 asynchronous workers in the paper; slim's recipe has lr 0.045 and a batch of 96 for each "
    "GPU, and decays every 2.5 epochs.",
)
mobilenet_v3 = Recipe(
    dialect("tf1", lr=0.1, momentum=0.9, weight_decay=1e-5),
    "arXiv:1905.02244, section 6.1.1",
    Schedule(factor=0.99, every=3),
    batch_size=4096,
    weight_average=0.9999,
    unverified=("beta", "epsilon", "schedule"),
    note="'Standard tensorflow RMSPropOptimizer with 0.9 momentum': beta and epsilon are its defaults here; "
    "torchvision takes an epsilon of 0.001. 'Decay rate of 0.01 every 3 epochs' is read as a factor of 0.99.",
)
mobilenet_v3_torchvision = Recipe(
    dialect("torch", lr=0.064, beta=0.9, epsilon=0.0316, momentum=0.9, weight_decay=1e-5),
    "pytorch/vision, references/classification/README.md and train.py",
    Schedule(factor=0.973, every=2),
    batch_size=1024,
    note="128 on each of 8 GPUs, 600 epochs. 0.0316 is the root of TensorFlow's 0.001, moved out of the root: not the "
    "same rule. The released weights average the last 3 checkpoints that improved.",
)
mnasnet = Recipe(
    dialect("tf1", lr=0.064, epsilon=1e-3, momentum=0.9, weight_decay=1e-5),
    "tensorflow/tpu, models/official/mnasnet: @1aff05d configs/mnasnet_config.py, @5ef64b7 mnasnet_utils.py, "
    "@0098128 mnasnet_main.py",
    Schedule(factor=0.97, every=2.4, warmup=5),
    batch_size=1024,
    weight_average=0.9999,
    note="lr is 0.016 for each 256 examples. Batch normalisation's weights and biases do not decay.",
)
efficientnet = Recipe(
    dialect("tf1", lr=0.256, epsilon=1e-3, momentum=0.9, weight_decay=1e-5),
    "arXiv:1905.11946, section 5.2; tensorflow/tpu, models/official/efficientnet: @139e1f4 utils.py, @01b6706 main.py",
    Schedule(factor=0.97, every=2.4, warmup=5),
    batch_size=4096,
    weight_average=0.9999,
    note="lr is 0.016 for each 256 examples: the paper's 0.256 belongs to 4096, the code's own default is 2048. Batch "
    "normalisation's weights and biases do not decay.",
)
dqn = Recipe(
    Rule(2.5e-4, 0.95, 0.01, centered=True),
    "Mnih et al., Nature 518, 2015: its Lua code, dqn/NeuralQLearner.lua (qLearnMinibatch) and run_gpu, in "
    "kuz/DeepMind-Atari-Deep-Q-Learner @54978fa",
    batch_size=32,
    note="The paper's 'gradient momentum 0.95' is the decay of the mean gradient in the centered form, no momentum. "
    "Temporal differences are clipped to 1, and their gradients summed over the batch; one step every 4 actions.",
)
dqn_dopamine = Recipe(
    dialect("tf1", lr=2.5e-4, beta=0.95, epsilon=1e-5, centered=True),
    "google/dopamine @31799e9 dopamine/agents/dqn/configs/dqn_nature.gin",
    batch_size=32,
    note="Not the rule of the paper's code: v starts at 1, and epsilon is a thousandth.",
)
a3c = Recipe(
    Rule(7e-4, 0.99, 0.1),
    "arXiv:1602.01783; constants from its authors by mail, quoted in github.com/miyosuda/async_deep_reinforce/issues/1",
    _LINEAR,
    clip_norm=40.0,
    unverified=("epsilon_mode", "initial_square", "schedule"),
    note="The best learning rates were 'around 7e-4'; returns over 20 steps. One v, shared by all threads.",
)
a2c = Recipe(
    dialect("tf1", lr=7e-4, beta=0.99, epsilon=1e-5),
    "openai/baselines @015dc21 baselines/a2c/a2c.py",
    _LINEAR,
    clip_norm=0.5,
    note="5 steps of every environment make a batch.",
)
impala = Recipe(
    dialect("tf1", lr=4.8e-4, beta=0.99, epsilon=0.1),
    "arXiv:1802.01561; google-deepmind/scalable_agent @1033088 experiment.py, @1e70452 README.md",
    _LINEAR,
    batch_size=32,
    note="Unrolls of 100 steps. The losses are sums over batch and time, to which epsilon is fitted. The released code "
    "does not clip gradients.",
)
torchbeast = Recipe(
    dialect("torch", lr=4.8e-4, beta=0.99, epsilon=0.01),
    "facebookresearch/torchbeast @1c881b8 torchbeast/monobeast.py",
    _LINEAR,
    batch_size=8,
    clip_norm=40.0,
    note="Unrolls of 80 steps, losses summed. IMPALA in torch, with epsilon outside the root: not the same rule.",
)
qmix = Recipe(
    dialect("torch", lr=5e-4, beta=0.99, epsilon=1e-5),
    "oxwhirl/pymarl @64111fc src/config/default.yaml",
    batch_size=32,
    clip_norm=10.0,
    note="A batch is 32 episodes.",
)
wgan = Recipe(
    dialect("torch", lr=5e-5, clip_weights=0.01),
    "arXiv:1701.07875, algorithm 1; martinarjovsky/WassersteinGAN @2cf43ba main.py",
    batch_size=64,
    critic_steps=5,
    note="For the critic; the generator has the same rule without clip_weights: dialect='torch', lr=5e-5. As in the "
    "algorithm weights are clipped after each step; the code clips before, so its generator sees unclipped ones. "
    "Critic steps are 100 for the first 25 of the generator's and every 500th.",
)
graves_rnn = Recipe(GRAVES, "arXiv:1308.0850, equations 38 to 45; chainer/optimizers/rmsprop_graves.py")

#: Every recipe by name.
RECIPES = {name: value for name, value in list(globals().items()) if isinstance(value, Recipe)}


def __getattr__(name: str) -> Recipe:
    close = get_close_matches(name, RECIPES, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise AttributeError(f"no recipe {name!r}: expected one of {tuple(RECIPES)}{hint}")
