"""What runs, in a point's choices: the kind of a checkpoint, its tokenizer, and names that came without their files.

`model.path=DIR` alone means its weights, and a tokenizer that lies there is the model's. A path that was set apart from
a name, as on the command line, brings its own: `dataset.path=letters.jsonl` is the dataset `letters`, whatever the file
of conf/dataset/ is called, and `model.path=/data/vicuna-7b` a revision `vicuna-7b` of the model.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from wattflow.config.choices import Config, Dataset, Model, reads_folders
from wattflow.plan.conf import written
from wattflow.store.files import expanded
from wattflow.workload import folder as folders
from wattflow.workload.checkpoint import kind_at
from wattflow.workload.own_shapes import model_at
from wattflow.workload.tokenizer import kind_beside


def whole(path: str) -> str:
    """Return a path from the root: a job starts in another directory."""
    return str(expanded(path).absolute())


class Labels:
    """The labels of all points of a plan; what a file or folder is, is looked up once."""

    def __init__(self, named: Collection[str]) -> None:
        """`named`: the keys that overrides or a grid's lists set."""
        self._named = named
        self._kind_at, self._kind_beside = cache(kind_at), cache(kind_beside)
        self._models: dict[tuple[int, str, str], tuple[Model, Model, str, str | None]] = {}
        self._datasets: dict[int, tuple[Dataset, Dataset]] = {}

    def of(self, config: Config, groups: Mapping[str, str]) -> Config:
        """Return the same choices as they run; `groups` has the names of their files in conf/.

        Points share what they shared before.
        """
        key = id(config.model), config.weights, config.engine.name
        if key not in self._models:  # with the part itself, so that its id is no other one's
            self._models[key] = (config.model, *self._model(config, groups["model"]))
        part = id(config.dataset)
        if part not in self._datasets:
            dataset = self._dataset(config.dataset, groups["dataset"])
            self._datasets[part] = (config.dataset, dataset)
        _, model, weights, quantised_in = self._models[key]
        if quantised_in is not None and "precision" not in self._named:
            config = replace(config, precision=quantised_in)
        if (trace := config.workload.trace) is not None:
            config = replace(config, workload=replace(config.workload, trace=whole(trace)))
        return replace(config, model=model, weights=weights, dataset=self._datasets[part][1])

    def _model(self, config: Config, file: str) -> tuple[Model, str, str | None]:
        """Return the model with its tokenizer and revision, the kind of its weights, and in what they are quantised."""
        model, weights = config.model, config.weights
        model = replace(
            model,
            path=model.path and whole(model.path),
            tokenizer_path=model.tokenizer_path and whole(model.tokenizer_path),
        )
        quantised_in = None
        if model.path is not None and "model" not in self._named:
            path = Path(model.path)
            model = _of_folder(config, path, model)
            if config.engine.name == "vllm":
                quantised_in = folders.read(path).quantised_in
        if weights == "auto":
            weights = "dummy" if model.path is None else self._kind_at(model.path)
        if model.tokenizer == "bytes" and "model.tokenizer" not in self._named:
            folder = model.path if weights != "dummy" else None
            model = replace(model, tokenizer=self._kind_beside(model.tokenizer_path, folder))
        if weights == "dummy" or model.path is None or model.revision is not None:
            return model, weights, quantised_in
        checkpoint = Path(model.path).resolve().name
        if checkpoint != model.name and self._is_apart("model", file, model.name, model.path):
            model = replace(model, revision=checkpoint or None)
        return model, weights, quantised_in

    def _dataset(self, dataset: Dataset, file: str) -> Dataset:
        """Return the dataset with a name of its own."""
        if dataset.path is None:
            return dataset
        path = whole(dataset.path)
        apart = self._is_apart("dataset", file, dataset.name, path)
        return replace(dataset, path=path, name=Path(path).stem if apart else dataset.name)

    def _is_apart(self, group: str, file: str, name: str, path: str) -> bool:
        """Whether a path was set without its name: neither an override nor the file of conf/ has both."""
        if f"{group}.name" in self._named:
            return False
        own = written(group, file)
        if "name" not in own:  # another file's, by its defaults
            return True
        return own["name"] == name and (not own.get("path") or whole(str(own["path"])) != path)


def _of_folder(config: Config, path: Path, model: Model) -> Model:
    """Return a model with the shapes of a Hugging Face folder; as it is where it has them already."""
    if reads_folders(config):
        return folders.model_of(folders.read(path), model)
    ours = config.engine.name in ("paper", "fast") and config.weights != "meta"
    if not ours or not (path / "config.json").is_file():
        return model
    found = model_at(path, model)
    return model if replace(found, name=model.name, revision=model.revision) == model else found
