"""Student's t distribution: how far a mean of few rounds may be off. Pure arithmetic.

Source: Numerical Recipes, 3rd edition, 6.4 (incomplete beta function by Lentz's continued fraction), 6.14.3.
"""

import math
from typing import Final

_STEPS_MAX: Final = 500
_CLOSE_ENOUGH: Final = 1e-13
_TINY: Final = 1e-300
_BISECTIONS: Final = 200


def two_sided_p(t: float, freedom: float) -> float:
    """How often |T| is at least |t| when nothing is behind it. `freedom`: degrees of freedom, above 0."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def critical_t(confidence: float, freedom: float) -> float:
    """The t that |T| stays below in `confidence` (0 to 1, both excluded) of all cases."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > 1 - confidence:
        low, high = high, high * 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if two_sided_p(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):  # where the fraction converges fast; elsewhere its mirror image does
        return math.exp(log_front) * _fraction(a, b, x) / a
    return 1 - math.exp(log_front) * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for step in range(1, _STEPS_MAX):
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= d * c
        if abs(d * c - 1) < _CLOSE_ENOUGH:
            return value
    raise ArithmeticError(f"no convergence: {a=} {b=} {x=}")


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
