"""The whole line under faults: fuzzed bytes, random schedules of faults, and what must hold."""
