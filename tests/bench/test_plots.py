"""The figures of made-up results: what they show, and that each is drawn whole in both themes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the bench extra: matplotlib")

from bench import map_figure, plots
from bench.command import InputError
from bench.places import OURS, PARTS, Place, places
from bench.record import append_csv, read_csv
from bench.themes import THEMES, WIDTH, amount, duration

MACHINE = "AMD EPYC 9B14, 2 cores"
# Every provider of clip + AdamW on a CPU, by the names of bench.peers: how many times our time each
# takes on large tensors, and ms for each small tensor.
PEERS = {
    OURS: (1.0, 0.3e-3),
    "torch, fused": (1.35, 1.5e-3),
    "torch, foreach": (2.6, 3e-3),
    "torch, default": (2.9, 30e-3),
    "torch, fused with grad_scale": (1.3, 1.8e-3),
    "torch, compiled": (1.4, 2.5e-3),
    "DeepSpeed CPUAdam": (1.7, 9e-3),
    "optax, jitted": (3.1, 6e-3),
    "numba, loops": (1.32, 2e-3),
    "optimi": (3.3, 14e-3),
    "heavyball": (4.1, 20e-3),
    "bitsandbytes, 32-bit": (2.2, 12e-3),
}
MODELS = {
    "mlp": (6, 535_818),
    "400-small": (400, 832_000),
    "resnet50": (161, 25_557_032),
    "gpt2": (148, 124_439_808),
    "llama-3.2-1b": (146, 1_235_814_400),
    "olmoe-layer": (200, 419_600_000),
}


def row(case: str, provider: str, ms: float, **columns: object) -> dict[str, object]:
    """A line of bench.csv."""
    known = {
        "date": "2026-11-30T12:00:00+00:00", "machine": MACHINE, "device": "cpu", "threads": 2,
        "load": "others 0.02, average 2.0", "torch": "2.14.1", "case": case, "provider": provider,
        "mode": "float32", "tensors": 1, "elements": 1000, "ratio": ms, "p10_us": 0.97e3 * ms,
        "p50_us": 1e3 * ms, "p90_us": 1.06e3 * ms, "roof_us": 0, "least_bytes": 0, "state_bytes": 0,
    }  # fmt: skip
    return {**known, **columns}


def step(name: str, tensors: int, elements: int) -> Iterator[dict[str, object]]:
    """Rows of clip + AdamW: 32 bytes an element at 24 GB/s and more in caches, and the calls."""
    roof = elements * 32 / 24e6
    for place, (provider, (factor, each)) in enumerate(PEERS.items()):
        cached = 1 + 4 / (1 + elements / 4e6)
        ms = 1.2 * roof * factor / cached + tensors * each + 4e-3 * (1 + place)
        yield row(
            f"step/adamw/clip/{name}/float32", provider, ms, tensors=tensors, elements=elements,
            roof_us=1e3 * roof, least_bytes=32 * elements, state_bytes=8 * elements,
        )  # fmt: skip


def made() -> list[dict[str, object]]:
    """All that `python -m bench` writes of what is drawn."""
    rows = [one for name, size in MODELS.items() for one in step(name, *size)]
    rows += [one for power in range(3, 10) for one in step(f"1e{power}", 1, 10**power)]
    rows += [one for n in (1, 10, 100, 1000, 10_000) for one in step(f"{n}x64", n, 64 * n)]
    tensors, elements = MODELS["gpt2"]
    for mode, provider, ms, each in (
        ("bfloat16", OURS, 160, 4), ("int8", OURS, 140, 2.06),
        ("bfloat16", "heavyball", 520, 4),
        ("int8", "torchao, 8-bit", 880, 2.03), ("int8", "torchao, 4-bit", 920, 1.06),
        ("int8", "torchao, float8", 900, 2.02), ("int8", "bitsandbytes, 8-bit", 610, 2.03),
        ("master", OURS, 170, 10), ("master", "torch, on a float32 copy", 330, 12),
    ):  # fmt: skip
        rows.append(
            row(f"step/adamw/clip/gpt2/{mode}", provider, ms, mode=mode, tensors=tensors,
                elements=elements, state_bytes=round(each * elements))
        )  # fmt: skip
    for provider in ("CuPy", "DeepSpeed CPULion", "numba", "torch, foreach Lion"):
        rows.append(row("step/lion/clip/gpt2/float32", provider, 90))
    for cell, theirs, faster in (
        *((f"{rule}/{work}/{dtype}", 3.0, 2.0) for rule in ("SGD", "Muon")
          for work in ("mlp", "gpt2") for dtype in ("float32", "bfloat16")),
        ("pinv/8x8/float32-full", 40.0, 50.0), ("pinv/8x8/float32-half", 0.9, 0.8),
        ("lstsq/8x8/float32-full", 7.0, 8.0), ("pinv/16x8x8/float32-full", 9.0, 10.0),
    ):  # fmt: skip
        for provider, ratio in ((OURS, 1.0), ("torch", theirs), ("torch, foreach", faster)):
            rows.append(row(f"map/{cell}", provider, ratio, ratio=ratio))
    for model, parts in {
        "gpt-batch-1": (6, 11, 3.2, 1.1),
        "gpt-batch-12": (60, 120, 3.1, 1.1),
        "mlp-batch-32": (0.3, 0.6, 0.9, 0.25),
    }.items():
        forward, backward, theirs, ours = parts
        for provider, clip in (("torch, fused", theirs), (OURS, ours)):
            for part, ms in zip(PARTS, (forward, backward, clip), strict=True):
                rows.append(row(f"share/{model}/{part}", provider, ms))
    return rows


def read(rows: list[dict[str, object]], folder: Path) -> list[Place]:
    """What a file with these rows holds."""
    append_csv(rows, folder / "bench.csv")
    return list(places(read_csv(folder / "bench.csv")))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    (one,) = read(made(), tmp_path_factory.mktemp("rows"))
    return one


def test_the_latest_row_of_each_place_case_and_provider_counts(tmp_path: Path) -> None:
    later = {"date": "2026-12-01T00:00:00+00:00"}
    failed = dict.fromkeys(("p10_us", "p50_us", "p90_us"), "") | later
    rows = [
        row("a", OURS, 2.0, **later),
        row("a", OURS, 1.0),
        row("a", "torch, fused", 3.0),
        row("a", "torch, fused", 0, **failed),  # it computes something else now
        row("a", OURS, 4.0, threads=1, load="others 0.93, average 2.8, busy"),
        row("a", OURS, 5.0, machine="NVIDIA H200", device="cuda"),
    ]
    found = read(rows, tmp_path)
    assert [(p.slug, [(r.provider, r.middle) for r in p.rows]) for p in found] == [
        ("amd-epyc-9b14-2-cores-2-threads", [(OURS, 2.0)]),
        ("amd-epyc-9b14-2-cores-1-thread", [(OURS, 4.0)]),
        ("nvidia-h200", [(OURS, 5.0)]),
    ]
    assert ["busy" in p.note for p in found] == [False, True, False]


def test_bars_are_medians_beside_the_roof(place) -> None:
    figure = plots.models(place, THEMES[0])
    assert len(figure.axes) == len(MODELS)
    axes = next(axes for axes in figure.axes if "gpt2" in axes.get_title("left"))
    rows = sorted(place.cases(plots.MODELS)["gpt2"], key=lambda one: one.middle)
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([one.middle for one in rows])
    assert [text.get_text() for text in axes.get_yticklabels()] == [one.provider for one in rows]
    assert rows[0].provider == OURS
    roof = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert roof[0].get_xdata()[0] == rows[0].roof
    assert f"{rows[0].roof / rows[0].middle:.0%} of roof" in axes.texts[0].get_text()


def test_a_bar_much_longer_than_ours_is_cut_and_keeps_its_number(place) -> None:
    figure = plots.models(place, THEMES[0])
    axes = next(axes for axes in figure.axes if "400-small" in axes.get_title("left"))
    rows = place.cases(plots.MODELS)["400-small"]
    slowest = max(rows, key=lambda one: one.middle)
    assert slowest.middle > plots.LONGEST * rows[0].middle
    longest = plots.LONGEST * rows[0].middle
    assert max(bar.get_width() for bar in axes.patches) == pytest.approx(longest)
    assert f"» {duration(slowest.middle)}" in [text.get_text() for text in axes.texts]


def test_lines_are_rates_by_size_and_times_by_number(place) -> None:
    figure = plots.sizes(place, THEMES[0])
    (axes,) = figure.axes
    ours = place.series(plots.SIZES)[OURS]
    drawn = next(line for line in axes.lines if line.get_color() == THEMES[0].ours)
    assert list(drawn.get_xdata()) == [10**power for power in range(3, 10)]
    assert drawn.get_ydata() == pytest.approx([one.least_bytes / 1e6 / one.middle for one in ours])
    assert "torch's passes, 24 GB/s" in [text.get_text() for text in axes.texts]

    (axes,) = plots.tensors(place, THEMES[0]).axes
    drawn = next(line for line in axes.lines if line.get_color() == THEMES[0].ours)
    assert list(drawn.get_xdata()) == [1, 10, 100, 1000, 10_000]
    assert {text.get_text() for text in axes.texts} == set(PEERS)


def test_every_point_has_a_name_that_covers_no_other(place) -> None:
    figure = plots.state(place, THEMES[0])
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert {f"{OURS}, {mode}" for mode in ("float32", "bfloat16", "int8", "master")} <= set(boxes)
    assert {"torch, fused", "torchao, 4-bit", "heavyball, bfloat16"} <= set(boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_no_two_providers_have_one_colour(place, theme) -> None:
    colours = theme.colours(place)
    shown = {one.provider for case in place.cases(plots.STATES).values() for one in case}
    assert colours.keys() == shown | PEERS.keys()
    assert len(set(colours.values())) == len(colours) == len(PEERS) + 5
    for make in (plots.tensors, plots.sizes):
        (axes,) = make(place, theme).axes
        names = {text.get_text(): text.get_color() for text in axes.texts}
        assert {name: names[name] for name in PEERS} == {name: colours[name] for name in PEERS}


def test_the_share_of_a_training_step(place) -> None:
    found = {training.model: training for training in place.trainings()}
    assert list(found) == ["gpt-batch-1", "gpt-batch-12", "mlp-batch-32"]
    assert found["mlp-batch-32"].sentence() == (
        "mlp-batch-32: clip + step were 50% of the step, are 22%; the whole step is 1.57x"
    )
    figure = plots.share(place, THEMES[0])
    assert "1.15 ms (1.57x), 22% optimizer" in [text.get_text() for text in figure.axes[2].texts]


def test_the_map_has_the_ratio_to_the_fastest_of_torchs_forms(place) -> None:
    tensors, muon, matrices = map_figure.panels(place)
    sets = [(dtype, work) for dtype in ("float32", "bfloat16") for work in ("mlp", "gpt2")]
    assert (tensors.rows, tensors.columns, muon.rows) == (["SGD"], sets, ["Muon"])
    assert set(tensors.ratios.values()) == {2.0}
    assert matrices.rows == ["8x8", "16x8x8"]
    full = ("pinv, float32", "full")
    assert matrices.columns == [full, ("pinv, float32", "half"), ("lstsq, float32", "full")]
    assert matrices.ratios["8x8", full] == 40.0
    figure = map_figure.map(place, THEMES[0])
    assert [text.get_text() for text in figure.axes[-1].texts] == ["40", "0.8", "7", "9"]


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_nothing_is_cut_off(place, theme) -> None:
    for name, figure in plots.drawn(place, theme).items():
        figure.draw_without_rendering()
        inches = figure.get_tightbbox()
        assert inches.x0 >= 0, name
        assert inches.x1 <= WIDTH, name


def test_the_program_writes_every_figure_for_light_and_dark_pages(tmp_path: Path, capsys) -> None:
    append_csv(made(), tmp_path / "bench.csv")
    arguments = ["--csv", str(tmp_path / "bench.csv"), "--out", str(tmp_path / "figures")]
    assert plots.run(arguments) == 0
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {
        f"amd-epyc-9b14-2-cores-2-threads-{make.__name__}-{theme.name}.svg"
        for make in plots.FIGURES
        for theme in THEMES
    }
    assert set(capsys.readouterr().out.split()) == {str(tmp_path / "figures" / n) for n in files}


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    (one,) = read(list(step("gpt2", *MODELS["gpt2"])), tmp_path)
    bytes_of = []
    for _ in range(2):
        figures = plots.drawn(one, THEMES[0])
        assert list(figures) == ["models"]
        plots.write_svg(figures["models"], tmp_path / "models.svg")
        bytes_of.append((tmp_path / "models.svg").read_bytes())
    assert bytes_of[0] == bytes_of[1]
    with pytest.raises(InputError, match="run `python -m bench` first"):
        plots.run(["--csv", str(tmp_path / "none.csv")])


def test_numbers_are_short() -> None:
    assert [duration(ms) for ms in (0.0123, 1.0, 999, 1954)] == [
        "12.3 µs",
        "1 ms",
        "999 ms",
        "1.95 s",
    ]
    assert [amount(n) for n in (1, 999, 1000, 535_818, 10**9)] == [
        "1",
        "999",
        "1 k",
        "536 k",
        "1 G",
    ]
