"""A stand-in for the package vllm: its scheduler's two calls, requests in turns, tokens that follow from prompts.

Token k of a request is (sum of its prompt + k) modulo 256. At most `max_num_seqs` requests run at once; a prompt is
read in one iteration.
"""

import sys
import types
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace as Some
from typing import Any, ClassVar


@dataclass
class Request:
    name: str
    prompt: list[int]
    params: Any
    made: list[int] = field(default_factory=list)
    computed: int = 0
    is_new: bool = True


class Scheduler:
    def __init__(self, args):
        self.args, self.waiting, self.running, self.seen = args, deque(), [], []
        self.cached = {}  # prompt tokens that a prefix cache has, by request
        self.kv_cache_config = Some(kv_cache_tensors=[Some(size=4096 * 16)])

    def schedule(self, throttle_prefills=False):
        while self.waiting and len(self.running) < self.args["max_num_seqs"]:
            self.running.append(self.waiting.popleft())
        counts, new, names, computed = {}, [], [], []
        for request in self.running:
            if request.is_new:
                request.computed = self.cached.get(request.name, 0)
                new.append(
                    Some(
                        req_id=request.name,
                        prompt_token_ids=request.prompt,
                        num_computed_tokens=request.computed,
                    )
                )
                counts[request.name] = len(request.prompt) - request.computed
                request.is_new = False
            else:
                names.append(request.name)
                computed.append(request.computed)
                counts[request.name] = 1
            request.computed += counts[request.name]
        return Some(
            num_scheduled_tokens=counts,
            scheduled_new_reqs=new,
            scheduled_cached_reqs=Some(req_ids=names, num_computed_tokens=computed),
            preempted_req_ids=None,
        )

    def update_from_output(self, scheduled, _output):
        outputs = []
        for request in [r for r in self.running if r.name in scheduled.num_scheduled_tokens]:
            token = (sum(request.prompt) + len(request.made)) % 256
            request.made.append(token)
            reason = None
            if token in (request.params.stop_token_ids or ()):
                reason = "stop"
            elif (
                len(request.made) == request.params.max_tokens
                or len(request.made) + len(request.prompt) == self.args["max_model_len"]
            ):
                reason = "length"
            if reason is not None:
                self.running.remove(request)
                self.seen.append(request)
            outputs.append(
                Some(request_id=request.name, new_token_ids=[token], finish_reason=reason)
            )
        return {0: Some(outputs=outputs)}


class LLMEngine:
    made: ClassVar[list] = []

    def __init__(self, args):
        self.args, self.calls = args, []
        self.scheduler = Scheduler(args)
        self.engine_core = Some(
            engine_core=Some(scheduler=self.scheduler),
            shutdown=lambda: self.calls.append("shutdown"),
        )
        self.vllm_config = Some(
            compilation_config=Some(
                static_forward_context={"layer": Some(attn_backend=Some(get_name=lambda: "FAKE"))},
                cudagraph_mode=Some(name="FULL"),
            ),
            cache_config=Some(
                num_gpu_blocks=1,
                block_size=16,
                cache_dtype="auto",
                enable_prefix_caching=True,
                gpu_memory_utilization=0.9,
            ),
            model_config=Some(quantization=args.get("quantization")),
            scheduler_config=Some(async_scheduling=False, max_num_batched_tokens=2048),
        )

    @classmethod
    def from_engine_args(cls, args):
        if args.get("quantization") == "unknown":
            raise ValueError("Unknown quantization method: unknown.\nMust be one of a, b")
        cls.made.append(cls(args))
        return cls.made[-1]

    def apply_model(self, function):
        return [{"float32": 100}]

    def add_request(self, name, prompt, params):
        self.scheduler.waiting.append(Request(f"{name}-x", prompt["prompt_token_ids"], params))

    def has_unfinished_requests(self):
        return bool(self.scheduler.waiting or self.scheduler.running)

    def reset_prefix_cache(self):
        self.calls.append("reset_prefix_cache")

    def step(self):
        before = len(self.scheduler.seen)
        self.scheduler.update_from_output(self.scheduler.schedule(), None)
        return [
            Some(
                request_id=request.name.removesuffix("-x"),
                finished=True,
                outputs=[Some(token_ids=request.made)],
            )
            for request in self.scheduler.seen[before:]
        ]


def install(monkeypatch, version="0.32.0", device="cpu"):
    """Have `import vllm` find the stand-in, of a version and for a device."""
    from wattflow.engine import installed

    LLMEngine.made.clear()
    modules = {
        "vllm": {"EngineArgs": dict, "LLMEngine": LLMEngine, "SamplingParams": Some},
        "vllm.sampling_params": {"RequestOutputKind": Some(FINAL_ONLY=2)},
        "vllm.platforms": {"current_platform": Some(device_type=device)},
        "wattflow.engine.vllm_dummy": {"register": lambda *_: None},
    }
    for name, holds in modules.items():
        module = types.ModuleType(name)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    import wattflow.engine as room

    monkeypatch.setattr(
        room, "vllm_dummy", sys.modules["wattflow.engine.vllm_dummy"], raising=False
    )
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(installed.metadata, "version", lambda _: version)
    # what the engine sets for vLLM is undone with the test
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
    ):
        monkeypatch.setenv(name, "0")
    for name in (
        "HF_HUB_OFFLINE",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_NO_USAGE_STATS",
        "VLLM_HOST_IP",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_LOGGING_LEVEL",
    ):
        monkeypatch.setenv(name, "")
