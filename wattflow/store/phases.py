"""The names of phases, and which of them lie in the measured window."""

IN_JOB = ("idle", "load", "warmup", "idle_after")  # around the measured window, and part of the job
AROUND = (*IN_JOB, "reference")  # never in the measured window
WITHIN = ("prefill", "decode", "other")
COMMAND = "command"  # all of a command that reported no span
MIXED = "mixed"  # threads or processes were in different phases
OUTSIDE = "outside"  # time of the command before and after its window, in no phase that it reported
NOT_WITHIN = (*AROUND, OUTSIDE)  # all others are, also those of a program's own naming
RESERVED = {COMMAND, MIXED, OUTSIDE, "other", "steady", "window"}
