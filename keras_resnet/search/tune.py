"""`tune`: the most accurate network that a budget allows, and how to train it."""

import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from keras_resnet.architecture.spec import write_spec
from keras_resnet.data.datasets import DEFAULT_VALIDATION_SPLIT
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import check_integers, unknown_name_error
from keras_resnet.files import atomic_write, read_json, write_json
from keras_resnet.search.budget import Budget, Candidates
from keras_resnet.search.candidates import Training, set_aside
from keras_resnet.search.results import Candidate, SearchResult, as_markdown, draw
from keras_resnet.search.space import SPACE, changes_of, rows_for, settle, spec_of
from keras_resnet.training.checkpoints import OVERWRITE_HINT, check_settings
from keras_resnet.training.distribution import Devices
from keras_resnet.training.workdir import REPORT, writable_folder

SETTINGS, ORACLE = "search.json", "oracle.json"
RESULT, TABLE, IMAGE, WINNER = "results.json", "results.md", "results.png", "winner.json"
FILES = (SETTINGS, ORACLE, RESULT, TABLE, IMAGE, WINNER)
FOLDERS = re.compile(r"(trial|final)_\d+")


def tune(
    dataset="digits",
    tuner="random",
    trials=20,
    max_params=None,
    max_multiply_adds=None,
    max_latency=None,
    recipe="quickstart",
    workdir=None,
    seed=0,
    overwrite=False,
    *,
    validation_split=DEFAULT_VALIDATION_SPLIT,
    final=True,
    space=SPACE,
    checkpoint_every=None,
    deterministic=False,
    devices=None,
    precision=None,
    xla=None,
    progress=lambda text: None,
    **changes,
):
    """Searches for the network and the recipe with the highest accuracy within a budget.

    Candidates are drawn from SPACE; one over the budget is drawn again before it is built. They are trained on a part
    of the training images and judged by the rest; the test images are looked at once, in the end, with the best one
    trained anew on all of them. A search that was interrupted goes on where it stopped, in the middle of a candidate;
    with more `trials` a finished one goes on as well.

    Several processes share a search as KerasTuner's guide to distributed tuning says: each calls this, with
    KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT in its environment, and KERASTUNER_TUNER_ID "chief" in one, a name
    of its own in each other. The chief trains only in the end. The trial of a worker that dies is given to the next.

    Args:
        dataset: as `train` takes it: a name, a Dataset in memory, or a function that gives one.
        tuner: "random", "bayesian" or "hyperband". Hyperband trains many candidates for a few epochs and the best of
            them for more, each with a schedule as long as its training, hence from the start.
        trials: candidates to train, those of earlier calls included.
        max_params: most trainable parameters; None is no limit.
        max_multiply_adds: most multiply-adds for one image.
        max_latency: most milliseconds for one image, measured here; candidates are built for it, but not trained.
        recipe: name of a recipe, or a Recipe, for what the space leaves open.
        workdir: folder for results.json, results.md, results.png, winner.json and the trials' own; None keeps nothing.
        seed: of the candidates, of weights, order and augmentation.
        overwrite: whether the search that `workdir` already holds is removed.
        validation_split: share in (0, 1) or number of the training images that judge.
        final: whether the best one is trained on all training images and tested.
        space: rows as in SPACE.
        checkpoint_every, deterministic, devices, precision, xla: as for `train`; devices of one machine.
        progress: function that is told in words which candidate comes next.
        **changes: fields of the recipe to change, such as `epochs=2`; one that the space has is not searched then.

    Returns:
        A SearchResult. A worker's is what the chief has written so far, if they share `workdir`.

    Raises:
        ValueError: for an unknown name, a single class, a budget that no candidate meets, and another search in
            `workdir`; before the first trial.
        OSError: as `train`. RuntimeError: if no candidate could be trained.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when a checkpoint is written; the same call then goes on.
    """
    from keras_resnet.search.oracles import ORACLES, Trials

    if tuner not in ORACLES:
        raise unknown_name_error("tuner", tuner, ORACLES)
    check_integers(trials=trials)
    options = {"checkpoint_every": checkpoint_every, "deterministic": deterministic, "devices": devices, "xla": xla}
    recipe, space = settle(recipe, space, changes)
    training = _training(dataset, validation_split, recipe, seed, options | {"precision": precision}, progress)
    shape, budget = training.input_shape, Budget(max_params, max_multiply_adds, max_latency)
    candidates = Candidates(rows_for(shape[0], space), budget, shape, len(training.dataset.class_names))
    with _folder(workdir) as folder:
        search = _Search(folder, _settings(tuner, training, candidates), candidates)
        oracle_class, arguments = ORACLES[tuner]
        oracle = oracle_class(candidates, trials, seed, search.publish, **arguments(trials, training.epochs))
        loop = Trials(oracle, training.judge, folder)
        if loop.is_worker:
            search.check()
            loop.search()
            return search.read()
        search.begin(oracle, overwrite)
        loop.search()
        return search.finish(oracle, training if final else None)


