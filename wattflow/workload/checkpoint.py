"""The headers of a checkpoint, read without torch: a login node refuses a wrong one before anything is sent.

Meta's folder holds consolidated.00.pth ... and params.json; Hugging Face's holds config.json and safetensors files.
Only names and shapes are read. A .pth file's pickle is opened by a reader that knows five names and runs no code.
"""

import io
import json
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from wattflow.config.choices import Model
from wattflow.errors import RefusedError
from wattflow.store.files import expanded, open_given, read_given
from wattflow.workload.matrices import Matrix, matrices
from wattflow.workload.model import head_dim
from wattflow.workload.readahead import Range

Shapes = dict[str, tuple[int, ...]]

_WHOLE = {"F64", "F32", "F16", "BF16"}  # numbers that mean themselves
_EXTRA = re.compile(r"(rope\.freqs|.*rotary_emb\.inv_freq|output\.weight|lm_head\.weight)")


def check_header(model: Model, weights: str) -> None:
    """RefusedError unless the checkpoint at `model.path` is whole and has this model's shapes; dummy always passes."""
    if weights == "meta":
        _check_params(model, checkpoint_folder(model, weights))
        meta_shapes(model)
    elif weights == "hf":
        _check_hf_config(model, checkpoint_folder(model, weights))
        hf_files(model)


def kind_at(path: str) -> str:
    """Return the kind of weights in a checkpoint's folder, `hf` or `meta`; `hf` also where there is none."""
    folder = Path(path)
    try:
        return "meta" if any(folder.glob("consolidated.*.pth")) and not _is_hf(folder) else "hf"
    except OSError:
        return "hf"


