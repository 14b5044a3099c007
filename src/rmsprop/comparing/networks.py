"""The networks of the built-in problems, of plain operations only, so that `torch.vmap` trains many of them at once.

Weights start as in torch's layers of the same kind, unless said otherwise.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Perceptron(nn.Sequential):
    """Linear layers of these widths, with an activation between any two."""

    def __init__(self, *widths: int, activation: type[nn.Module] = nn.ReLU) -> None:
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), activation()]
        super().__init__(*layers[:-1])


class Convolutional(nn.Sequential):
    """Images of 28 by 28 to ten classes: two convolutions of 3 by 3 with stride 2, and two linear layers."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 7 * 7, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )


class Gru(nn.Module):
    """Symbols (rows, length) to scores of the next one (rows, length, symbols), by Cho's gated recurrent unit (2014).

    r, z = σ(a + h W), n = tanh(c + r (h V + b)), h = n + z (h - n), as in `torch.nn.GRU`, which has no rule for vmap.
    The symbol picks a row [a, c] of `given`, which is an input of ones and zeros times a matrix.
    """

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.given = nn.Parameter(torch.empty(symbols, 3 * width))
        self.gates = nn.Parameter(torch.empty(width, 2 * width))
        self.new = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.empty(width))
        for p in self.parameters():
            nn.init.uniform_(p, -(width**-0.5), width**-0.5)
        self.scores = nn.Linear(width, symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        """The scores after each symbol; h starts at 0."""
        given = torch.split(F.embedding(symbols.T, self.given), [2 * self.width, self.width], -1)
        gates, new = self.gates.clone(), self.new.clone()  # contiguous, whatever matrix they are views of: 10 % faster
        h, states = self.bias.new_zeros(len(symbols), self.width), []
        for a, c in zip(*(part.unbind() for part in given), strict=True):
            r, z = torch.sigmoid(a + h @ gates).chunk(2, -1)
            n = torch.tanh(c + r * (h @ new + self.bias))
            h = n + z * (h - n)
            states.append(h)
        scores: Tensor = self.scores(torch.stack(states, 1))
        return scores


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)): a layer of a pre-norm transformer (Xiong 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.inputs, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = Perceptron(width, 4 * width, width, activation=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape (rows, length, width); no place sees a later one."""
        x = x + self.mix(self.attend(*self.inputs(self.norms[0](x)).chunk(3, -1)))
        out: Tensor = x + self.perceptron(self.norms[1](x))
        return out

    def attend(self, *parts: Tensor) -> Tensor:
        """softmax(q kᵀ / √d) v in every head; torch's own function for it is not vectorised on CPUs."""
        q, k, v = (part.view(*part.shape[:-1], self.heads, -1).transpose(1, 2) for part in parts)
        later = torch.full((q.shape[-2],) * 2, -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + later, -1)
        mixed: Tensor = (weights @ v).transpose(1, 2).flatten(2)
        return mixed


class Transformer(nn.Module):
    """Symbols (rows, length) to scores of the next one (rows, length, symbols); embeddings start from N(0, 0.02²)."""

    def __init__(self, symbols: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.symbols = nn.Parameter(0.02 * torch.randn(symbols, width))
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.scores = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, symbols))

    def forward(self, symbols: Tensor) -> Tensor:
        """The scores after each symbol."""
        x = F.embedding(symbols, self.symbols) + self.places[: symbols.shape[-1]]
        scores: Tensor = self.scores(self.blocks(x))
        return scores


class Factors(nn.Module):
    """Pairs (rows, 2) to u_i · v_j + a_i + b_j + c, factors starting from N(0, 0.1²) and the rest at 0.

    A row of `tables[0]` is [u_i, a_i], a row of `tables[1]` is [v_j, b_j].
    """

    def __init__(self, sizes: Sequence[int], factors: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(0.1 * torch.randn(size, factors + 1) for size in sizes)
        self.constant = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            for table in self.tables:
                table[:, -1] = 0

    def forward(self, pairs: Tensor) -> Tensor:
        """One number a pair."""
        first, second = (F.embedding(i, table) for i, table in zip(pairs.unbind(-1), self.tables, strict=True))
        product = (first[..., :-1] * second[..., :-1]).sum(-1)
        return product + first[..., -1] + second[..., -1] + self.constant
