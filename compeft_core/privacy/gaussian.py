"""Gaussian noise from a secret seed: rounded to integers, the same bits on every machine.

A uniform 52-bit number (r + 1/2) / 2^52 from a ChaCha20 key stream goes through the inverse of the normal distribution function
(Wichura's PPND16, Applied Statistics 37, 1988, algorithm AS 241: relative error about 10^-16), is multiplied by sigma and rounded to an
integer. Only +, -, *, / and sqrt of float64 are used, the logarithm included, so the result does not depend on a mathematical library.

Why rounded: noise as plain float64 values reveals in its last bits what it was added to (Mironov, CCS 2012). Here the values that noise
is added to are integers themselves (`clipping.on_grid`). Then x + round(y) = round(x + y): rounding is post-processing of the continuous
Gaussian mechanism and costs no privacy. What is left is the error of y itself: with sigma = 2^12 and |y| <= 8.3 sigma it is below 2^-34,
which changes the probability of one integer by a factor of at most 1 +- 2^-33, or 2^-11 in the epsilon of 2^22 parameters; numbers
beyond 8.3 sigma, of probability 2^-53 each, do not occur.

>>> rounded_gaussian(bytes(32), b"values", 4096.0, 4).tolist()
[-7422, -6413, 3739, -2507]
"""

import math
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from compeft_core.errors import InputError
from compeft_core.parallel import kernel

SEED_BYTES, DOMAIN_BYTES = 32, 12
STEP = 2**20
"""Numbers that are drawn at a time: 8 MiB of key stream."""
UNIT = 2.0**-52
LN2 = 0.6931471805599453
LN2_LOW = 2.3190468138462996e-17
"""ln 2 = LN2 + LN2_LOW."""


def rounded_gaussian(seed: bytes, domain: bytes, sigma: float, count: int) -> NDArray[np.int64]:
    """`count` independent normal numbers of this standard deviation, each rounded to the nearest integer: int64.

    seed: 32 secret bytes.   domain: up to 12 bytes; another one gives other numbers of the same seed.
    Errors: InputError for a seed of another length, a longer domain, or a sigma that is not above 0 and at most 2^48.
    """
    if len(seed) != SEED_BYTES or len(domain) > DOMAIN_BYTES:
        raise InputError(f"seed of {len(seed)} bytes and domain of {len(domain)}: expected 32, and at most 12")
    if not 0 < sigma <= 2.0**48:
        raise InputError(f"invalid sigma {sigma}: expected a number above 0 and at most 2^48")
    out = np.empty(count, np.int64)
    at = 0
    for words in _words(seed, domain, count):
        _fill(words, sigma, out[at : at + words.size])
        at += words.size
    return out


def _words(seed: bytes, domain: bytes, count: int) -> Iterator[NDArray[np.uint64]]:
    """`count` uniform 64-bit numbers in pieces: the ChaCha20 key stream of the seed, with the domain as nonce."""
    stream = Cipher(ChaCha20(seed, bytes(4) + domain.ljust(DOMAIN_BYTES, b"\0")), None).encryptor()
    for start in range(0, count, STEP):
        yield np.frombuffer(stream.update(bytes(8 * min(STEP, count - start))), "<u8")


@kernel
def _fill(words: NDArray[np.uint64], sigma: float, out: NDArray[np.int64]) -> None:
    for i in range(words.size):
        out[i] = np.int64(np.rint(sigma * _normal((np.float64(words[i] >> np.uint64(12)) + 0.5) * UNIT)))


@kernel
def _log(x: float) -> float:
    """Natural logarithm of a normal float64: x = m 2^e with m near 1, ln m = 2 artanh((m - 1) / (m + 1))."""
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = 2 * m, e - 1
    s = (m - 1) / (m + 1)
    square, term = s * s, 0.0
    for k in range(23, 0, -2):
        term = term * square + 1.0 / k
    return e * LN2 + (e * LN2_LOW + 2 * s * term)


@kernel
def _normal(p: float) -> float:
    """The number below which a standard normal variable lies with probability p, 0 < p < 1."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _ratio(r, CENTRE)
    r = math.sqrt(-_log(p if q < 0 else 1 - p))
    value = _ratio(r - 1.6, MIDDLE) if r <= 5 else _ratio(r - 5, TAIL)
    return -value if q < 0 else value


@kernel
def _ratio(r: float, c: NDArray[np.float64]) -> float:
    """Quotient of two polynomials of degree 7 by Horner's rule."""
    above, below = 0.0, 0.0
    for k in range(7, -1, -1):
        above = above * r + c[0, k]
        below = below * r + c[1, k]
    return above / below


CENTRE = np.array(
    [
        [
            3.3871328727963666080e0,
            1.3314166789178437745e2,
            1.9715909503065514427e3,
            1.3731693765509461125e4,
            4.5921953931549871457e4,
            6.7265770927008700853e4,
            3.3430575583588128105e4,
            2.5090809287301226727e3,
        ],
        [
            1.0,
            4.2313330701600911252e1,
            6.8718700749205790830e2,
            5.3941960214247511077e3,
            2.1213794301586595867e4,
            3.9307895800092710610e4,
            2.8729085735721942674e4,
            5.2264952788528545610e3,
        ],
    ]
)
MIDDLE = np.array(
    [
        [
            1.42343711074968357734e0,
            4.63033784615654529590e0,
            5.76949722146069140550e0,
            3.64784832476320460504e0,
            1.27045825245236838258e0,
            2.41780725177450611770e-1,
            2.27238449892691845833e-2,
            7.74545014278341407640e-4,
        ],
        [
            1.0,
            2.05319162663775882187e0,
            1.67638483018380384940e0,
            6.89767334985100004550e-1,
            1.48103976427480074590e-1,
            1.51986665636164571966e-2,
            5.47593808499534494600e-4,
            1.05075007164441684324e-9,
        ],
    ]
)
TAIL = np.array(
    [
        [
            6.65790464350110377720e0,
            5.46378491116411436990e0,
            1.78482653991729133580e0,
            2.96560571828504891230e-1,
            2.65321895265761230930e-2,
            1.24266094738807843860e-3,
            2.71155556874348757815e-5,
            2.01033439929228813265e-7,
        ],
        [
            1.0,
            5.99832206555887937690e-1,
            1.36929880922735805310e-1,
            1.48753612908506148525e-2,
            7.86869131145613259100e-4,
            1.84631831751005468180e-5,
            1.42151175831644588870e-7,
            2.04426310338993978564e-15,
        ],
    ]
)
