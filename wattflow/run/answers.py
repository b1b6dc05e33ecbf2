"""The answers of one attempt, and the table of requests that they make."""

import pyarrow as pa

from wattflow.config.choices import Config
from wattflow.engine.protocol import Generated, total_work
from wattflow.store.schema import ITERATION, REQUEST, SCHEMA_VERSION, WorkInfo
from wattflow.workload.prompts import Prompts
from wattflow.workload.tokenizer import Tokenizer


class Answers:
    """The outputs of an attempt's own batches, in their order."""

    def __init__(
        self,
        config: Config,
        text: Tokenizer,
        prompts: Prompts,
        first_batch: int,
        size: int | None = None,
    ) -> None:
        """`first_batch`: the first of this attempt's own batches, of `size` prompts each, or batch_size."""
        self.first_batch, self._size = first_batch, size or config.batch_size
        self._config, self._text, self._prompts = config, text, prompts
        self._outputs: list[Generated] = []

    def add(self, output: Generated) -> None:
        """Add the next batch's output."""
        self._outputs.append(output)

    @property
    def batches(self) -> int:
        """How many batches are answered."""
        return len(self._outputs)

    def work(self) -> WorkInfo | None:
        """What all batches together worked on; null where the engine does not report it."""
        return total_work(self._outputs)

    @property
    def has_iterations(self) -> bool:
        """Whether the engine schedules by itself and reports its iterations."""
        return any(output.iterations for output in self._outputs)

    def iterations(self, rank: int, node: str) -> pa.Table:
        """One row an iteration of a rank's engine, in order."""
        rows = [
            {"rank": rank, "node": node, "batch": batch, "iteration": number, **vars(iteration)}
            for batch, output in enumerate(self._outputs, self.first_batch)
            for number, iteration in enumerate(output.iterations)
        ]
        table = pa.Table.from_pylist(rows, schema=ITERATION)
        return table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})

    def table(self) -> pa.Table:
        """One row a prompt; a dummy model's text means nothing, so its words and text are null."""
        config = self._config
        meaningful = config.weights != "dummy" and config.engine.name != "synthetic"
        rows: list[dict[str, object]] = []
        before = self.first_batch * self._size
        for batch, output in enumerate(self._outputs, self.first_batch):
            for row, (kept, stop_reason) in enumerate(
                zip(output.tokens, output.stop_reasons, strict=True)
            ):
                prompt = before + len(rows)  # its place in the drawn prompts
                text = self._text.decode(kept) if meaningful else None
                rows.append(
                    {
                        "prompt": prompt,
                        "batch": batch,
                        "tokens_in": len(self._prompts.tokens[prompt]),
                        "tokens_kept": len(kept),
                        "stop_reason": stop_reason,
                        "words": None if text is None else len(text.split()),
                        "text": text,
                        **_times(output, row),
                    }
                )
        table = pa.Table.from_pylist(rows, schema=REQUEST)
        return table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})


def _times(output: Generated, row: int) -> dict[str, object]:
    """Return what became of one request of a load whose requests came while others were in work."""
    if not output.traces:
        return {}
    trace = output.traces[row]
    first = trace.token_steps[0] if trace.token_steps else None
    return {
        **vars(trace),
        "first_token_ns": None if first is None else output.iterations[first].end_ns,
    }
