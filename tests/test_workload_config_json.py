"""conf/model/: each shape has its published parameters, its cache by layer kind, and engines that can run it."""

import json

import pytest

from wattflow.config.choices import Model
from wattflow.plan import grid
from wattflow.plan.conf import shipped_files
from wattflow.workload import folder as folders
from wattflow.workload import model as arithmetic
from wattflow.workload import vllm_fit
from wattflow.workload.config_json import document, values

B = 1e9
# parameters and those of one token as published, see each file of conf/; bytes of a cached token in 16 bit
PUBLISHED = {
    "llama-7b": (6_738_415_616, None, 524_288),
    "llama-13b": (13_015_864_320, None, 819_200),
    "llama-30b": (32_528_943_616, None, 1_597_440),
    "llama-65b": (65_285_660_672, None, 2_621_440),
    "llama-2-70b": (68_976_648_192, None, 327_680),
    "llama-3-8b": (8_030_261_248, None, 131_072),
    "llama-3-70b": (70_553_706_496, None, 327_680),
    "llama-3.1-8b": (8_030_261_248, None, 131_072),
    "llama-3.1-70b": (70_553_706_496, None, 327_680),
    "llama-3.1-405b": (405_853_388_800, None, 516_096),
    "qwen3-0.6b": (596_049_920, None, 114_688),
    "qwen3-1.7b": (1_720_574_976, None, 114_688),
    "qwen3-4b": (4_022_468_096, None, 147_456),
    "qwen3-8b": (8_190_735_360, None, 147_456),
    "qwen3-14b": (14_768_307_200, None, 163_840),
    "qwen3-32b": (32_762_123_264, None, 262_144),
    "qwen3-30b-a3b": (30_532_122_624, 3.3 * B, 98_304),
    "qwen3-235b-a22b": (235_093_634_560, 22 * B, 192_512),
    "mistral-7b": (7_248_023_552, None, 131_072),
    "mistral-7b-v0.1": (7_241_732_096, None, 131_072),
    "mixtral-8x7b": (46_702_792_704, 12.9 * B, 131_072),
    "gpt-oss-20b": (20_914_757_184, 3.61 * B, 49_152),
    "gpt-oss-120b": (116_829_156_672, 5.13 * B, 73_728),
    "deepseek-v3": (671_026_419_200, 36.7 * B, 70_272),
    "opt-1.3b": (1_315_758_080, None, 196_608),
    "opt-6.7b": (6_658_473_984, None, 524_288),
    "opt-13b": (12_853_473_280, None, 819_200),
    "opt-30b": (29_974_540_288, None, 1_376_256),
    "opt-66b": (65_719_541_760, None, 2_359_296),
    "bloom-560m": (559_214_592, None, 98_304),
    "bloom-3b": (3_002_557_440, None, 307_200),
    "bloom-7b1": (7_069_016_064, None, 491_520),
    "bloom-176b": (176_247_271_424, None, 4_014_080),
}
# active parameters that their makers give without the embedding, of which a token uses a row
WITHOUT_EMBEDDING = {"gpt-oss-20b", "gpt-oss-120b", "deepseek-v3"}
CUT = {"qwen3-30b-a3b": 0.06 * B}  # 3.353 B, which its card gives as 3.3 B
OURS = {"tiny", "smollm2-135m"}  # made for tests, and checked with its real weights


@pytest.fixture(scope="module")
def points():
    """A point of each shape, planned for vLLM, by the model's name."""
    names = ",".join(PUBLISHED)
    planned = grid.plan(["engine=vllm", f"model={names}", "max_seq_len=1024"], repeats=1)
    return {point.config.model.name: point for point in planned.points}


def test_every_shape_is_compared_with_what_was_published():
    """A file that is added to conf/model/ needs its line here."""
    assert set(shipped_files("model")) == set(PUBLISHED) | OURS


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(points, name):
    """All of them and those of one token within 1 %, the cache of a token exactly, and vLLM can be planned with it."""
    point = points[name]
    assert point.reason is None
    total, active, cached = PUBLISHED[name]
    found = vllm_fit.parameters(point.config)
    assert found["parameters"] == pytest.approx(total, rel=0.01)
    model = point.config.model
    embedding = model.vocab_size * model.dim if name in WITHOUT_EMBEDDING else 0
    expected = pytest.approx(active or total, rel=0.01, abs=CUT.get(name, 0))
    assert found["active_parameters"] - embedding == expected
    row = vllm_fit.row_bytes(point.config)
    window = point.config.model.more.get("sliding_window")
    if window is None or window >= 1024:
        assert row == 1024 * cached
    else:
        assert row == (1024 + window) * cached // 2


