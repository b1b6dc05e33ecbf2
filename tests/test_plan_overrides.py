"""Overrides that are no choice: each is refused in one line that says what to write instead."""

import pytest
from commands import call

from wattflow.errors import RefusedError
from wattflow.plan import grid
from wattflow.plan.overrides import refuse_unsafe, rewritten

ONE = ["n_prompts=8", "sweep.repeats=1"]

WRONG = [
    # a value of another type: key, value, type and an example
    ("shards=x", "shards=x: takes a whole number, such as shards=1, and shards=1,2 for two points"),
    ("shards=1,x", "shards=x: takes a whole number"),
    ("shards=1.5", "shards=1.5: takes a whole number"),
    ("shards=null", "shards=null: takes a whole number"),
    ("shards=[1,2]", "shards=[1,2]: takes a whole number"),
    ("shards={a:1}", "shards={a:1}: takes a whole number"),
    ("batch_size=", "batch_size=: takes a whole number, such as batch_size=64"),
    ("n_prompts=many", "n_prompts=many: takes a whole number, or null"),
    ("power.idle_s=1s", "power.idle_s=1s: takes a number of seconds, such as power.idle_s=5.0"),
    ("cluster.time_min=2h", "cluster.time_min=2h: takes a whole number of minutes"),
    ("cluster.time_min=01:00:00", "cluster.time_min=01:00:00: takes a whole number of minutes"),
    ("cluster.mem_gb_per_node=40G", "cluster.mem_gb_per_node=40G: takes a number of GB, or null"),
    ("control.power_limit_w=300W", "=300W: takes a whole number of watts, or null"),
    ("dataset.shuffle=maybe", "dataset.shuffle=maybe: takes true or false"),
    ("model.name=null", "model.name=null: takes text"),
    ("cluster.setup=ls", "cluster.setup=ls: takes a list of texts"),
    ("sweep.zip=[a]", "sweep.zip=[a]: takes a list of lists of keys"),
    ("sweep.exclude=3", "takes a list of rules, such as sweep.exclude=[{when:{shards:2},reason"),
    ("sweep.repeats=two", "sweep.repeats=two: takes a whole number, such as sweep.repeats=3."),
    ("cluster.power_caps={300:x}", "cluster.power_caps={300:x}: takes texts by name"),
    ("cluster.power_caps.300=x", "cluster.power_caps.300: can be set in a file of conf/ only"),
    ("control=1", "control has keys of its own: control.power_limit_w"),
    ("model.rope_scaling.factor=2", "model.rope_scaling is null here"),
    ("model.rope_scaling.factor=2,3", "model.rope_scaling is null here"),
    ("model.rope_scaling={factor:2}", "model.rope_scaling is null here"),
    # a value that is not allowed
    ("precision=fp7", "precision=fp7: not one of fp64, fp32, bf16, fp16"),
    ("nodes=0", "nodes=0: must be at least 1"),
    ("temperature=nan", "temperature=nan: must be a finite number"),
    ("temperature=0,inf", "temperature=inf: must be a finite number"),
    ("temperature=1e999", "temperature=inf: must be a finite number"),
    ("seed=99999999999999999999", "must be less than 2^63"),
    # a key that there is not: the nearest
    ("shard=2", "shard=2: no such key. Did you mean shards?"),
    ("gpus=2", "gpus=2: no such key. Did you mean cluster.gpus_per_node?"),
    ("batchsize=8", "batchsize=8: no such key. Did you mean batch_size?"),
    ("batchsize=8,16", "batchsize=8,16: no such key. Did you mean batch_size?"),
    ("batch size=8", "batch size=8: no such key. Did you mean batch_size?"),
    ("model.dimension=3", "model.dimension=3: no such key. Did you mean model.dim?"),
    ("idle=3", "idle=3: no such key. Did you mean power.idle_s?"),
    # what it is called elsewhere
    ("gpu=2", "Did you mean cluster.gpus_per_node?"),
    ("ngpus=2", "Did you mean cluster.gpus_per_node?"),
    ("cluster.gpus=2", "Did you mean cluster.gpus_per_node?"),
    ("tp=2", "Did you mean shards?"),
    ("tensor-parallel-size=2", "Did you mean shards?"),
    ("SHARDS=2", "Did you mean shards?"),
    ("--batch_size=8", "Did you mean batch_size?"),
    ("batch=8", "Did you mean batch_size?"),
    ("bs=8,16", "Did you mean batch_size?"),
    ("max_tokens=5", "Did you mean max_gen_len?"),
    ("max_new_tokens=5", "Did you mean max_gen_len?"),
    ("dtype=fp16", "Did you mean precision?"),
    ("power_cap=300", "Did you mean control.power_limit_w?"),
    ("control.power_limit=300", "Did you mean control.power_limit_w?"),
    ("clock=1400", "Did you mean control.sm_clock_mhz?"),
    ("repeats=5", "Did you mean sweep.repeats?"),
    ("temp=0.5", "Did you mean temperature?"),
    ("cluster.mem=40", "Did you mean cluster.mem_gb_per_node?"),
    ("cluster.nodes=2", "Did you mean nodes?"),
    ("walltime=60", "Did you mean cluster.time_min?"),
    ("partition=gpu", "Did you mean cluster.partition?"),
    # a name that only rhymes with a key is none
    ("bandwidth=3", "bandwidth=3: no such key. `wattflow keys`"),
    ("sweep.zip=[[batch,shards]]", "sweep.zip: batch: no such key. Did you mean batch_size?"),
    # lists
    ("batch_size=8,,16", "batch_size=8,,16: a value is missing beside a comma"),
    ("batch_size=8,", "a value is missing beside a comma"),
    # examples are values that one may want
    ("control.power_limit_w=x", "=300, and control.power_limit_w=300,600 for two points"),
    ("cluster.mem_gb_per_node=-1", "must be at least"),
    # nearest values
    ("precision=float16", "int4. Did you mean fp16?"),
    ("precision=BF16", "Did you mean bf16?"),
    ("weights=HF", "Did you mean hf?"),
    ("dataset=GSM8K", "Did you mean gsm8k?"),
    ("model=meta-llama/Llama-3.1-8B", "Did you mean llama-3.1-8b?"),
    ("model=/data/llama", "A path of your own is model.path=/data/llama"),
    ("engine.device=gpu", "Did you mean cuda?"),
    ("a.b=c", "a.b=c: no such key. `wattflow keys` lists"),
    ("=3", "=3: no such key."),
    ("Übung=1", "Übung=1: no such key."),
    ("shards.x=1", "shards.x=1: no such key."),
    # a group's file that there is not: the nearest, all, and where they were looked for
    ("model=llama-7", "model=llama-7: no such file: looked for "),
    ("model=llama-7", "conf/model/llama-7.yaml. Did you mean llama-7b? There are "),
    ("model=tiny,lama-7b", "model=lama-7b: no such file"),
    (
        "cluster=nosuch",
        "There are example-a100, example-perlmutter, example-v100, local, testcluster.",
    ),
    ("grid=nosuch", "grid=nosuch: no such file"),
    ("model=null", "takes the name of a file in conf/model/, or several: model="),
    ("model=[tiny,llama-7b]", "takes the name of a file in conf/model/, or several"),
    ("model@x=tiny", "groups can be chosen, as model=NAME"),
    ("+model=tiny", "groups can be chosen, as model=NAME"),
    # what Hydra's grammar cannot read
    ("shards", "shards: no KEY=VALUE, such as shards=1 or model=tiny,llama-7b"),
    ("shards=(1", "shards=(1: a bracket is not closed"),
    ("shards=range(1", "shards=range(1: a bracket is not closed"),
    ("model=glob(", "model=glob(: a bracket is not closed"),
    ("dataset.name=Übung", "Quote it twice, for wattflow and for the shell"),
    ("dataset.name=Übung", "'dataset.name=\"Übung\"'"),
    ("shards==3", "shards==3: the value cannot be read"),
    # what is not a person's to set
    ("+new=1", "added"),
    ("~shards", "removed"),
    ("hydra.run.dir=/tmp/x", "sweep=NAME"),
    ("sweep.repeats=1,2", "one value"),
    ("grid=demo,shards", "one value"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty directory, as a person does who installed the package."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_a_wrong_override_is_refused_in_one_line(override, message):
    """Key, group, type or value: the message names it, says what it takes, and holds no line break."""
    with pytest.raises(RefusedError) as caught:
        grid.expand([*ONE, override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["shards=x", "batchsize=8", "model=llama-7", "Übung=1", "shards"]
)
def test_on_the_command_line_it_is_exit_code_2(override, tmp_path):
    """One line on stderr, nothing on stdout, nothing written."""
    done = call("plan", override, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"wattflow: {override}: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ('dataset.name="Übung"', "Übung"),
        ("dataset.name='a b'", "a b"),
        ("dataset.name=a b", "a b"),
        ('dataset.name="a,b"', "a,b"),
    ],
)
def test_quoted_values_are_texts(override, value, tmp_path):
    """As the message of one that cannot be read says."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one line"}\n' * 8)
    own = ["dataset.format=jsonl", f"dataset.path={file}"]
    _, (point,), _ = grid.expand([*ONE, *own, override])
    assert point.config.dataset.name == value


@pytest.mark.parametrize(
    "word",
    [
        "dataset.name=${oc.env:HOME}",
        r"dataset.name=$\{oc.env:HOME}",
        r"dataset.name=$\{oc.env:HOME\}",
        r"dataset.name=\$\{oc.env:HOME\}",
        r"dataset.name='\${oc.env:HOME}'",
        r"dataset.name=$\\{oc.env:HOME}",
        r"model.revision=a,$\{oc.env:HOME\}",
        r"cluster.setup=['$\{oc.env:HOME\}']",
        r"model=$\{oc.env:HOME\}",
        "model.name='${now:%Y}'",
        "engine._target_=os.system",
        "dataset.name=`touch sentinel`",
        "dataset.name='a;touch sentinel'",
        "sweep='../out'",
        "sweep=a/../../out",
        "model=../../secrets",
        "dataset.name='a\nb'",
        "model.name='$(touch sentinel)',${x}",
    ],
)
def test_values_that_could_run_or_escape_are_refused(word, tmp_path):
    """Nothing is evaluated, nothing is written."""
    with pytest.raises(RefusedError):
        grid.plan([*ONE, word])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["sweep.repeats=999999999999"],
        ["seed=range(1,1000000000)"],
        ["seed=range(1,90000)", "batch_size=1,2"],
    ],
)
def test_more_points_than_memory_holds_are_refused_at_once(words):
    """Found by the fuzzer, which such words had killed: at most 100,000 points."""
    with pytest.raises(RefusedError, match="at most 100,000"):
        grid.expand([*ONE, *words])


def test_a_sweeps_name_is_short_for_its_key():
    """sweep=NAME is sweep.name=NAME; -m says nothing new; other keys stay as they are."""
    assert rewritten(["sweep=a", "-m", "sweep.seed=1", "shards=1,2"]) == [
        *("sweep.name=a", "sweep.seed=1", "shards=1,2")
    ]


def test_two_dots_may_stand_in_paths_alone():
    """A file may lie beside the folder one works in; a name may not."""
    refuse_unsafe(["dataset.path=../prompts.jsonl", "sweeps_dir=../sweeps"])
    with pytest.raises(RefusedError, match="refused in names"):
        refuse_unsafe(["dataset.name=../prompts"])
