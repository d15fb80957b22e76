"""Numbers as people read them."""

__all__ = ["count", "duration", "short"]


def count(number: float, noun: str) -> str:
    """Write a number of things: 1 worker, 2 workers, 0.5 GPUs."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write seconds: 3 min 10 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def short(number: float) -> str:
    """Write a large number with three digits: 1.25 G, 7.31 M."""
    return f"{number / 1e9:.3g} G" if number >= 999.5e6 else f"{number / 1e6:.3g} M"