@pytest.mark.parametrize(
    "name", ["qwen3-8b", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v3", "opt-6.7b", "bloom-7b1"]
)
def test_transformers_counts_the_same_parameters(points, name):
    """Its own model of the same config.json, made on no device, has exactly as many."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = points[name].config.model
    made = transformers.AutoConfig.for_model(**document(model, "bfloat16", 1024))
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(made)
    counted = sum(parameter.numel() for parameter in theirs.parameters())
    assert folders.of_shapes(model).counts.parameters == counted


def test_a_folder_and_its_shapes_are_one_model(points, tmp_path):
    """The config.json that the shapes make, read as a folder, gives the same counts and the same model."""
    for name in (
        "qwen3-30b-a3b",
        "gpt-oss-20b",
        "deepseek-v3",
        "opt-13b",
        "bloom-7b1",
        "llama-3.1-8b",
    ):
        model = points[name].config.model
        (tmp_path / "config.json").write_text(json.dumps(document(model, "bfloat16", 1024)))
        found = folders.read(tmp_path)
        assert found.counts == folders.of_shapes(model).counts
        assert folders.why_not_this(found, model) is None
        assert found.precision == "bf16"


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("mixtral-8x7b", "a mixture of experts"),
        ("deepseek-v3", "latent attention"),
        ("gpt-oss-20b", "attention sinks"),
        ("bloom-7b1", "ALiBi positions"),
        ("opt-6.7b", "learned positions"),
        ("mistral-7b-v0.1", "a sliding window"),
    ],
)
@pytest.mark.parametrize("engine", ["paper", "fast"])
def test_other_engines_refuse_by_the_feature(name, named, engine):
    """The reason in `plan` names what the engine does not compute, and who does."""
    words = [f"engine={engine}", f"model={name}", "max_seq_len=4097"]
    (point,) = grid.plan(words, repeats=1).points
    assert named in point.reason
    assert point.reason.endswith("use engine=vllm or transformers")


@pytest.mark.parametrize("name", ["mistral-7b", "mistral-7b-v0.1", "qwen3-0.6b", "qwen3-32b"])
@pytest.mark.parametrize("engine", ["paper", "fast"])
def test_relatives_of_llama_run_on_our_own_engines(name, engine):
    """Nothing refuses them, fp8 in `fast` neither, and both counts of their parameters agree."""
    words = [f"engine={engine}", f"model={name}", "max_seq_len=512"]
    precision = ["precision=fp8"] * (engine == "fast")
    (point,) = grid.plan([*words, *precision], repeats=1).points
    assert point.reason is None
    counted = folders.of_shapes(point.config.model).counts.parameters
    assert arithmetic.parameters(point.config.model) == counted


def test_plan_knows_what_fits():
    """On 80 GB: Qwen3-32B in bf16 and Mixtral on two do, Mixtral on one and DeepSeek-V3 on eight do not."""
    words = ["engine=vllm", "cluster.gpu_memory_gib=80", "cluster.gpus_per_node=8"]

    def reason(*more):
        (point,) = grid.plan([*words, *more], repeats=1).points
        return point.reason

    assert reason("model=qwen3-32b") is None
    assert "87.0 GiB weights" in reason("model=mixtral-8x7b")
    assert reason("model=mixtral-8x7b", "shards=2") is None
    assert "GiB weights" in reason("model=deepseek-v3", "shards=8", "precision=fp8")
    assert reason("model=mixtral-8x7b", "precision=fp8") is None


def test_positions_end_where_the_model_ends():
    """OPT has 2,048 learned positions."""
    (point,) = grid.plan(["engine=vllm", "model=opt-6.7b", "max_seq_len=4096"], repeats=1).points
    assert point.reason == "max_seq_len=4096: opt-6.7b has 2048 positions"


def test_a_llama_by_its_config_json_is_the_llama_of_our_arithmetic():
    """Both rules give the same parameters."""
    model = Model(name="m", n_kv_heads=8)
    assert folders.of_shapes(model).counts.parameters == arithmetic.parameters(model)


def test_entries_of_config_json_keep_their_types(points):
    """Numbers, truths and nested entries come from files of conf/ as they are there, and make the point."""
    found = values(points["deepseek-v3"].config.model)
    assert (found["n_routed_experts"], found["norm_topk_prob"]) == (256, True)
    assert found["rope_scaling"]["factor"] == 40.0
    assert found["scoring_func"] == "sigmoid"
    assert len({point.point_id for point in points.values()}) == len(PUBLISHED)
