"""What a run trains on, whatever the backend."""

import contextlib

import keras

from keras_resnet.training.distribution import (
    AverageBatchNorm,
    check_batch,
    cluster,
    distribute,
    distribute_test,
    is_chief,
    strategy,
)


def jit_compile(xla=None):
    """Keras's `jit_compile`: as asked, else XLA wherever it is faster; on TensorFlow's CPU it halves a step's speed."""
    if xla is not None:
        return xla
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False


class Devices:
    """What a run trains on: one place for what differs between backends, devices and machines.

    Args:
        devices: as `strategy` takes them. Other backends than TensorFlow use the device that Keras gives them.

    Raises:
        ValueError: as `strategy`, and for several devices on another backend.
    """

    def __init__(self, devices=None):
        self.strategy = None
        if keras.backend.backend() == "tensorflow":
            self.strategy = strategy(devices)
        elif devices not in (None, 1):
            raise ValueError(
                f"`devices` should be None or 1 on the {keras.backend.backend()} backend: several need TensorFlow's. "
                f"Received: devices={devices!r}"
            )

        self.callbacks = [AverageBatchNorm()] if self.replicas > 1 else []
        """What keeps batch norm's statistics together: to stand first among the callbacks of a `fit`."""

    @property
    def replicas(self):
        """How many parts a batch is divided into."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def machines(self):
        """How many share the run."""
        return len(cluster()) if self.strategy else 1

    @property
    def is_chief(self):
        """Whether this machine writes files."""
        return self.strategy is None or is_chief()

    @contextlib.contextmanager
    def explained(self):
        """Within the block, what TensorFlow raises (no memory, a damaged image, a machine lost) is a RuntimeError."""
        if self.strategy is None:
            yield
            return
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            reason = error.message.strip().splitlines()[0][:300]  # the graph follows
            raise RuntimeError(f"TensorFlow ended the run: {type(error).__name__}: {reason}") from error

    def make_deterministic(self):
        """The same numbers in every run, bit by bit; JAX and torch are left as they are on the CPU."""
        if self.strategy:
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()

    def scope(self):
        """Where the network is built and compiled."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def check_batch(self, batch_size):
        """As the function of that name."""
        check_batch(batch_size, self.replicas)

    def distribute(self, make_dataset, batch_size):
        """As the function of that name."""
        return distribute(make_dataset, batch_size, self.strategy) if self.strategy else make_dataset(0, 1)

    def distribute_test(self, make_dataset, images, batch_size):
        """As the function of that name."""
        if not self.strategy:
            return make_dataset(0, 1)
        return distribute_test(make_dataset, images, batch_size, self.strategy)
