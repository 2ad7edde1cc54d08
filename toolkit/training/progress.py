"""One progress bar for a whole job, and one line an epoch."""

import sys

from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm


class Progress:
    """A bar over the batches of all folds and epochs, shown on a terminal by the main process.

    Args:
        total: batches, training and evaluation together.
        hidden: show no bar; lines are still printed.
    """

    def __init__(self, total: int, hidden: bool = False) -> None:
        disable = hidden or not if_main_process() or not sys.stderr.isatty()
        self.bar = tqdm(total=total, disable=disable, dynamic_ncols=True, unit="batch")

    def describe(self, text: str) -> None:
        """Say what is being done."""
        self.bar.set_description(text)

    def update(self, note: str = "", batches: int = 1) -> None:
        """Count batches as done."""
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(batches)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if if_main_process():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()
