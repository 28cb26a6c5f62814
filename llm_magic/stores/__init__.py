"""Where answers and what was spent are kept: in memory, and in files of this machine."""
