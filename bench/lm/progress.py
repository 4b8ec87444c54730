"""What is seen while it trains: a live table and a bar, or plain lines without a terminal."""

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .comparison import NAMES

LINES = 20  # printed over a whole training where there is no terminal


class Display:
    """Shows records of a comparison of `total` steps, of which `done` were taken before."""

    def __init__(self, console: Console, total: int, done: int):
        self._console, self._total = console, total
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("lr {task.fields[rate]:.2e}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total, completed=done, rate=0.0)
        self._live = Live(self._bar, console=console, refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, record: dict) -> None:
        """Show the latest record (see Comparison.steps)."""
        if self._console.is_terminal:
            self._bar.update(self._task, completed=record["step"], rate=record["rate"])
            self._live.update(Group(self._table(record), self._bar))
        elif record["step"] % max(1, self._total // LINES) == 0 or record["step"] == self._total:
            self._console.print(self._line(record), soft_wrap=True)

    def _table(self, record: dict) -> Table:
        table = Table("run", box=None, expand=True)
        for heading in ("loss", "gradient norm", "tokens/s", "optimizer ms"):
            table.add_column(heading, justify="right")
        for name in NAMES:
            table.add_row(name, *_figures(record, name))
        return table

    def _line(self, record: dict) -> str:
        head = f"step {record['step']}/{self._total}  lr {record['rate']:.2e}"
        for name in NAMES:
            loss, norm, speed, milliseconds = _figures(record, name)
            head += f"  | {name} loss {loss} norm {norm} {speed} tokens/s opt {milliseconds} ms"
        return head


def _figures(record: dict, name: str) -> tuple[str, str, str, str]:
    measured = record[name]
    return (
        f"{measured['loss']:.4f}",
        f"{measured['norm']:.3f}",
        f"{record['batch_tokens'] / measured['seconds']:,.0f}",
        f"{1e3 * measured['optimizer_seconds']:.2f}",
    )
