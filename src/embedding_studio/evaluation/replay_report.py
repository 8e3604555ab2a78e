"""A replay as a table for the terminal."""

from rich.table import Table

from embedding_studio.evaluation.replay import METRICS, Replay


def replay_table(replay: Replay, collection: str) -> Table:
    """Return how each method did in each slice; differences are to plain search."""
    whole = replay.slices["all"]
    drawn = Table(
        title=f"{collection}: {whole.searches} searches of {whole.users} users",
        caption="Differences are to plain search, mean over searches; in brackets 95 % over users. Better "
        "and worse: users whose mean reciprocal rank differs by more than .01. * too few to tell",
        title_justify="left",
    )
    for heading in ("slice", "searches", "users", "method", "RR"):
        drawn.add_column(heading, justify="left" if heading in {"slice", "method"} else "right", no_wrap=True)
    for heading in ("difference", *METRICS[1:], "better", "worse"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for name, size in replay.slices.items():
        for number, (method, slices) in enumerate(replay.methods.items()):
            found = slices[name]
            rank = found.metrics[METRICS[0]]
            sizes = (f"{name}{' *' * size.is_too_small}", str(size.searches), str(size.users))
            drawn.add_row(
                *(sizes if number == 0 else ("", "", "")),
                method,
                f"{rank.mean:.3f}",
                f"{rank.difference.mean:+.3f} ({rank.difference.low:+.3f} {rank.difference.high:+.3f})",
                *(f"{found.metrics[metric].difference.mean:+.3f}" for metric in METRICS[1:]),
                f"{found.users_better:.1%}",
                f"{found.users_worse:.1%}",
                end_section=number == len(replay.methods) - 1,
            )
    return drawn