def _is_hf(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def checkpoint_folder(model: Model, weights: str) -> Path:
    """Return the folder of the checkpoint; RefusedError when none is named or it does not exist."""
    if model.path is None:
        raise RefusedError(
            f"weights={weights} needs model.path, the folder of {model.name}'s checkpoint."
        )
    folder = expanded(model.path)
    if not folder.is_dir():
        raise RefusedError(f"model.path={folder}: no such folder.")
    return folder


# --- Meta ---


def meta_files(model: Model) -> list[Path]:
    """consolidated.00.pth, .01.pth ... in order; RefusedError when there is none or one is missing."""
    folder = checkpoint_folder(model, "meta")
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise RefusedError(f"{folder}: no consolidated.00.pth there; is weights=hf meant?")
    for number, file in enumerate(files):
        if file.name != f"consolidated.{number:02d}.pth":
            raise RefusedError(
                f"{folder}: consolidated.{number:02d}.pth is missing, though {files[-1].name} is there."
            )
    return files


def meta_shapes(model: Model) -> list[Shapes]:
    """Return the shapes in each of Meta's files, found to be parts of this model."""
    files = meta_files(model)
    shapes = [_pth_shapes(file) for file in files]
    for file, found in zip(files, shapes, strict=True):
        _check_names(file, found, {m.name for m in matrices(model)})
        for matrix in matrices(model):
            file_split(matrix, found[matrix.name], len(files), file)
    return shapes


def file_split(matrix: Matrix, part: tuple[int, ...], files: int, file: Path) -> int | None:
    """Return the dimension along which `files` files share a matrix, None where each holds it whole.

    It follows from the shapes: Llama 1 and 2 cut the embedding along its width, Llama 3 along the vocabulary.
    RefusedError where no cut of this model's matrix gives this part.
    """
    if part == matrix.shape and (files == 1 or matrix.split is None):
        return None
    if matrix.split is not None:
        for dim in (0, 1):
            cut = list(matrix.shape)
            cut[dim] //= files
            if list(part) == cut and cut[dim] * files == matrix.shape[dim]:
                return dim
    raise RefusedError(
        f"{file}: {matrix.name} is {list(part)}, no part of {list(matrix.shape)} in {files} files. The checkpoint is "
        "another model's: check model= and model.path."
    )


def _check_params(model: Model, folder: Path) -> None:
    path = folder / "params.json"
    params = _read_json(path)
    expected: dict[str, Any] = {
        "dim": model.dim,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "vocab_size": model.vocab_size,
        "use_scaled_rope": model.rope_scaling is not None,
    }
    found = {"n_kv_heads": params.get("n_heads"), **params}
    if found.get("vocab_size") == -1:  # Llama 1 and 2 leave it to the tokenizer
        del found["vocab_size"]
    _check_equal(path, found, expected)
    if "multiple_of" in params and "dim" in params:
        width = _ffn_width(params["dim"], params["multiple_of"], params.get("ffn_dim_multiplier"))
        if width != model.ffn_dim:
            raise RefusedError(
                f"{path}: gives a feed-forward {width} wide, but {model.name} has {model.ffn_dim}."
            )


def _ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Return two thirds of four widths, times the multiplier, rounded up to the multiple: Meta's rule."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


class _ShapeReader(pickle.Unpickler):
    """Reads the pickle of a .pth file as shapes. It knows five names, none of which runs anything of torch's."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor_shape
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter_shape
        if module in {"torch", "torch.storage"} and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is no weight")

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _tensor_shape(_storage: Any, _offset: int, shape: tuple[int, ...], *_rest: Any) -> Any:
    return tuple(shape)


def _parameter_shape(shape: tuple[int, ...], *_rest: Any) -> Any:
    return shape


def _pth_shapes(file: Path) -> Shapes:
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            found = _ShapeReader(io.BytesIO(archive.read(inside[0]))).load()
    except (zipfile.BadZipFile, OSError) as error:
        raise RefusedError(
            f"{file}: cut short or not a torch checkpoint ({error}). Copy it again."
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise RefusedError(f"{file}: not a checkpoint of weights ({error}).") from error
    if not isinstance(found, dict):
        raise RefusedError(f"{file}: not a checkpoint of weights (a {type(found).__name__}).")
    return {str(name): shape for name, shape in found.items() if isinstance(shape, tuple)}


# --- Hugging Face ---


def hf_files(model: Model) -> dict[str, Path]:
    """Return the file of each tensor by its Hugging Face name, all found to have this model's shapes."""
    folder = checkpoint_folder(model, "hf")
    files = _hf_file_names(folder)
    shapes: Shapes = {}
    where: dict[str, Path] = {}
    for file in files:
        found = _safetensors_shapes(file)
        shapes.update(found)
        where.update(dict.fromkeys(found, file))
    _check_names(folder, shapes, {m.hf_name for m in matrices(model)})
    for matrix in matrices(model):
        if shapes[matrix.hf_name] != matrix.shape:
            raise RefusedError(
                f"{where[matrix.hf_name]}: {matrix.hf_name} is {list(shapes[matrix.hf_name])}, but {model.name} has "
                f"{list(matrix.shape)}. The checkpoint is another model's: check model= and model.path."
            )
    return where


def hf_ranges(model: Model, shards: int, rank: int) -> list[Range]:
    """Return the bytes that a rank needs of each tensor, in the order of the matrices; all if it is cut by columns.

    The files must have passed `hf_files`.
    """
    offsets: dict[str, tuple[Path, int, int]] = {}
    for file in _hf_file_names(checkpoint_folder(model, "hf")):
        with open_given(file) as stream:  # eight bytes of length, JSON, then the data
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                first, last = tensor["data_offsets"]
                offsets[name] = file, 8 + length + first, 8 + length + last
    out = []
    for matrix in matrices(model):
        file, start, stop = offsets[matrix.hf_name]
        # every rank of `fast` holds the embedding's table whole
        if matrix.split == 0 and matrix.name != "tok_embeddings.weight":
            row = (stop - start) // matrix.shape[0]
            first, last = matrix.span(rank, shards)
            start, stop = start + first * row, start + last * row
        out.append(Range(matrix.name, file, start, stop))
    return out


def _hf_file_names(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise RefusedError(f"{index}: has no weight_map.")
        files = sorted({folder / Path(str(name)).name for name in weight_map.values()})
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise RefusedError(
                f"{file}: missing. wattflow reads safetensors files; convert others with transformers."
            )
    return files


def _safetensors_shapes(file: Path) -> Shapes:
    """Return shapes by name from a header whose tensors fill the file to its end; RefusedError for any other file."""
    try:
        with safe_open(file, framework="np") as tensors:
            names = tensors.keys()
            shapes, kinds = {}, {}
            for name in names:
                part = tensors.get_slice(name)
                shapes[name], kinds[name] = tuple(part.get_shape()), str(part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise RefusedError(
            f"{file}: cut short or not a safetensors file ({error}). Copy it again."
        ) from error
    narrow = sorted(name for name, kind in kinds.items() if kind not in _WHOLE)
    if narrow:
        raise RefusedError(
            f"{file}: {narrow[0]} is {kinds[narrow[0]]}{_and_more(narrow)}: quantised weights, which this engine would "
            "take for plain numbers. Use engine=vllm."
        )
    return shapes


def _check_hf_config(model: Model, folder: Path) -> None:
    path = folder / "config.json"
    found = _read_json(path)
    kind = found.get("model_type", "llama")
    if kind != model.architecture:
        raise RefusedError(
            f"{path}: model_type is {kind}, but {model.name} is a {model.architecture}. Check model= and model.path."
        )
    quantised = found.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise RefusedError(
            f"{path}: its weights are quantised ({method}); this engine would compute with them as if they were not. "
            "Use engine=vllm."
        )
    rotary = {**(found.get("rope_scaling") or {}), **(found.get("rope_parameters") or {})}
    found = {
        "rope_theta": 10000.0,
        "num_key_value_heads": found.get("num_attention_heads"),
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        **found,
        **rotary,
    }
    scaling = model.rope_scaling
    expected: dict[str, Any] = {
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "intermediate_size": model.ffn_dim,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_embeddings,
        "head_dim": head_dim(model),
        "hidden_act": "silu",
        "attention_bias": False,  # of queries, keys, values and the output; Qwen2's go without saying
        "mlp_bias": False,
        "use_sliding_window": False,
        "rope_type": "default" if scaling is None else "llama3",
    }
    found["rope_type"] = rotary.get("rope_type", rotary.get("type", "default"))
    if found.get("head_dim") is None:
        found.pop("head_dim", None)
    if kind == "mistral":
        found.setdefault("sliding_window", 4096)  # transformers' default
        expected["sliding_window"] = model.more.get("sliding_window")
    if scaling is not None:
        expected |= {
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    _check_equal(path, found, expected)


# --- both ---


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_given(path))
    except FileNotFoundError as error:
        raise RefusedError(f"{path}: missing.") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: not a JSON document ({error}).") from error
    if not isinstance(value, dict):
        raise RefusedError(f"{path}: not a JSON object.")
    return value


def _check_equal(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """RefusedError at the first key for which the file has another value."""
    for key, value in expected.items():
        if key in found and found[key] != value:
            raise RefusedError(
                f"{path}: {key} is {found[key]}, but the chosen model has {value}. Check model= and model.path."
            )


def _check_names(where: Path, found: Shapes, expected: set[str]) -> None:
    missing = sorted(expected - found.keys())
    if missing:
        raise RefusedError(
            f"{where}: {missing[0]} is missing{_and_more(missing)}. Is it this model's (tied_embeddings, n_layers)?"
        )
    extra = sorted(name for name in found.keys() - expected if not _EXTRA.fullmatch(name))
    if extra:
        raise RefusedError(
            f"{where}: holds {extra[0]}{_and_more(extra)}, which this model does not have. Check model= and model.path."
        )


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
