"""Running a study: the queue, its engines, processes and timings."""
