"""The problems that come with the package: classifiers, an autoencoder, language models, a factorisation."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from rmsprop.comparing import data
from rmsprop.comparing.networks import Convolutional, Factors, Gru, Perceptron, Transformer
from rmsprop.comparing.problem import Problem, Split


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of rows whose largest output is not the target's."""
    return (outputs.argmax(-1) != targets).float().mean()


def per_character(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of (rows, length, symbols) scores, in nats a character."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def digits() -> Problem:
    """Handwritten digits of 8 by 8 pixels and a small perceptron."""
    about = "scikit-learn's 8x8 digits, perceptron 64-64-64-10"
    model = partial(Perceptron, 64, 64, 64, 10)
    return Problem("digits", about, model, F.cross_entropy, *data.digits(), steps=400, error=wrong)


def mnist1d() -> Problem:
    """One-dimensional digits, made to be hard for a perceptron."""
    about = "MNIST-1D (PyPI mnist1d), perceptron 40-100-100-10"
    model = partial(Perceptron, 40, 100, 100, 10)
    return Problem("mnist1d", about, model, F.cross_entropy, *data.mnist1d(), steps=400, error=wrong)


def letters() -> Problem:
    """Printed letters described by 16 measures."""
    about = "UCI's letters (Debian r-cran-mlbench), perceptron 16-64-64-26"
    model = partial(Perceptron, 16, 64, 64, 26)
    return Problem("letters", about, model, F.cross_entropy, *data.letters(), steps=500, error=wrong)


def fashion() -> Problem:
    """Pictures of clothes and a small convolutional network."""
    about = "Fashion-MNIST (Debian dataset-fashion-mnist), two convolutions of 6 and 12 channels, linear 588-32-10"
    return Problem("fashion", about, Convolutional, F.cross_entropy, *data.fashion(), steps=400, error=wrong)


def autoencoder() -> Problem:
    """The same pictures through ten numbers and back: deep, of tanh, hard to train."""
    about = "Fashion-MNIST averaged to 14x14, tanh autoencoder 196-96-64-32-10-32-64-96-196"
    model = partial(Perceptron, 196, 96, 64, 32, 10, 32, 64, 96, 196, activation=nn.Tanh)
    train, valid, test = (Split(x, x) for x in (F.avg_pool2d(part.inputs, 2).flatten(1) for part in data.fashion()))
    return Problem("autoencoder", about, model, F.mse_loss, train, valid, test, steps=500)


def gru() -> Problem:
    """The next character of the books of Moses by a recurrent network."""
    about = "characters of the King James books of Moses (shipped), GRU of 48 units, windows of 32"
    splits, symbols = data.characters(32, 128, 256)
    return Problem("gru", about, partial(Gru, symbols, 48), per_character, *splits, steps=400, batch_size=16)


def transformer() -> Problem:
    """The next character of the books of Moses by a transformer."""
    about = "characters of the King James books of Moses (shipped), pre-norm transformer, 2 layers of 32, windows of 32"
    splits, symbols = data.characters(32, 128, 256)
    model = partial(Transformer, symbols, length=32, width=32, heads=2, layers=2)
    return Problem("transformer", about, model, per_character, *splits, steps=400, batch_size=12)


def cooccurrence() -> Problem:
    """Which words come near each other, by factors of words: most words are rare, so most gradients are zero."""
    about = "co-occurrence of 1,500 words in the King James books of Moses (shipped), biased factorisation of rank 16"
    model = partial(Factors, (1500, 1500), 16)
    return Problem("cooccurrence", about, model, F.mse_loss, *data.pairs(1500, 5), steps=600, batch_size=512)


BUILTIN: dict[str, Callable[[], Problem]] = {
    make.__name__: make for make in (digits, mnist1d, letters, fashion, autoencoder, gru, transformer, cooccurrence)
}
