"""Which tiles of a mask can be seen, from the mask alone: interval and congruence arithmetic, no M x N anything.

``formula`` brings the mask into normal form, ``bounds`` bounds it over a tile, ``solve`` and ``ranges`` turn it into
ranges of one position.
"""

from attnc.analyse.mask.analysis import analyse_mask

__all__ = ["analyse_mask"]
