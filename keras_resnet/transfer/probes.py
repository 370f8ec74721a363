"""Uses of features without training a network: linear probe, nearest neighbours, similar images, a map in 2D."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_resnet.errors import is_integer, value_error
from keras_resnet.files import figure_file

INVERSE_REGULARIZATIONS = tuple(10.0**power for power in range(-5, 2))
"""Candidates for the linear probe's inverse regularization (scikit-learn's C)."""
CV_FOLDS = 5
MAX_LEGEND_CLASSES = 20


@dataclass(frozen=True)
class Probe:
    """A classifier trained on features, and its accuracy on test features.

    >>> import numpy as np
    >>> from keras_resnet import transfer
    >>> transfer.Probe(np.array([0, 1, 1]), top1_accuracy=1.0, classifier=None).predictions.tolist()
    [0, 1, 1]
    """

    predictions: np.ndarray
    """(M,) int32: predicted classes of the test vectors."""
    top1_accuracy: float
    """Fraction of correctly classified test vectors, 0 to 1."""
    classifier: Any
    """The fitted scikit-learn classifier, with `predict` for other vectors."""


def linear_probe(
    train_vectors: ArrayLike,
    train_labels: ArrayLike,
    test_vectors: ArrayLike,
    test_labels: ArrayLike,
    strengths: Sequence[float] = INVERSE_REGULARIZATIONS,
) -> Probe:
    """Logistic regression on standardized features, which measures how linearly separable the classes are.

    Alain and Bengio 2016, arXiv:1610.01644.

    >>> from keras_resnet import transfer
    >>> train, labels = [[0.0, 1.0], [0.0, 2.0], [5.0, 1.0], [5.0, 2.0]], [0, 0, 1, 1]
    >>> transfer.linear_probe(train, labels, [[0.5, 1.5], [4.5, 1.5]], [0, 1]).top1_accuracy
    1.0

    Args:
        train_vectors: (N, D) numbers.
        train_labels: (N,) integers; at least two classes, with at least two vectors each.
        test_vectors: (M, D) numbers.
        test_labels: (M,) integers that occur in `train_labels`.
        strengths: inverse regularizations; cross-validation on the training vectors selects the best one.

    Returns:
        A Probe; `probe.classifier[-1].C` is the selected strength.

    Raises:
        ValueError: for arrays of other shapes or values, and for labels with a single class, a class with a single
            vector, or test classes that are not in `train_labels`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    class_sizes = _check_probe_data(train_vectors, train_labels, test_vectors, test_labels)
    if class_sizes.min() < 2:
        raise ValueError("`train_labels` should have each class at least twice. Received: a class with one vector")
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(min(CV_FOLDS, class_sizes.min()), shuffle=True, random_state=0)
    search = GridSearchCV(regression, {"logisticregression__C": list(strengths)}, cv=folds)
    return _test(search.fit(train_vectors, train_labels).best_estimator_, test_vectors, test_labels)


def nearest_neighbours(
    train_vectors: ArrayLike, train_labels: ArrayLike, test_vectors: ArrayLike, test_labels: ArrayLike, k: int = 20
) -> Probe:
    """Classification by the k nearest neighbours in cosine similarity, with equal votes.

    >>> from keras_resnet import transfer
    >>> transfer.nearest_neighbours([[1.0, 0.0], [0.0, 1.0]], [0, 1], [[0.9, 0.1]], [0], k=1).predictions
    array([0], dtype=int32)

    Args:
        train_vectors, train_labels, test_vectors, test_labels: as for `linear_probe`.
        k: number of neighbours. Among classes with equally many votes the first one wins.

    Returns:
        A Probe.

    Raises:
        ValueError: as `linear_probe`, and for a `k` outside 1 to N.
    """
    from sklearn.neighbors import KNeighborsClassifier

    _check_probe_data(train_vectors, train_labels, test_vectors, test_labels)
    _check_k(k, train_vectors)
    classifier = KNeighborsClassifier(k, metric="cosine").fit(train_vectors, train_labels)
    return _test(classifier, test_vectors, test_labels)


def _test(classifier, vectors, labels):
    predictions = classifier.predict(vectors).astype("int32")
    return Probe(predictions, float((predictions == labels).mean()), classifier)


def nearest_images(
    query_vectors: ArrayLike, vectors: ArrayLike, names: Sequence[str], k: int = 5
) -> list[list[tuple[str, float]]]:
    """The k most similar images for each query, by the cosine similarity of their features.

    >>> from keras_resnet import transfer
    >>> transfer.nearest_images([[1.0, 0.0]], [[0.0, 2.0], [3.0, 0.0]], ["a.png", "b.png"], k=1)
    [[('b.png', 1.0)]]

    Args:
        query_vectors: (M, D) numbers.
        vectors: (N, D) numbers, of the images to search.
        names: N names of these images.
        k: number of images to return.

    Returns:
        For each query [(name, cosine similarity)], most similar first.

    Raises:
        ValueError: for arrays of other shapes or values, another number of names, and a `k` outside 1 to N.
    """
    from sklearn.neighbors import NearestNeighbors

    _check_vectors(query_vectors=query_vectors, vectors=vectors)
    num_vectors = len(np.asarray(vectors))
    _check_k(k, vectors)
    if len(names) != num_vectors:
        raise ValueError(f"`names` should be {num_vectors}, one for each vector. Received: {len(names)} names")
    distances, indices = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors).kneighbors(query_vectors)
    return [
        [(names[index], 1 - float(distance)) for index, distance in zip(*row, strict=True)]
        for row in zip(indices, distances, strict=True)
    ]


