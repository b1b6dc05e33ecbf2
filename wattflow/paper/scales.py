"""How large the paper's grids are run: overrides of conf/grid/paper-*.yaml, so that each submit is an ordinary one.

    full   as published: 4,096 prompts, fp16, temperature 0.8, top-p 0.95, the paper's loop; least hardware by the
           memory model
    h200   27 points on one or two H200: LLaMA-13B over 1 and 2 shards, 65B on two
    mini   a minute or two a point on any GPU with 8 GB
    cpu    11 points in three minutes on two cores; what its joules are of says each row's `boundary`

The grids of a scale stand in the order of what a figure is worth where time ends early.
"""

from wattflow.errors import RefusedError

_COMMON = ("engine=paper", "dataset.on_bad=skip")
_UNZIPPED = "sweep.zip=[]"
_PAIRED = "sweep.zip=[[batch_size,max_gen_len]]"
_H200 = ("n_prompts=64", "power.idle_s=2", "cluster.gpu_memory_gib=139")
_MINI = ("n_prompts=64", "power.idle_s=2")
_CPU: tuple[str, ...] = (
    "model=tiny",
    "precision=fp32",
    "dataset.template=plain",
    "power.idle_s=0.2",
)
_CPU += ("batch_size=4", "n_prompts=8", "sweep.repeats=1")

SCALES: dict[str, dict[str, tuple[str, ...]]] = {
    "full": {
        "paper-baseline": (*_COMMON, "n_prompts=4096", "max_seq_len=512"),
        "paper-scaling": (*_COMMON, "n_prompts=4096"),
        "paper-caps": (*_COMMON, "n_prompts=4096"),
        "paper-lengths": (*_COMMON, "n_prompts=4096"),
        "paper-shards": (*_COMMON, "n_prompts=4096", "max_seq_len=512"),
    },
    "h200": {
        "paper-scaling": (
            *(*_COMMON, *_H200, "model=llama-13b", "dataset=gsm8k", "shards=1,2"),
            *("batch_size=32,64,64", "max_gen_len=64,64,128", _PAIRED, "sweep.repeats=3"),
        ),
        "paper-baseline": (*_COMMON, *_H200, "shards=1,1,2", "max_gen_len=128", "sweep.repeats=1"),
        "paper-lengths": (
            *(*_COMMON, *_H200, "dataset=gsm8k", "shards=2", "max_gen_len=128,384"),
            *("max_seq_len=640", "sweep.repeats=1"),
        ),
        "paper-shards": (
            *(*_COMMON, *_H200, "model=llama-13b", "shards=1,2", "dataset=gsm8k"),
            *("max_gen_len=128", "sweep.repeats=1"),
        ),
        "paper-caps": (
            *(*_COMMON, *_H200, "shards=2", "max_gen_len=128", "sweep.repeats=1"),
            "control.power_limit_w=700,490,420",
        ),
    },
    "mini": {
        "paper-scaling": (
            *(*_COMMON, *_MINI, "model=qwen3-1.7b", "dataset=gsm8k", "shards=1,2"),
            *("batch_size=16,64,16", "max_gen_len=64,64,128", _PAIRED),
        ),
        "paper-baseline": (
            *(*_COMMON, *_MINI, "model=smollm2-135m,qwen3-0.6b,qwen3-1.7b", "shards=1,1,1"),
            *("batch_size=16", "max_gen_len=64", "model.chat=false"),
        ),
        "paper-lengths": (
            *(*_COMMON, *_MINI, "model=qwen3-1.7b", "dataset=gsm8k", "shards=1"),
            *("batch_size=16", "max_gen_len=64,128"),
        ),
        "paper-shards": (
            *(*_COMMON, *_MINI, "model=qwen3-1.7b", "dataset=gsm8k", "shards=1,2"),
            *("batch_size=16", "max_gen_len=64"),
        ),
        "paper-caps": (
            *(*_COMMON, *_MINI, "model=qwen3-1.7b", "dataset=gsm8k", "shards=1"),
            *("batch_size=16", "max_gen_len=64"),
        ),
    },
    "cpu": {
        "paper-baseline": (
            *(*_COMMON, *_CPU, _UNZIPPED, "model.n_layers=2,4,8", "shards=1", "max_gen_len=16"),
        ),
        "paper-scaling": (
            *(*_COMMON, *_CPU, "model.n_layers=8", "dataset=gsm8k", "shards=1,2"),
            *("batch_size=4,8,4", "max_gen_len=16,16,32", _PAIRED),
        ),
        "paper-lengths": (
            *(*_COMMON, *_CPU, "model.n_layers=8", "dataset=gsm8k", "shards=1"),
            "max_gen_len=16,32",
        ),
        "paper-shards": (
            *(*_COMMON, *_CPU, "model.n_layers=8", "dataset=gsm8k", "shards=1,2"),
            "max_gen_len=16",
        ),
    },
}


def grids(scale: str) -> dict[str, tuple[str, ...]]:
    """Return the overrides of each grid of a scale, in order; RefusedError for a scale that is none."""
    if scale not in SCALES:
        raise RefusedError(f"--scale {scale}: not one of {', '.join(SCALES)}.")
    return SCALES[scale]
