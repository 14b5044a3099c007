import json

import pytest

from rmsprop import Rule, dialect
from rmsprop.fit import DEFAULTS
from rmsprop.training.settings import Settings


def of(**options):
    return Settings.of(**{**DEFAULTS, **options})


def test_the_default_rule_is_the_tutorials():
    assert of().rule == Rule(lr=0.001, beta=0.9, epsilon=1e-7)
    assert of().rule.epsilon_mode == "inside"


def test_a_dialect_brings_its_numbers_and_a_given_one_wins():
    assert of(dialect="torch").rule == dialect("torch")
    assert of(dialect="torch", lr=0.001).rule == dialect("torch", lr=0.001)
    assert of(dialect="graves", centered=False, momentum=0.0).rule == dialect("graves", centered=False, momentum=0)


def test_settings_survive_json():
    settings = of(dialect="graves", hidden=[3, 2], drop="id", task="regression")
    assert Settings.from_json(json.loads(json.dumps(settings.as_json()))) == settings
    assert (settings.hidden, settings.drop) == ((3, 2), ("id",))
    assert of(hidden=5).hidden == (5,)
    assert of(hidden=()).hidden == ()


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("lr", -1, "at least 0"),
        ("lr", float("nan"), "at least 0"),
        ("beta", 1.0, r"\[0, 1\)"),
        ("epsilon", "x", "at least 0"),
        ("momentum", 1.5, r"\[0, 1\)"),
        ("centered", 2, "True or False"),
        ("dialect", "torhc", "did you mean 'torch'"),
        ("epochs", 0, "from 1 to 1000000"),
        ("cooldown", -0.1, "from 0 to 1"),
        ("cooldown", 1.5, "from 0 to 1"),
        ("epochs", 2.5, "whole number"),
        ("epochs", True, "whole number"),
        ("batch_size", 0, "from 1"),
        ("hidden", (0,), "from 1 to 16384"),
        ("hidden", (8,) * 33, "at most 32"),
        ("init", "Kaiming", "kaiming, zeros, huge, tiny .did you mean 'kaiming'"),
        ("seed", -1, "from 0"),
        ("seed", 2**32, "to 4294967295"),
        ("test_size", 0.0, "between 0 and 1"),
        ("test_size", 1, "between 0 and 1"),
        ("task", "guess", "classification, regression"),
    ],
)
def test_nonsense_is_refused_by_name(option, value, allowed):
    with pytest.raises(ValueError, match=rf"{option}=.*expected .*{allowed}"):
        of(**{option: value})