def feature_map(vectors: ArrayLike, seed: int = 0) -> np.ndarray:
    """Features in two dimensions, similar ones close together: 50 principal components, then t-SNE.

    Van der Maaten and Hinton 2008, sec. 4.2.

    >>> import numpy as np
    >>> from keras_resnet import transfer
    >>> transfer.feature_map(np.random.default_rng(0).normal(size=(8, 16))).shape
    (8, 2)

    Args:
        vectors: (N, D) numbers; at least four vectors, not all equal.
        seed: of t-SNE.

    Returns:
        (N, 2) float32.

    Raises:
        ValueError: for other vectors.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    _check_vectors(vectors=vectors)
    vectors = np.asarray(vectors)
    if len(vectors) < 4 or vectors.shape[1] < 2 or not np.ptp(vectors, axis=0).any():
        raise ValueError(
            "`vectors` should be at least four vectors with at least two numbers each, not all equal. "
            f"Received: vectors of shape {vectors.shape}"
        )
    components = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    return TSNE(perplexity=min(30, (len(vectors) - 1) / 3), random_state=seed).fit_transform(components)


def plot_feature_map(
    points: ArrayLike, labels: ArrayLike, class_names: Sequence[str], path: str | os.PathLike, title: str = ""
) -> None:
    """Plots a feature map as a scatter plot with one colour per class.

    >>> from keras_resnet import transfer
    >>> transfer.plot_feature_map([[0.0, 0.0], [1.0, 1.0]], [0, 1], ["ant", "bee"], "map.png")

    Args:
        points: (N, 2) numbers, as `feature_map` returns.
        labels: (N,) integers; images without a class (negative labels) are grey.
        class_names: names of the classes; up to 20 classes get a legend.
        path: PNG file to write.
        title: text above the plot.

    Raises:
        ValueError: for points of another shape, another number of labels, and a label without a name.
        OSError: if `path` cannot be written.
    """
    import matplotlib

    points, labels = np.asarray(points), np.asarray(labels)
    if points.shape != (len(labels), 2) or labels.max(initial=-1) >= max(1, len(class_names)):
        raise ValueError(
            "`points` should be (N, 2), and each label should have a class name. Received: points of shape "
            f"{points.shape}, {len(labels)} labels up to {labels.max(initial=-1)}, {len(class_names)} names"
        )
    with figure_file(path, figsize=(8, 7)) as figure:
        axes = figure.add_subplot(title=title)
        colours = matplotlib.colormaps["tab20" if len(class_names) > 10 else "tab10"]
        for label in np.unique(labels):
            named = 0 <= label < len(class_names)
            name, colour = (class_names[label], colours(label % colours.N)) if named else ("no class", "lightgrey")
            x, y = points[labels == label].T
            axes.scatter(x, y, s=8, color=[colour], label=name, linewidths=0)
        axes.set(xticks=[], yticks=[])
        if len(np.unique(labels)) <= MAX_LEGEND_CLASSES:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2, frameon=False)


def _check_probe_data(train_vectors, train_labels, test_vectors, test_labels):
    """Checks a classifier's training and test data; returns the number of training vectors of each class."""
    _check_vectors(train_vectors=train_vectors, test_vectors=test_vectors)
    for name, vectors, labels in (("train", train_vectors, train_labels), ("test", test_vectors, test_labels)):
        labels, count = np.asarray(labels), len(np.asarray(vectors))
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"`{name}_labels` should be {count} integers from 0, the class of each vector. "
                f"Received: labels of shape {labels.shape}, {labels.dtype}, from {labels.min(initial=0)}"
            )
    classes, sizes = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"`train_labels` should have at least two classes. Received: only {classes.tolist()}")
    if missing := sorted(set(np.unique(test_labels).tolist()) - set(classes.tolist())):
        raise ValueError(f"`test_labels` should be classes in `train_labels`. Received: {missing}, which are not")
    return sizes


def _check_vectors(**arrays):
    """Raises ValueError unless all arrays are (N, D) finite numbers with the same D."""
    first = np.shape(next(iter(arrays.values())))
    for name, vectors in arrays.items():
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "iuf" or vectors.shape[1:] != first[1:]:
            raise ValueError(
                f"`{name}` should be (N, D) numbers, with the same D in all of {list(arrays)}. "
                f"Received: {name} of shape {vectors.shape}, {vectors.dtype}"
            )
        if not np.isfinite(vectors).all():
            raise ValueError(f"`{name}` should be finite. Received: NaN or Inf in {name}")


def _check_k(k, vectors):
    count = len(np.asarray(vectors))
    if not is_integer(k, 1) or k > count:
        raise value_error("k", k, f"an integer from 1 to {count}, the number of vectors")
