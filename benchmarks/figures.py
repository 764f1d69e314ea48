"""How numbers are written in reports."""


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent; an unknown value is a dash."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def ratio_text(value: float | None) -> str:
    """A ratio such as `3.4x`."""
    return "–" if value is None else f"{number(value, 2 if value < 10 else 3)}x"
