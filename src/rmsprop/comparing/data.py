"""The data of the built-in problems: shipped, generated, from a Python package, or found on this machine.

Nothing is ever downloaded. Files are looked for in the folder that the environment variable RMSPROP_DATA names, in any
layout, and then where Debian's packages put them.

The text is kjv.txt.xz: the five books of Moses in the King James Version of 1611, a verse a line, as Debian's
bible-kjv-text has it (`bible -f gen1:1-deu34:12`, without the verse numbers). It is in the public domain, but for the
United Kingdom, where printing it is reserved by letters patent of the Crown.
"""

import gzip
import lzma
import os
import re
from collections import Counter
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from rmsprop.comparing.problem import Split
from rmsprop.comparing.seeding import seeded

SEED = 6  # of the partition into train, valid and test, the same for ever
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist
MLBENCH = Path("/usr/lib/R/site-library/mlbench/data")  # Debian: r-cran-mlbench

Splits = tuple[Split, Split, Split]


class DataMissing(FileNotFoundError):  # noqa: N818 - it says what is the matter
    """The data of a problem, or the package that reads them, are not here; the message says how to get them."""


def partition(inputs: Tensor, targets: Tensor, valid: int, test: int) -> Splits:
    """(train, valid, test): the rows in random order, always the same; so many to valid and to test."""
    rows = torch.randperm(len(targets), generator=torch.Generator().manual_seed(SEED))
    train, second, third = torch.split(rows, [len(rows) - valid - test, valid, test])
    return (
        Split(inputs[train], targets[train]),
        Split(inputs[second], targets[second]),
        Split(inputs[third], targets[third]),
    )


def digits() -> Splits:
    """Scikit-learn's 1,797 handwritten digits of 8 by 8 pixels, in [0, 1]: 1,197, 300 and 300 of them."""
    x, y = package("sklearn.datasets", "scikit-learn").load_digits(return_X_y=True)
    return partition(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), 300, 300)


def mnist1d() -> Splits:
    """Greydanus and Kobak's one-dimensional digits (ICML 2024) of 40 points: 3,000, 1,000, and their 1,000 to test."""
    module = package("mnist1d.data", "mnist1d")
    with seeded(0):  # it seeds the global generators itself
        made = module.make_dataset()
    x = torch.tensor(np.concatenate([made["x"], made["x_test"]]), dtype=torch.float32)
    y = torch.tensor(np.concatenate([made["y"], made["y_test"]]))
    return Split(x[:3000], y[:3000]), Split(x[3000:4000], y[3000:4000]), Split(x[4000:], y[4000:])


def letters() -> Splits:
    """Frey and Slate's letters (1991): 16 measures, 0 to 15, of an image; 12,668, 2,000 and 4,000 rows, standardised.

    1,332 of the 20,000 rows are there more than once; each is taken once, so that no test row has been trained on.
    """
    rdata = package("rdata", "rdata")
    path = find("LetterRecognition.rda", MLBENCH, "r-cran-mlbench")
    table = rdata.read_rda(path, default_encoding="ascii")["LetterRecognition"].drop_duplicates()
    x = torch.tensor(table.iloc[:, 1:].to_numpy(dtype=np.float32))
    y = torch.tensor([ord(letter) - ord("A") for letter in table["lettr"]])
    train, valid, test = partition(x, y, 2000, 4000)
    std, mean = torch.std_mean(train.inputs, 0)
    return (*(Split((part.inputs - mean) / std, part.targets) for part in (train, valid, test)),)  # type: ignore[return-value]


def fashion() -> Splits:
    """Fashion-MNIST (Xiao and others 2017), 28 by 28 in [0, 1]: 20,000, the next 500, 2,000 of its test."""
    seen, test = (
        Split(
            idx(f"{name}-images-idx3-ubyte", rows)[:, None].float() / 255, idx(f"{name}-labels-idx1-ubyte", rows).long()
        )
        for name, rows in (("train", 20500), ("t10k", 2000))
    )
    return Split(*(t[:20000] for t in seen)), Split(*(t[20000:] for t in seen)), test


