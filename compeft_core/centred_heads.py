"""Centres the task vector of a classification head: what every class has in common does not travel.

A softmax over classes does not see a vector that is added to the rows of all classes alike: softmax(W x + b + (v x + c) 1) equals
softmax(W x + b). A client that holds a few of many classes moves the rows of all absent classes by one and the same vector, and these
entries fill the top k with values that carry nothing. Less the median row, the rows of the absent classes are zeros.

Example, a head of 4 classes and 2 features at a client that has rows of the first class only:

    [[ .3  .9]        median row        [[ .4  1.2]
     [-.1 -.3]    ->  [-.1 -.3]    ->    [ 0    0 ]
     [-.1 -.3]                           [ 0    0 ]
     [-.1 -.3]]                          [ 0    0 ]]
"""

from collections.abc import Collection

import numpy as np

from compeft_core.errors import InputError
from compeft_core.layout import Layout, Vector, unflatten


def centred(layout: Layout, vector: Vector, heads: Collection[str]) -> Vector:
    """A copy of a task vector in which each head has, along its first axis (classes), a median of 0 at every place.

    vector: float32 of shape (layout.size,). heads: names of tensors of shape (classes, ...), such as a weight of (classes, features) and
    its bias of (classes,). The median is NumPy's, in float32: the same values give the same bits.
    Errors: InputError for a name that the layout lacks, or a scalar; LayoutMismatchError for a vector of another length.
    """
    if not heads:
        return vector
    check_heads(layout, heads)
    result = vector.copy()
    arrays = unflatten(layout, result)
    for name in heads:
        arrays[name] -= np.median(arrays[name], axis=0)
    return result


def check_heads(layout: Layout, heads: Collection[str]) -> None:
    """Errors: InputError for a name that the layout lacks, or for a tensor without a first axis."""
    shapes = {t.name: t.shape for t in layout.tensors}
    for name in heads:
        if not shapes.get(name):
            found = "the model has no such array" if name not in shapes else "it is a scalar"
            raise InputError(f"invalid centred head {name[:80]!r}: {found}, expected an array of shape (classes, ...)")