def _training(dataset, validation_split, recipe, seed, options, progress):
    """The Training, checked."""
    devices = Devices(options["devices"])  # first, as in `train`: what reads images starts TensorFlow's devices
    dataset = as_dataset(dataset)
    training = Training(dataset, set_aside(dataset, validation_split), recipe, seed, options, progress)
    training.check(devices)
    return training


def _settings(tuner, training, candidates):
    """What search this is, as JSON values; how many trials it has may change."""
    return {
        "tuner": tuner,
        **training.settings(),
        "budget": asdict(candidates.budget),
        "space": {name: list(row) for name, row in candidates.rows.items()},
    }


@contextmanager
def _folder(workdir):
    """The folder of a search as a Path, which exists; without one, until the block ends."""
    if workdir is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    with writable_folder(workdir):
        pass
    yield Path(workdir)


@dataclass(frozen=True)
class _Search:
    """The folder of a search."""

    workdir: Path
    settings: dict
    candidates: Candidates

    def check(self):
        """Raises ValueError if the folder holds another search."""
        path, oracle = self.workdir / SETTINGS, self.workdir / ORACLE
        otherwise = OVERWRITE_HINT.format("folder")
        if oracle.exists() and not path.exists():
            raise ValueError(f"`workdir` holds a search of KerasTuner that is not ours. {otherwise} Received: {oracle}")
        if path.exists():
            check_settings(read_json(path), self.settings, path, otherwise)

    def begin(self, oracle, overwrite):
        """Goes on with the search that the folder holds, or begins one.

        Raises:
            ValueError: as `check`.
        """
        if overwrite:
            self._clear()
        self.check()
        write_json(self.settings, self.workdir / SETTINGS)
        if (self.workdir / ORACLE).exists():
            oracle.reload()

    def _clear(self):
        """Removes the search, if there is one; what else is in the folder stays."""
        if not any((self.workdir / name).exists() for name in (SETTINGS, ORACLE)):
            return
        for folder in self.workdir.iterdir():
            if FOLDERS.fullmatch(folder.name) and folder.is_dir():
                shutil.rmtree(folder)
        for name in FILES:
            (self.workdir / name).unlink(missing_ok=True)

    def publish(self, oracle):
        """The SearchResult as far as it is known; with an accuracy in it, everything that people read is written."""
        tried = tuple(self._candidate(oracle.trials[trial]) for trial in sorted(oracle.trials, key=int))
        result = SearchResult(self.settings, tried)
        if not result.winner:
            return result
        report = self._final(result.winner) / REPORT
        result = replace(result, final=read_json(report) if report.exists() else None)
        write_spec(result.winner.spec, self.workdir / WINNER)
        with atomic_write(self.workdir / TABLE) as partial:
            partial.write_text(as_markdown(result), "utf-8")
        draw(result, self.workdir / IMAGE)
        write_json(result.to_config(), self.workdir / RESULT)
        return result

    def finish(self, oracle, training):
        """The SearchResult after the last trial; with a Training, the best candidate is trained in full.

        Raises:
            RuntimeError: if no candidate could be trained.
        """
        result = self.publish(oracle)
        if not result.winner:
            reasons = [candidate.message for candidate in result.candidates if candidate.message]
            raise RuntimeError(f"No candidate could be trained. The last one: {(reasons or ['no reason given'])[-1]}")
        if training is None:
            return result
        training.finish(result.winner, self._final(result.winner))
        return self.publish(oracle)

    def read(self):
        """The SearchResult as the chief has last written it into this folder."""
        path = self.workdir / RESULT
        return SearchResult.from_config(read_json(path)) if path.exists() else SearchResult(self.settings, ())

    def _final(self, winner):
        return self.workdir / f"final_{winner.trial}"

    def _candidate(self, trial):
        """KerasTuner's Trial as a Candidate."""
        values, metrics = trial.hyperparameters.values, trial.metrics
        cost, lines = self.candidates.cost(values), (trial.message or "").strip().splitlines()
        seconds = metrics.get_best_value("wall_time_s") if metrics.exists("wall_time_s") else None
        return Candidate(
            trial=trial.trial_id,
            status=trial.status,
            spec=spec_of(values),
            recipe=changes_of(values),
            parameters=cost.parameters,
            multiply_adds=cost.multiply_adds,
            top1_accuracy=trial.score if trial.status == "COMPLETED" else None,
            wall_time_s=seconds,
            message=lines[-1] if lines else None,
        )
