import cv2
import numpy as np

from tests.clips import numbered
from workers.pictures import fingerprint, sharpness


def test_fingerprint__lookalikes_differ_in_few_bits():
    def bits(a: np.ndarray, b: np.ndarray) -> int:
        return ((fingerprint(a) ^ fingerprint(b)) & (2**64 - 1)).bit_count()

    first, other = numbered(2, (640, 360))[1], cv2.GaussianBlur(numbered(8, (640, 360))[7][::-1], (0, 0), 3)
    assert -(2**63) <= fingerprint(first) < 2**63
    assert bits(first, cv2.resize(first, (320, 180), interpolation=cv2.INTER_AREA)) <= 4
    assert bits(first, cv2.convertScaleAbs(first, alpha=0.9, beta=10)) <= 4
    assert bits(first, np.ascontiguousarray(other)) >= 12


def test_sharpness__falls_with_blur():
    grey = cv2.cvtColor(numbered(1)[0], cv2.COLOR_RGB2GRAY)
    assert sharpness(grey) > 4 * sharpness(cv2.GaussianBlur(grey, (0, 0), 2))
