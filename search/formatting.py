"""Format numbers and parameters for people."""

from collections.abc import Mapping


def count(number: float, noun: str) -> str:
    """Write a number of things: 1 worker, 2 workers, 0.5 GPUs."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write seconds: 40 s, 3 min 10 s; from ten minutes on to the minute: 43 min, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 10:
        return rough_duration(seconds)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def rough_duration(seconds: float) -> str:
    """Write seconds to the minute: 2 h 5 min, 3 min; below half a minute 10 s."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def short(number: float) -> str:
    """Write a large number with three digits: 1.25 G, 7.31 M."""
    return f"{number / 1e9:.3g} G" if number >= 999.5e6 else f"{number / 1e6:.3g} M"


def bounds(interval: tuple[float, float] | None, form: str = ".4f") -> str:
    """Write an interval: 0.1234 to 0.2345; nothing for None."""
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else ""


def cell(value: object, form: str) -> str:
    """Write a table's cell: a float in the given form, other values as they are, nothing for None."""
    return "" if value is None else f"{value:{form}}" if isinstance(value, float) else str(value)


def describe_constants(constants: Mapping[str, object]) -> str:
    """Write the parameters that are not searched, in full: ...: optimizer=muon, ema=0.9995."""
    values = ", ".join(f"{name}={value}" for name, value in constants.items())
    return f"the same in every trial of the space: {values}"
