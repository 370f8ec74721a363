"""`tune`: searches for the most accurate network within a budget, and for the recipe to train it."""

import os
import re
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras

from keras_resnet.architecture.spec import write_spec
from keras_resnet.data.class_balance import images_per_epoch
from keras_resnet.data.datasets import DEFAULT_VALIDATION_SPLIT, Dataset, Split
from keras_resnet.data.sources import as_dataset
from keras_resnet.errors import check_integers, check_known, error_summary
from keras_resnet.files import atomic_write, local_path, read_json, remove, write_json
from keras_resnet.locks import wait_for_lock
from keras_resnet.precision import precision_of
from keras_resnet.search.budget import Budget, BudgetedSpace
from keras_resnet.search.results import Candidate, SearchResult, describe, plot_results, to_markdown
from keras_resnet.search.space import SPACE, Space, resolve_space, space_for_images, to_recipe_changes, to_spec
from keras_resnet.training.callbacks import run_in_series
from keras_resnet.training.checkpoints import OVERWRITE_HINT, check_settings
from keras_resnet.training.distribution import Devices
from keras_resnet.training.options import RunOptions, split_options
from keras_resnet.training.recipe import Recipe
from keras_resnet.training.recipes import check_recipe_task, get_recipe
from keras_resnet.training.train import check_run, train
from keras_resnet.training.workdir import REPORT, clear_runs, locked_workdir, make_workdir, read_report

SETTINGS, ORACLE = "search.json", "oracle.json"
RESULTS, TABLE, PLOT, WINNER = "results.json", "results.md", "results.png", "winner.json"
FILES = (SETTINGS, ORACLE, RESULTS, TABLE, PLOT, WINNER)
RUN_FOLDER = re.compile(r"(trial|final)_\d+")


