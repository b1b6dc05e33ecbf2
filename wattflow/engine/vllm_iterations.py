"""What each iteration of vLLM's scheduler worked on, seen from inside the process, without waiting for the device.

`schedule` and `update_from_output` of the scheduler are called once an iteration; both are wrapped, and what they
return is counted. With asynchronous scheduling a call of `step` launches one iteration and takes the tokens of the one
before: then the tokens scheduled and the tokens made in one row are of two launches.
"""

from dataclasses import dataclass
from typing import Any

from wattflow.engine.serving import RequestTrace


@dataclass
class Iteration:
    """One call of `step`: its edges by the host's clock, what it scheduled, and what it brought."""

    start_ns: int
    end_ns: int = 0
    prefill_tokens: int = 0  # of prompts, scheduled
    decode_tokens: int = 0  # one a row that already has its first token, scheduled
    cached_tokens: int = 0  # of prompts, found in the prefix cache
    requests: int = 0  # scheduled
    preempted: int = 0  # requests that gave up their cache, to be computed anew
    first_tokens: int = 0  # requests that got their first token
    tokens_made: int = 0  # that came back
    tokens_kept: int = 0  # of these, without those that ended a request
    finished: int = 0
    positions: int = 0  # cached positions that the decoded rows read
    prefill_squares: int = 0  # sum of the squares of the prompt lengths read at once
    draft_tokens: int = 0  # proposed by speculative decoding, scheduled to be checked
    accepted_tokens: int = 0  # of these, those that came back as output


class Probe:
    """Counts what a scheduler does; `row` is the iteration that it adds to."""

    def __init__(self, scheduler: Any) -> None:
        """Wrap the scheduler's two calls; AttributeError where it has none of that name."""
        self.row = Iteration(0)
        self.number = 0  # of the row among those of a batch
        self._traces: list[RequestTrace] | None = None  # of requests that are watched one by one
        self._first = 0  # the name of the first of them
        self._prompt: dict[str, int] = {}  # prompt tokens by request
        self._begun: set[str] = set()  # requests that have their first token
        self._schedule, self._update = scheduler.schedule, scheduler.update_from_output
        scheduler.schedule, scheduler.update_from_output = self._scheduled, self._updated

    def _scheduled(self, *args: Any, **more: Any) -> Any:
        output = self._schedule(*args, **more)
        row, counts = self.row, output.num_scheduled_tokens
        row.requests += len(counts)
        row.preempted += len(getattr(output, "preempted_req_ids", None) or ())
        drafts = getattr(output, "scheduled_spec_decode_tokens", None) or {}
        row.draft_tokens += sum(map(len, drafts.values()))
        for new in output.scheduled_new_reqs:
            self._prompt[new.req_id] = len(new.prompt_token_ids)
            row.cached_tokens += new.num_computed_tokens
            if (trace := self._trace(new.req_id)) is not None:
                trace.cached_tokens = new.num_computed_tokens
            self._add(new.req_id, new.num_computed_tokens, counts[new.req_id])
        cached = output.scheduled_cached_reqs
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            self._add(name, computed, counts[name])
        return output

    def watch(self, first: int) -> list[RequestTrace]:
        """Return the list of what becomes of each request from now on, named from `first` on, as they are added."""
        self._traces, self._first = [], first
        return self._traces

    def _trace(self, name: str) -> RequestTrace | None:
        """Return the trace of a request; vLLM adds a suffix to the names that it is given."""
        if self._traces is None:
            return None
        number = int(name.partition("-")[0]) - self._first
        return self._traces[number] if 0 <= number < len(self._traces) else None

    def _add(self, name: str, computed: int, count: int) -> None:
        row, prompt = self.row, self._prompt[name]
        of_prompt = min(count, max(0, prompt - computed))
        row.prefill_tokens += of_prompt
        row.prefill_squares += of_prompt * of_prompt
        if of_prompt and (trace := self._trace(name)) is not None:
            trace.prefill_steps.append(self.number)
            trace.prefill_tokens.append(of_prompt)
        if count > of_prompt:
            row.decode_tokens += count - of_prompt
            row.positions += computed + count

    def _updated(self, *args: Any, **more: Any) -> Any:
        found = self._update(*args, **more)
        row = self.row
        for outputs in found.values():
            for output in outputs.outputs:
                made = len(output.new_token_ids)
                row.tokens_made += made
                row.accepted_tokens += max(0, made - 1)
                if (trace := self._trace(output.request_id)) is not None:
                    trace.token_steps += [self.number] * made
                row.tokens_kept += made
                if made and output.request_id not in self._begun:
                    self._begun.add(output.request_id)
                    row.first_tokens += 1
                if output.finish_reason is not None:
                    row.finished += 1
                    # a token that ends a row is none of its output
                    row.tokens_kept -= made > 0 and str(output.finish_reason) == "stop"
                    self._begun.discard(output.request_id)
                    self._prompt.pop(output.request_id, None)
        return found
