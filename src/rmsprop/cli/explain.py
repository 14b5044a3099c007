"""`rmsprop explain`: how two configurations differ."""

from dataclasses import replace
from typing import Annotated, Any

import typer


def _set(side: str) -> Any:
    return typer.Option(
        f"--set-{side}", help=f"An option of {side.upper()} to change; repeatable.", metavar="NAME=VALUE"
    )


def explain(
    a: Annotated[str, typer.Argument(help="A dialect or recipe.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Another, or the same with other options.", metavar="B")],
    set_a: Annotated[list[str] | None, _set("a")] = None,
    set_b: Annotated[list[str] | None, _set("b")] = None,
) -> None:
    """Show how two RMSprops differ, option by option, and by how much their first steps do.

    Dialects are libraries' (torch, keras, optax, ...), recipes papers' (efficientnet, dqn, a2c, ...); options are
    those of rmsprop.Rule.

    Examples:
      rmsprop explain torch keras
      rmsprop explain impala torchbeast
      rmsprop explain torch keras --set-a momentum=0.9 --set-b momentum=0.9
    """
    import rmsprop

    named = rmsprop.explain(a, b)
    changed = rmsprop.explain(_changed(named.rules[0], "a", set_a or []), _changed(named.rules[1], "b", set_b or []))
    print(replace(changed, names=(" ".join([a, *(set_a or [])]), " ".join([b, *(set_b or [])]))))


def _changed(rule: Any, side: str, given: list[str]) -> Any:
    """The rule with the options of "name=value" texts."""
    from rmsprop.dialects import known

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set-{side} {text}: expected NAME=VALUE, such as momentum=0.9")
        options[name] = _value(value)
    try:
        return rule.replace(**known(options))
    except TypeError as error:
        raise ValueError(f"--set-{side}: {error}") from None


def _value(text: str) -> object:
    """A number, True, False, None, or the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return float(text)
    except ValueError:
        return text
