"""Executing a study: the queue of runs, engines, processes, time estimates and timings."""
