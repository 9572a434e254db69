"""Passes that do what they can, whether or not it helps: on the small models of tests few do."""

from zc.cost.balance import Balance


def helps_always(_: Balance) -> bool:
    """Stands in for ``Balance.helps``."""
    return True


def act_always() -> None:
    """From now on, in this process, nothing is weighed by passes that would."""
    Balance.helps = helps_always
