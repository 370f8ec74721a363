"""What features are good for, without training a network: classifiers on top of them, likeness, and a map."""

from dataclasses import dataclass

import numpy as np

from keras_resnet.errors import is_integer
from keras_resnet.files import save_figure

STRENGTHS = tuple(10.0**power for power in range(-5, 2))
"""Of a linear probe: inverse regularisations that are tried (scikit-learn's C)."""
FOLDS = 5
LEGEND = 20
"""Classes at most that a map names."""


@dataclass(frozen=True)
class Probe:
    """A classifier on top of features, and how good it is."""

    predicted: np.ndarray
    """(M,) int32: the classes of the test vectors."""
    top1_accuracy: float
    """Share of correctly classified test vectors, 0 to 1."""
    classifier: object
    """scikit-learn's, with `predict` for other vectors."""


def linear_probe(train_vectors, train_labels, test_vectors, test_labels, strengths=STRENGTHS):
    """Logistic regression on standardised features: how linearly separable are the classes? (Alain and Bengio 2016,
    arXiv:1610.01644)

    Args:
        train_vectors: (N, D) numbers.
        train_labels: (N,) integers, two classes at least, with two vectors each.
        test_vectors: (M, D) numbers.
        test_labels: (M,) integers, of these classes.
        strengths: inverse regularisations; the best one is chosen by cross-validation on the training vectors.

    Returns:
        A Probe; `probe.classifier[-1].C` is the strength.

    Raises:
        ValueError: for vectors and labels that are not such, a single class, a class with a single vector, and classes
            to test on that are none to train on.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sizes = _check(train_vectors, train_labels, test_vectors, test_labels)
    if sizes.min() < 2:
        raise ValueError(f"`train_labels` should have each class twice at least. Received: {sizes.min()} of one")
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(min(FOLDS, sizes.min()), shuffle=True, random_state=0)
    search = GridSearchCV(regression, {"logisticregression__C": list(strengths)}, cv=folds)
    return _probe(search.fit(train_vectors, train_labels).best_estimator_, test_vectors, test_labels)


def nearest_neighbours(train_vectors, train_labels, test_vectors, test_labels, k=20):
    """The class that most of the k nearest training vectors have, by cosine similarity.

    Args:
        train_vectors, train_labels, test_vectors, test_labels: as for `linear_probe`.
        k: how many neighbours vote, each with one vote; of classes with equally many votes the first one wins.

    Returns:
        A Probe.

    Raises:
        ValueError: as `linear_probe`, and for another k than from 1 to N.
    """
    from sklearn.neighbors import KNeighborsClassifier

    _check(train_vectors, train_labels, test_vectors, test_labels)
    _check_count(k, train_vectors)
    classifier = KNeighborsClassifier(k, metric="cosine").fit(train_vectors, train_labels)
    return _probe(classifier, test_vectors, test_labels)


def _probe(classifier, vectors, labels):
    predicted = classifier.predict(vectors).astype("int32")
    return Probe(predicted, float((predicted == labels).mean()), classifier)


def nearest_images(query_vectors, vectors, names, k=5):
    """The images that are most like others, by the cosine of the angle between their features.

    Args:
        query_vectors: (M, D) numbers, of the images that are asked for.
        vectors: (N, D) numbers, of those that are looked through.
        names: N names of these.
        k: how many images.

    Returns:
        For each of the M images [(name, cosine)], the most alike first.

    Raises:
        ValueError: for vectors that are not such, not as many names, and another k than from 1 to N.
    """
    from sklearn.neighbors import NearestNeighbors

    _check_vectors(query_vectors=query_vectors, vectors=vectors)
    _check_count(k, vectors)
    if len(names) != len(vectors):
        raise ValueError(f"`names` should be {len(vectors)}, one for each vector. Received: {len(names)} names")
    distances, numbers = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors).kneighbors(query_vectors)
    return [
        [(names[number], 1 - float(distance)) for number, distance in zip(*row, strict=True)]
        for row in zip(numbers, distances, strict=True)
    ]


def feature_map(vectors, seed=0):
    """Features in two dimensions, with those that are alike side by side: 50 principal components, then t-SNE (van der
    Maaten and Hinton 2008, sec. 4.2).

    Args:
        vectors: (N, D) numbers, four vectors at least, not all the same.
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
            "`vectors` should be four at least, of two numbers at least, not all the same. Received: vectors of shape "
            f"{vectors.shape}"
        )
    components = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    return TSNE(perplexity=min(30, (len(vectors) - 1) / 3), random_state=seed).fit_transform(components)


def draw_feature_map(points, labels, class_names, path, title=""):
    """Draws a map of features, in a colour for each class.

    Args:
        points: (N, 2) numbers, of `feature_map`.
        labels: (N,) integers; those below zero, of images without a class, are drawn in grey.
        class_names: names of the classes, which the legend has if they are few.
        path: the PNG to write.
        title: above the image.

    Raises:
        ValueError: for points of another shape, and labels that are not as many or have no name.
        OSError: if the folder of `path` does not exist or cannot be written to.
    """
    import matplotlib
    from matplotlib.figure import Figure

    points, labels = np.asarray(points), np.asarray(labels)
    if points.shape != (len(labels), 2) or labels.max(initial=-1) >= max(1, len(class_names)):
        raise ValueError(
            "`points` should be (N, 2), with a label each that has a name. Received: points of shape "
            f"{points.shape}, {len(labels)} labels up to {labels.max(initial=-1)}, {len(class_names)} names"
        )
    figure = Figure(figsize=(8, 7))
    axes = figure.add_subplot(title=title)
    colours = matplotlib.colormaps["tab20" if len(class_names) > 10 else "tab10"]
    for label in np.unique(labels):
        known = 0 <= label < len(class_names)
        chosen = points[labels == label]
        colour = colours(label % colours.N) if known else "lightgrey"
        axes.scatter(*chosen.T, s=8, color=[colour], label=class_names[label] if known else "no class", linewidths=0)
    axes.set(xticks=[], yticks=[])
    if len(np.unique(labels)) <= LEGEND:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2, frameon=False)
    save_figure(figure, path)


def _check(train_vectors, train_labels, test_vectors, test_labels):
    """Checks what a classifier is trained and tested on; returns how many vectors each class has."""
    _check_vectors(train_vectors=train_vectors, test_vectors=test_vectors)
    pairs = {"train": (train_vectors, train_labels), "test": (test_vectors, test_labels)}
    for name, (vectors, labels) in pairs.items():
        labels = np.asarray(labels)
        if labels.shape != (len(vectors),) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"`{name}_labels` should be {len(vectors)} integers from 0, the class of each vector. "
                f"Received: labels of shape {labels.shape}, {labels.dtype}, from {labels.min(initial=0)}"
            )
    classes, sizes = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"`train_labels` should be of two classes at least. Received: {classes.tolist()} only")
    if unknown := sorted(set(np.unique(test_labels).tolist()) - set(classes.tolist())):
        raise ValueError(
            f"`test_labels` should be classes of `train_labels`. Received: {unknown}, which are none there"
        )
    return sizes


def _check_vectors(**arrays):
    """Raises ValueError unless all are (N, D) finite numbers with the same D."""
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


def _check_count(k, vectors):
    if not is_integer(k, 1) or k > len(vectors):
        raise ValueError(f"`k` should be from 1 to {len(vectors)}, the number of vectors. Received: k={k!r}")
