"""Groups of ranks as real processes, asked once a session: fixtures."""

import engine_ranks as tools
import pytest
import torch

PROMPTS = [
    torch.randint(0, 251, (n,), generator=torch.Generator().manual_seed(row)).tolist()
    for row, n in enumerate((3, 17, 8, 1, 12, 5, 9, 16, 2, 4, 6, 7, 10, 11, 13, 14, 15, 3, 8, 5))
]


@pytest.fixture(scope="session")
def ask(tmp_path_factory):
    """What every group of ranks is asked: four models (the last cannot share its vocabulary evenly)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    shapes = {"path": str(folder / "meta")}
    tools.save_meta(folder / "meta", tools.tiny(), tools.random_weights(tools.tiny()), 2)
    sampled = {"temperature": 0.8, "top_p": 0.95}
    return {
        "tokens": tools.TOKENS,
        "prompts": PROMPTS,
        "models": {
            "meta": [shapes, "meta"],
            "dummy": [{"vocab_size": 251}, "dummy"],
            "tied": [{"vocab_size": 251, "tied_embeddings": True}, "dummy"],
        },
        "generations": {
            "greedy": [shapes, {"weights": "meta", "batch_size": 20, "max_gen_len": 10}],
            "sampled": [shapes, {"weights": "meta", "batch_size": 20, "max_gen_len": 3, **sampled}],
        },
    }


@pytest.fixture(scope="session")
def alone(ask):
    """The answer of one rank without torch.distributed."""
    torch.set_num_threads(1)
    return tools.answer(tools.ALONE, ask)


@pytest.fixture(scope="session")
def four(ask, tmp_path_factory):
    """The answers of four ranks, which repeat the two KV heads."""
    return tools.spawn(4, tmp_path_factory.mktemp("four"), ask)


@pytest.fixture(scope="session")
def two(ask, tmp_path_factory):
    """The answers of two ranks."""
    return tools.spawn(2, tmp_path_factory.mktemp("two"), ask)
