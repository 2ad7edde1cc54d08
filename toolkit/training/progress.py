"""One progress bar for a whole job, and one line per epoch."""

import sys

from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm


class Progress:
    """A bar over the batches of all folds and epochs, which the main process shows on a terminal.

    Args:
        total: number of batches, in training and evaluation.
        hidden: show no bar; lines are still printed.
    """

    def __init__(self, total: int, hidden: bool = False) -> None:
        disable = hidden or not if_main_process() or not sys.stderr.isatty()
        self.bar = tqdm(total=total, disable=disable, dynamic_ncols=True, unit="batch")

    def describe(self, text: str) -> None:
        """Show in front of the bar what is being done."""
        self.bar.set_description(text)

    def update(self, note: str = "", batches: int = 1) -> None:
        """Count batches as done, and show a note behind the bar."""
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