def tune(
    dataset: str | Dataset | Callable[[], Dataset] = "digits",
    tuner: str = "random",
    trials: int = 20,
    max_params: int | None = None,
    max_multiply_adds: int | None = None,
    max_latency: float | None = None,
    recipe: str | Recipe = "quickstart",
    workdir: str | os.PathLike | None = None,
    *,
    options: RunOptions | None = None,
    validation_split: int | float = DEFAULT_VALIDATION_SPLIT,
    final: bool = True,
    space: Space = SPACE,
    progress: Callable[[str], None] = lambda text: None,
    **changes: Any,
) -> SearchResult:
    """Searches for the network and the recipe with the highest accuracy within a budget.

    Candidates are sampled from SPACE; one over the budget is replaced before it is built. Each is trained on a part of
    the training images and validated on the rest. The test images are used only once, at the end, after the best
    candidate has been trained on all training images. An interrupted search continues where it stopped, even within
    the training of a candidate; a finished search continues with more `trials`.

    Several processes can share a search, as in KerasTuner's guide to distributed tuning: each calls this function, with
    KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT in its environment, and KERASTUNER_TUNER_ID "chief" in one, another
    name in each of the others. The chief trains only the best candidate at the end. If a worker dies, another one gets
    its trial.

    >>> import keras_resnet
    >>> result = keras_resnet.tune("digits", trials=1, max_params=25_000, final=False, iterations=2, batch_size=64)
    >>> result.winner.parameters <= 25_000
    True

    Args:
        dataset: as for `train`: a name, a Dataset in memory, or a function that returns one.
        tuner: "random", "bayesian" or "hyperband". Hyperband trains many candidates for a few epochs, and the best of
            them from the beginning for more epochs.
        trials: number of candidates to train, including those of earlier calls.
        max_params: upper limit of trainable parameters; None for no limit.
        max_multiply_adds: upper limit of multiply-adds for one image.
        max_latency: upper limit of milliseconds for one image, measured on this machine with untrained candidates.
        recipe: name of a recipe, or a Recipe, for everything that is not searched.
        workdir: local folder for results.json, results.md, results.png, winner.json and the runs; None keeps nothing.
        options: RunOptions; its fields can also be given as keywords. A search always resumes; `overwrite` removes an
            earlier search from `workdir`.
        validation_split: fraction in (0, 1) or number of the training images for validation.
        final: whether to train the best candidate on all training images and test it.
        space: rows as in SPACE.
        progress: called with a description of each candidate before its training.
        **changes: fields of RunOptions, such as `seed=3`, and fields of the recipe to change, such as `epochs=2`;
            fields of the space that are given here are not searched.

    Returns:
        A SearchResult; in a worker, the one that the chief wrote last, if they share `workdir`.

    Raises:
        ValueError: before the first trial, for an unknown name, a data set with one class, a budget that no candidate
            meets, and a `workdir` that holds another search.
        OSError: as `train`, also while another process has the search. RuntimeError: if no candidate could be trained.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written; the same call then continues.
    """
    from keras_resnet.search.oracles import ORACLES, TrialLoop

    check_known("tuner", tuner, ORACLES)
    check_integers(trials=trials)
    options, changes = split_options(options, changes)
    recipe, space = resolve_space(recipe, space, changes)
    check_recipe_task(recipe, "classification", "to search for classifiers; `keras_resnet.train` trains others")
    local = workdir and local_path(workdir, "workdir")  # KerasTuner keeps its trials there
    devices = Devices(options.devices)  # before images are read, which initializes TensorFlow's devices
    dataset = as_dataset(dataset)
    if dataset.has_any_size:  # candidates of all stems get images of one size, with which their cost is computed
        recipe = replace(recipe, test_size=recipe.test_size or dataset.preprocessing.size)
    search_dataset = split_for_search(dataset, validation_split)
    trainer = CandidateTrainer(dataset, search_dataset, recipe, devices, options, progress)
    budget, side = Budget(max_params, max_multiply_adds, max_latency), recipe.test_size or dataset.input_shape[0]
    shape = (side, side, dataset.input_shape[-1])
    candidates = BudgetedSpace(space_for_images(side, space), budget, shape, len(dataset.class_names or ()))
    settings = {
        "tuner": tuner,
        **trainer.settings(),
        "budget": asdict(budget),
        "space": {name: list(row) for name, row in candidates.space.items()},
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = local or Path(temporary)
        make_workdir(path)
        folder = SearchFolder(path, settings, candidates)
        oracle_class, arguments = ORACLES[tuner]
        arguments = arguments(trials, recipe.num_epochs(images_per_epoch(search_dataset, recipe)))
        oracle = oracle_class(candidates, trials, options.seed, folder.write_results, **arguments)
        loop = TrialLoop(oracle, trainer.evaluate_candidate, path)
        if loop.is_worker:
            folder.check()
            loop.search()
            return folder.read_results()
        with locked_workdir(path):
            folder.begin_or_resume(oracle, options.overwrite)
            loop.search()
            result = folder.write_results(oracle)
            if not result.winner:
                messages = [candidate.message for candidate in result.candidates if candidate.message]
                raise RuntimeError(f"No candidate could be trained. The last error: {(messages or ['unknown'])[-1]}")
            if final:
                trainer.train_winner(result.winner, folder.final_folder(result.winner))
                result = folder.write_results(oracle)
        return result


@dataclass(frozen=True)
class CandidateTrainer:
    """Trains the candidates of a search, all on the same images and from the same recipe.

    Raises ValueError on construction for arguments that `train` would refuse, and for several machines.
    """

    dataset: Dataset
    """All training images, and the test images."""
    search_dataset: Dataset
    """The training images only, as `split_for_search` returns them: some train candidates, the others validate them."""
    recipe: Recipe
    """For everything that a candidate does not change."""
    devices: Devices
    options: RunOptions
    progress: Callable[[str], None]
    """Called with a description of each training before it starts."""

    def __post_init__(self):
        check_run(self.search_dataset, self.recipe, self.devices, self.options)
        self.devices.check_one_machine(
            "A search distributes its candidates by KERASTUNER_ORACLE_IP, and trains each on one machine."
        )

    def settings(self):
        """What determines the results of all candidates, as JSON values."""
        return {
            "dataset": self.dataset.name,
            "training_images": len(self.search_dataset.train),
            "validation_images": len(self.search_dataset.test),
            "class_names": list(self.dataset.class_names),
            "recipe": self.recipe.to_config(),
            "seed": self.options.seed,
            "backend": keras.backend.backend(),
            "precision": self.options.precision or precision_of(keras.config.dtype_policy()),
        }

    def evaluate_candidate(self, folder, values):
        """Trains a candidate in its folder; returns its validation accuracy and the time that it took."""
        report = self._train(self.search_dataset, to_spec(values), to_recipe_changes(values), folder)
        return {name: report[name] for name in ("top1_accuracy", "wall_time_s")}

    def train_winner(self, winner, folder):
        """Trains the best candidate on all training images and tests it, unless the folder holds that run."""
        if not (folder / REPORT).exists():
            # Hyperband selects by short trainings; the final one is as long as the recipe says
            changes = {name: value for name, value in winner.recipe.items() if name != "epochs"}
            on_all = f", on all {len(self.dataset.train):,} training images"
            self._train(self.dataset, winner.spec, changes, folder, on_all)

    def _train(self, dataset, spec, changes, folder, suffix=""):
        self.progress(f"{folder.name}: {describe(spec)}{suffix}")
        recipe = get_recipe(self.recipe, **changes)
        validation_freq = 1 if recipe.needs_every_test else recipe.num_epochs(images_per_epoch(dataset, recipe))
        options = replace(self.options, resume=True, overwrite=False)
        wait_for_lock(folder)  # of a worker that was dropped too early: its candidate is trained to the end
        with run_in_series(folder.name):
            return train(spec, dataset, recipe, folder, options=options, validation_freq=validation_freq).report


def split_for_search(dataset, validation_split):
    """A Dataset of the training images alone: `validation_split` of them, a fraction or a number, are its `test`."""
    if not isinstance(dataset.train, Split):
        raise ValueError(f"`dataset` should fit in memory for a search. Received: dataset={dataset.name!r}")
    if dataset.multi_label:
        raise ValueError(f"`dataset` should have one class for each image. Received: {dataset.name}, multi-label")
    train_split, validation = dataset.train.stratified_split(validation_split)
    return replace(dataset, train=train_split, test=validation)


@contextmanager
def _expected_search(path):
    """Within the block, any error of KerasTuner, which trusts its files, becomes a ValueError."""
    try:
        yield
    except Exception as error:
        summary = f"{type(error).__name__}: {error_summary(error)}"
        raise ValueError(f"Expected the files of a search ({summary}). Received: {path}") from error


@dataclass(frozen=True)
class SearchFolder:
    """The folder of a search: its settings, the oracle's state, a folder for each run, and the results."""

    path: Path
    settings: dict[str, Any]
    candidates: BudgetedSpace

    def check(self):
        """Raises ValueError if the folder holds another search."""
        settings, oracle = self.path / SETTINGS, self.path / ORACLE
        hint = OVERWRITE_HINT.format("folder")
        if oracle.exists() and not settings.exists():
            raise ValueError(
                f"`workdir` holds a search by KerasTuner that `tune` did not write. {hint} Received: {oracle}"
            )
        if settings.exists():
            check_settings(read_json(settings, dict[str, Any]), self.settings, settings, hint)

    def begin_or_resume(self, oracle, overwrite):
        """Resumes the search in the folder, or begins a new one; raises ValueError as `check`."""
        if overwrite:
            self._clear()
        self.check()
        if (self.path / ORACLE).exists():
            with _expected_search(self.path):
                oracle.reload()
                SearchResult.from_config(self._result(oracle).to_config())  # raises for trials of another space
        write_json(self.settings, self.path / SETTINGS)

    def _clear(self):
        """Removes an earlier search and keeps all other files."""
        if not any((self.path / name).exists() for name in (SETTINGS, ORACLE)):
            return
        clear_runs([path for path in self.path.iterdir() if RUN_FOLDER.fullmatch(path.name) and path.is_dir()], remove)
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)

    def final_folder(self, winner):
        """Folder of the best candidate's training on all training images."""
        return self.path / f"final_{winner.trial}"

    def write_results(self, oracle):
        """The results so far; also writes them to the folder once there is an accuracy."""
        result = self._result(oracle)
        if not result.winner:
            return result
        write_spec(result.winner.spec, self.path / WINNER)
        with atomic_write(self.path / TABLE) as temporary:
            temporary.write_text(to_markdown(result), "utf-8")
        plot_results(result, self.path / PLOT)
        write_json(result.to_config(), self.path / RESULTS)
        return result

    def read_results(self):
        """The results as the chief wrote them last; raises ValueError for a damaged file."""
        path = self.path / RESULTS
        if not path.exists():
            return SearchResult(self.settings, ())
        try:
            return replace(SearchResult.from_config(read_json(path, dict[str, Any])), settings=self.settings)
        except ValueError as error:
            raise ValueError(f"Expected the results of a search ({error}). Received: {path}") from error

    def _result(self, oracle):
        """The SearchResult of the trials, and of the final training if there is one."""
        trials = sorted(oracle.trials.values(), key=lambda trial: int(trial.trial_id))
        result = SearchResult(self.settings, tuple(map(self._candidate, trials)))
        final = result.winner and self.final_folder(result.winner)
        return replace(result, final=read_report(final)) if final and (final / REPORT).exists() else result

    def _candidate(self, trial):
        """KerasTuner's Trial as a Candidate."""
        values, metrics = trial.hyperparameters.values, trial.metrics
        cost, lines = self.candidates.cost(values), (trial.message or "").strip().splitlines()
        return Candidate(
            trial=trial.trial_id,
            status=trial.status,
            spec=to_spec(values),
            recipe=to_recipe_changes(values),
            parameters=cost.parameters,
            multiply_adds=cost.multiply_adds,
            top1_accuracy=trial.score if trial.status == "COMPLETED" else None,
            wall_time_s=metrics.get_best_value("wall_time_s") if metrics.exists("wall_time_s") else None,
            message=lines[-1] if lines else None,
        )
