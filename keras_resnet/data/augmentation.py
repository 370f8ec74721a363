"""What training does to pictures at random."""


def pad_and_crop(picture, padding, seed):
    """Pads a picture with black and cuts its size out of the result at a random place (He et al. 2015, sec. 4.2).

    Args:
        picture: tensor (H, W, C).
        padding: pixels on each of the four sides.
        seed: tensor of two int32; the same seed cuts at the same place.

    Returns:
        Tensor (H, W, C).
    """
    import tensorflow as tf

    padded = tf.pad(picture, ((padding, padding), (padding, padding), (0, 0)))
    return tf.image.stateless_random_crop(padded, tf.shape(picture), seed)
