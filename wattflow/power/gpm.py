"""GPM: how busy the parts of a GPU were between two instants, without DCGM (Hopper and newer).

The driver keeps cycle counters; a sample copies them (0.7 ms on an H100), and the activity between two samples follows
from their difference. A mean over a phase therefore needs a sample at its edges only. A site may keep the counters for
admins: the first sample then fails, and there are no such columns.
"""

import math

from wattflow.errors import PowerError
from wattflow.power.meter import Row
from wattflow.power.nvml_calls import call, call_or_none, pynvml

# NVML's metric by the trace column that it fills; a metric that fails by its own return code is null
METRICS = {
    "sm_activity_pct": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "sm_occupancy_pct": pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,
    "tensor_activity_pct": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "dram_activity_pct": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
    "pcie_tx_mib_s": pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
    "pcie_rx_mib_s": pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
    "nvlink_tx_mib_s": pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC,
    "nvlink_rx_mib_s": pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC,
}


class Gpm:
    """The activity of one GPU since the last call of `read`."""

    def __init__(self, handle: object) -> None:
        """Take the first sample; PowerError, with NVML's word, where GPM is not supported or not permitted."""
        support = call_or_none("nvmlGpmQueryDeviceSupport", handle)
        if support is None or not support.isSupportedDevice:
            raise PowerError("not supported (Hopper and newer have it).")
        self._handle = handle
        self._samples = [call("nvmlGpmSampleAlloc"), call("nvmlGpmSampleAlloc")]
        try:
            call("nvmlGpmSampleGet", handle, self._samples[0])
        except PowerError:
            self.close()
            raise

    def read(self) -> Row:
        """Return the columns of METRICS since the last call; PowerError where the driver no longer answers.

        Null where the counters were not renewed since then: on an H100 they are each 100 ms, and in between NVML
        succeeds with NaN.
        """
        before, now = self._samples
        call("nvmlGpmSampleGet", self._handle, now)
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(METRICS)
        request.sample1, request.sample2 = before, now
        for place, metric in enumerate(METRICS.values()):
            request.metrics[place].metricId = metric
        answer = call("nvmlGpmMetricsGet", request)
        self._samples = [now, before]
        return {
            column: metric.value
            if metric.nvmlReturn == pynvml.NVML_SUCCESS and math.isfinite(metric.value)
            else None
            for column, metric in zip(METRICS, answer.metrics, strict=False)
        }

    @property
    def is_open(self) -> bool:
        """Whether it can be read: not after `close`."""
        return bool(self._samples)

    def close(self) -> None:
        """Free the driver's memory."""
        for sample in self._samples:
            call_or_none("nvmlGpmSampleFree", sample)
        self._samples = []
