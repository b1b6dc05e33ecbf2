"""The transformers engine: tokens as `generate` makes them in each family, ragged, to EOS, over one and two ranks."""

import engine_ranks as tools
import pytest
import torch
import transformers
from local_runs import SMALL, call
from transformers_models import FAMILIES, FP32, LENGTHS, chosen, greedy, prompts, save

import wattflow
from wattflow.config.choices import Engine, Transformers
from wattflow.engine.build import build
from wattflow.errors import EngineError, RefusedError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each family, by its name."""
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def answers(config, batch, eos_ids=()):
    """One batch through the engine: tokens, stop reasons, and what it reports of itself."""
    engine = build(config, tools.ALONE, eos_ids=eos_ids, pad_id=0)
    engine.load()
    engine.prefill(batch)
    out = engine.decode()
    engine.close()
    return out, engine.info


@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_generate(folders, family, cache):
    """Ragged prompts in one batch against `generate` of each alone, greedy, in float64 (two of them in float32)."""
    out, info = answers(chosen(folders[family], cache=cache), prompts())
    assert out.tokens == greedy(folders[family], prompts())
    assert out.stop_reasons == ["length"] * len(LENGTHS)
    assert (info["cache_kind"], info["compiled"], info["cuda_graphs"]) == (cache, False, "NONE")
    assert info["engine_version"][0].isdigit()
    assert info["attention_backend"] in ("sdpa", "eager")
    assert info["dtype"] == ("fp32" if family in FP32 else "fp64")
    assert out.prefill_tokens_computed == len(LENGTHS) * max(LENGTHS)
    assert out.decode_tokens_computed == len(LENGTHS) * 11


@pytest.mark.parametrize("family", ["opt", "bloom", "qwen3"])
def test_rows_end_before_any_of_their_eos(folders, family):
    """Two ids end a response; the row keeps what came before."""
    whole = greedy(folders[family], prompts())
    eos_ids = (whole[0][4], whole[1][2])
    out, _ = answers(chosen(folders[family], stop="eos"), prompts(), eos_ids)
    for row, made, reason in zip(whole, out.tokens, out.stop_reasons, strict=True):
        ends = [place for place, token in enumerate(row) if token in eos_ids]
        assert made == row[: ends[0]] if ends else row
        assert reason == ("eos" if ends else "length")
    assert "eos" in out.stop_reasons


def test_all_rows_ended_stop_the_batch(folders):
    """Rows that all end at once: no more steps than to the next look, 16 at most."""
    whole = greedy(folders["gpt2"], prompts()[:1], 40)
    config = chosen(folders["gpt2"], stop="eos", max_gen_len=40, max_seq_len=64)
    out, _ = answers(config, prompts()[:1], (whole[0][1],))
    assert out.tokens == [whole[0][:1]]
    assert out.decode_tokens_computed == 16


@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("family", ["opt", "mistral"])
def test_a_row_ends_at_the_end_of_its_sequence(folders, family, cache):
    """Of 24 places a prompt of 20 leaves 4; the other row has all 12, though both end together in the cache."""
    long, short = [5] * 20, [7, 8]
    out, _ = answers(chosen(folders[family], max_seq_len=24, cache=cache), [long, short])
    assert out.tokens == [
        greedy(folders[family], [long])[0][:4],
        greedy(folders[family], [short])[0],
    ]
    assert out.stop_reasons == ["max_seq_len", "length"]


def test_batches_follow_each_other_over_one_cache(folders):
    """A second batch, and a shorter last one, answer as alone: nothing is left of the one before."""
    folder = folders["qwen3"]
    engine = build(chosen(folder), tools.ALONE, eos_ids=(), pad_id=0)
    engine.load()
    for batch in (prompts(), prompts()[::-1], prompts()[:2]):
        engine.prefill(batch)
        assert engine.decode().tokens == greedy(folder, batch)


def test_points_share_weights(folders):
    """The weights of one point serve the next."""
    first = build(chosen(folders["llama"]), tools.ALONE, eos_ids=(), pad_id=0)
    shared = first.load_weights()
    for _ in range(2):
        engine = build(chosen(folders["llama"]), tools.ALONE, eos_ids=(), pad_id=0)
        engine.load(shared)
        engine.prefill(prompts())
        assert engine.decode().tokens == greedy(folders["llama"], prompts())
        engine.close()


def test_work_is_that_of_the_rows(folders):
    """11 steps of 3 rows: positions from each row's own length on; another family's is unknown."""
    out, _ = answers(chosen(folders["llama"]), prompts())
    positions = sum(length + step for length in LENGTHS for step in range(1, 12))
    assert out.work == {
        "decode_steps": 11,
        "decode_rows": 33,
        "decode_positions": positions,
        "prefills": 1,
        "prefill_tokens": sum(LENGTHS),
        "prefill_squares": sum(n**2 for n in LENGTHS),
    }
    assert answers(chosen(folders["bloom"]), prompts())[0].work is None


def test_dummy_llama_answers_as_our_own_engine():
    """Shapes without a checkpoint: the drawn weights are those of `paper`, and so are the tokens."""
    config = tools.choices(tools.tiny(), engine=Engine(name="transformers", device="cpu"))
    batch = [[1, 2, 3], [9] * 7]
    paper = tools.choices(tools.tiny())
    assert answers(config, batch)[0].tokens == tools.generate(paper, tools.ALONE, batch).tokens


def test_two_ranks_answer_as_one(tmp_path):
    """Two tensor-parallel ranks of dummy Llama shapes over gloo: the tokens of our own engine on one."""
    batch = [[1, 2, 3], [9] * 7]
    ask = {"tokens": [], "models": {}, "prompts": batch}
    ask["generations"] = {"made": [{}, {"engine": "transformers"}]}
    expected = tools.generate(tools.choices(tools.tiny()), tools.ALONE, batch).tokens
    for found in tools.spawn(2, tmp_path, ask):
        assert found["made"]["made"] == expected


def test_a_batch_that_is_drawn_follows_its_seed(folders):
    """The same seed draws the same tokens, another seed others."""
    first, again, other = (
        answers(chosen(folders["llama"], temperature=1.0, seed=seed), prompts())[0].tokens
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_family_without_a_plan_is_refused_over_ranks(folders):
    """OPT has no tensor-parallel plan; the sentence names what can be done."""
    config = chosen(folders["opt"], shards=2)
    with pytest.raises(RefusedError, match="no tensor-parallel plan for a opt; take shards=1"):
        build(config, tools.ALONE, eos_ids=(), pad_id=0)


def test_a_compiled_step_needs_a_static_cache(folders, monkeypatch):
    """A model that allows none is refused when it is loaded."""
    engine = Engine(name="transformers", device="cpu", transformers=Transformers(compile=True))
    made = build(chosen(folders["llama"], engine=engine), tools.ALONE, eos_ids=(), pad_id=0)
    weights = made.load_weights()
    weights.may_be_static = False
    with pytest.raises(EngineError, match="a llama runs over no static cache"):
        made.load(weights)


def test_logits_that_are_not_finite_are_refused(folders):
    """A weight that is not a number ends the attempt at the first prefill."""
    engine = build(chosen(folders["llama"]), tools.ALONE, eos_ids=(), pad_id=0)
    weights = engine.load_weights()
    next(weights.model.parameters()).fill_(torch.nan)
    engine.load(weights)
    with pytest.raises(EngineError, match="not finite"):
        engine.prefill([[1, 2]])


def test_a_token_beyond_the_vocabulary_is_refused(folders):
    """As by the other engines."""
    engine = build(chosen(folders["llama"]), tools.ALONE, eos_ids=(), pad_id=0)
    engine.load()
    with pytest.raises(EngineError, match="beyond the model's vocabulary"):
        engine.prefill([[1, 300]])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")  # of torch's compiler
def test_a_compiled_step_answers_as_generate(folders):
    """Two batches and a shorter one, which other rows fill up: they count as computed alone."""
    folder = folders["qwen3"]
    engine = Engine(name="transformers", device="cpu", transformers=Transformers(compile=True))
    made = build(chosen(folder, engine=engine), tools.ALONE, eos_ids=(), pad_id=0)
    made.load()
    for batch in (prompts(), prompts()[::-1], prompts()[:2]):
        made.prefill(batch)
        out = made.decode()
        assert out.tokens == greedy(folder, batch)
        assert out.decode_tokens_computed == 3 * 11
    assert made.info["compiled"]


def test_a_point_of_a_folder_is_a_whole_row(tmp_path):
    """By `wattflow run` over a checkpoint of OPT: the row counts, and says what ran."""
    folder = save("opt", tmp_path / "opt-tiny")
    words = ("engine=transformers", "engine.device=cpu", "power.meter=simulated", "sweep=own")
    call("run", *SMALL, *words, f"model.path={folder}", "weights=hf", "stop=length", cwd=tmp_path)
    (row,) = wattflow.open_sweep(tmp_path / "sweeps" / "own").points.to_dicts()
    assert (row["valid"], row["model"], row["weights"]) == (True, "opt-tiny", "hf")
    assert (row["tokens_kept"], row["responses"]) == (48, 6)
    assert (row["cache_kind"], row["compiled"]) == ("static", False)
    assert (row["attention_backend"], row["cuda_graphs"], row["precision"]) == (
        "sdpa",
        "NONE",
        "fp32",
    )
    assert row["engine_version"] == transformers.__version__
    assert row["words"] is not None
    assert row["energy_per_token_j"] == pytest.approx(row["energy_j"] / 48)