def idx(name: str, rows: int) -> Tensor:
    """The first rows of a file in LeCun's IDX format of bytes, gzipped or not."""
    path = find(name, FASHION, "dataset-fashion-mnist")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(4)
        if head[:3] != b"\0\0\x08":
            raise ValueError(f"{path} is not a file of bytes in IDX format: it starts with {head!r}")
        shape = np.frombuffer(file.read(4 * head[3]), ">u4").astype(int)
        values = np.frombuffer(file.read(rows * int(np.prod(shape[1:]))), np.uint8)
    return torch.tensor(values.reshape(rows, *shape[1:]))


def text() -> str:
    """The five books of Moses in the King James Version: 815,101 characters, shipped with this package."""
    packed = resources.files("rmsprop.comparing").joinpath("kjv.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("ascii")


def characters(length: int, valid: int, test: int) -> tuple[Splits, int]:
    """((train, valid, test), symbols): windows of the text, the targets one character on.

    Train has all windows of the first 80 % of the text, one after the other; valid and test have so many, evenly
    spread over the next and over the last 10 %.
    """
    found = text()
    code = {character: i for i, character in enumerate(sorted(set(found)))}
    symbols = torch.tensor([code[character] for character in found])
    tenth = len(symbols) // 10
    first, second, third = torch.split(symbols, [len(symbols) - 2 * tenth, tenth, tenth])
    return (windows(first, length), windows(second, length, valid), windows(third, length, test)), len(code)


def windows(symbols: Tensor, length: int, rows: int | None = None) -> Split:
    """So many windows, evenly spread, or all: (rows, length) symbols and those that follow each."""
    found = symbols.unfold(0, length + 1, length)
    if rows is not None:
        found = found[:: len(found) // rows][:rows]
    return Split(found[:, :-1].contiguous(), found[:, 1:].contiguous())


def pairs(words: int, window: int) -> Splits:
    """Pairs (i, j) of the text's most frequent words, and log(1 + how often j is among the `window` words after i).

    Only pairs that occur. Words are numbered by frequency, those that are equally frequent as they first occur.
    """
    found = re.findall("[a-z]+(?:'[a-z]+)?", text().lower())
    code = {word: i for i, (word, _) in enumerate(Counter(found).most_common(words))}
    ids = np.array([code.get(word, -1) for word in found])
    both = [(ids[:-k], ids[k:]) for k in range(1, window + 1)]
    codes = np.concatenate([(first * words + second)[(first >= 0) & (second >= 0)] for first, second in both])
    seen, counts = np.unique(codes, return_counts=True)
    x = torch.tensor(np.stack(np.divmod(seen, words), 1))
    return partition(x, torch.tensor(np.log1p(counts), dtype=torch.float32), 4000, 20000)


def find(name: str, system: Path, debian: str) -> Path:
    """The file of this name, or of this name and .gz, under the folder RMSPROP_DATA or in the system's folder."""
    folder = os.environ.get("RMSPROP_DATA")
    if folder and not Path(folder).is_dir():
        raise DataMissing(f"RMSPROP_DATA is {folder!r}, which is not a folder")
    for candidate in (name, f"{name}.gz"):
        found = next(Path(folder).rglob(candidate), None) if folder else None
        if found := found or next(system.glob(candidate), None):
            return found
    places = f"{system} or under RMSPROP_DATA ({folder!r})" if folder else f"{system}, and RMSPROP_DATA is not set"
    raise DataMissing(
        f"{name} is not in {places}: on Debian or Ubuntu, apt install {debian}; "
        "elsewhere, put the file into a folder and name that in RMSPROP_DATA"
    )


def package(module: str, name: str) -> ModuleType:
    """An imported module of an optional package."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DataMissing(f"the Python package {name} is not here ({error}): pip install {name}") from error
