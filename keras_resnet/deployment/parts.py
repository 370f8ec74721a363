"""Of what goes into an export, what a comparison of the whole does not show: compared by itself, on a few pictures."""

from itertools import cycle, islice

import numpy as np

from keras_resnet.deployment.agreement import Tally, said_by
from keras_resnet.deployment.pictures import encoded, opened

FEW = 16
"""Pictures at most."""


def compare_parts(model, exported, order, look, source):
    """The Agreements of parts with a Keras model, by the names of PARTS in `report`.

    In fewer bits a slightly wrong graph passes for rounding: so its float32 self is compared as well. And files that
    the exported network decodes by itself, where it does, are resized by other code than Keras's pictures.

    Args:
        model: Keras model.
        exported: Exported.
        order: the Order it was written for.
        look: Preprocessing.
        source: Source of the pictures.
    """
    meta, first = exported.metadata, range(min(FEW, len(source.split)))
    pictures = list(opened(source.split, first, look.channels, []))
    if not pictures:
        return {}
    size = exported.session.batch_size or len(pictures)
    pictures = list(islice(cycle(pictures), size))
    pixels = look.pixels(pictures)
    answers = {"encoded_files": exported.of_files(encoded(pictures))}
    if order.precision != "float32":
        graph, _ = order.graph()
        answers["float32_graph"] = graph.predict_on_batch(meta.taken(look, pixels))
    said = said_by(model, meta, look, pixels)
    return {name: _agreement(meta, said, answer) for name, answer in answers.items() if answer is not None}


def _agreement(metadata, said, answer):
    tally = Tally(metadata)
    tally.add(said, {name: np.asarray(array) for name, array in answer.items()})
    return tally.agreement()
