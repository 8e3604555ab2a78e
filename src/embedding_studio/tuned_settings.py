"""Settings that serve a log better than those in force: chosen on its earlier part, judged once on the later.

The searches are taken in three thirds of time. From the first is only learnt; on the second many settings are
compared, each replayed as a process with these settings would have served and learnt; on the third the best
of them is judged, once, against the settings in force and against plain search. It is recommended only if
it wins against both. So how many were tried does not matter to what is said of the one that is judged.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedding_studio.bootstrap import Context
from embedding_studio.domain.objects import JSON
from embedding_studio.errors import EmbeddingStudioError, InvalidInputError, counted, plural
from embedding_studio.evaluation.collection_folder import Progress
from embedding_studio.evaluation.judging import (
    FOUND,
    IN_FORCE,
    Judged,
    Part,
    reasons_against,
    rows_judged,
    verdict,
)
from embedding_studio.evaluation.replay import FEWEST_SEARCHES, FEWEST_USERS, METRICS
from embedding_studio.evaluation.replay_processes import play
from embedding_studio.evaluation.replay_steps import Step, Steps, steps_of
from embedding_studio.replaying import World
from embedding_studio.settings import KNOBS, Settings

if TYPE_CHECKING:
    import optuna

TRIALS = 24
AT_ONCE = 4
"""Settings that are asked for before any of them is known: as many processes as that can be of use, and how
many there are changes no answer."""
RANDOM_TRIALS = 8

SEARCHES = 2_000
"""Ranked in a trial. All users are learnt from; fewer are looked at."""

MAX_WORSE = 0.1
"""One user in ten: with the defaults a simulated user's near queries are worse for up to as many
(docs/does-it-help.md)."""

LEAST = 0.001
"""In reciprocal rank: a changed setting that gains less is put back."""

Given = Mapping[str, Any]
"""Name of a setting -> value."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where a setting is looked for; its value in force is in it, wherever that lies."""

    low: float
    high: float
    is_log: bool = False

    def rounded(self, value: float) -> float:
        """Return a value as people write it: two digits, of the number or after its point.

        >>> Range(0.01, 0.5, is_log=True).rounded(0.03456), Range(0, 2).rounded(1.2345)
        (0.035, 1.23)
        """
        return float(f"{value:.2g}") if self.is_log else round(value, 2)


@dataclass(frozen=True, slots=True)
class Choices:
    each: tuple[Any, ...]


Space = Mapping[str, Range | Choices]


@dataclass(frozen=True, slots=True)
class Tried:
    """Settings on the earlier part.

    Attributes:
        settings: those that differ from the settings in force.
        difference: in reciprocal rank, to plain search; mean over searches.
        users_worse: than with plain search; a share.
    """

    settings: Given
    difference: float
    users_worse: float


@dataclass(frozen=True, slots=True)
class TunedSettings:
    """What came out.

    Attributes:
        before, after: the settings that were tried, as they are in force and as they were found to be best on
            the earlier part; equal where nothing was better.
        is_recommended: whether ``after`` is advised.
        told: the verdict, in sentences.
        judge_from: UTC milliseconds; the later part begins there.
        tuned_on: so many searches of the earlier part were ranked in each trial, of so many users.
        judged: name -> what came out on the later part; the first decides.
        trials: the best first; the settings in force are among them.
        notes: what else to know.
    """

    collection: str
    before: Given
    after: Given
    is_recommended: bool
    told: str
    judge_from: int
    tuned_on: tuple[int, int]
    judged: Mapping[str, Judged]
    trials: Sequence[Tried]
    notes: Sequence[str]
    seed: int

    @property
    def changes(self) -> dict[str, Any]:
        """Name -> value, of what is recommended; empty where nothing is."""
        if not self.is_recommended:
            return {}
        return {
            name: self.after[name] for name in sorted(self.after) if self.after[name] != self.before[name]
        }

    def to_json(self) -> JSON:
        return asdict(self) | {"changes": self.changes}


def tune_settings(
    context: Context,
    name: str,
    *,
    log: str | None = None,
    trials: int = TRIALS,
    seed: int = 0,
    judge_from: int | None = None,
    max_worse: float = MAX_WORSE,
    share: int | None = None,
    searches: int = SEARCHES,
    processes: int = 1,
    progress: Progress | None = None,
) -> TunedSettings:
    """Look for settings that serve a log better, and say whether they do.

    Args:
        name: of the collection, or an alias.
        log: a file of sessions; None: what was recorded for the collection.
        trials: so many settings are tried beside those in force.
        seed: of the search, the sample and the bootstrap; an equal one gives an equal answer.
        judge_from: UTC milliseconds; None: the last third of the searches is judged on.
        max_worse: nothing is recommended with which more of the users fare worse than with plain search;
            a share.
        share: is tried as ``SHARED_MIN_USERS``; None: sharing is neither turned on nor let begin earlier.
        searches: so many are ranked in a trial, of users drawn by the seed; evidence is taken from all.
        processes: they change no figure.

    Raises:
        InvalidInputError: something given cannot be used, or there are too few searches to tell.
        EmbeddingStudioError: Optuna is missing, or a method failed.
    """
    _check(trials, max_worse, share, searches)
    sampler = _sampler(seed)
    show = progress or _ignored
    collection = context.storage.collections.get(name)
    in_force = context.settings
    space = _space(in_force, share, has_own_gate=collection.gate_threshold is not None)
    current = {name: getattr(in_force, name) for name in space}
    world = World(context, collection)
    read = world.log(log)
    steps = steps_of(
        read,
        plain=world.plain(),
        index=collection.index,
        gate_threshold=world.gate_threshold,
        query_vectors=world.embedded(read, show),
        measure_from=None,
        progress=show,
    )
    slice_name = "all" if share or in_force.shared_min_users else "past"  # that some settings could change
    earlier, later, judged_from = _parts(steps, slice_name, judge_from)
    sampled = min(1.0, searches / sum(slice_name in step.slices for step in earlier))
    part = _sampled(earlier, slice_name, sampled, seed)
    trying = _Trying(world, in_force, current, part, max_worse, processes, seed)
    _try_proposed(trying, sampler, space, trials, show)
    found = _put_back(trying, _best(trying), show)
    judging = Part(later, seed)
    both = {IN_FORCE: {}, FOUND: found} if found else {IN_FORCE: {}}
    played = play(
        later,
        {each: world.served(_with(in_force, given)) for each, given in both.items()},
        processes=processes,
        progress=_renamed(show, "judge"),
    )
    rows = rows_judged(judging, earlier, slice_name)
    judged = {row: judging.judged(meaning, at, played) for row, (meaning, at) in rows.items()}
    reasons = reasons_against(judged[slice_name], max_worse)
    return TunedSettings(
        collection=collection.name,
        before=current,
        after={**current, **found},
        is_recommended=bool(found) and not reasons,
        told=verdict(found, reasons, judged[slice_name]),
        judge_from=judged_from * 1000,
        tuned_on=(len(trying.part.users), len(set(trying.part.users))),
        judged=judged,
        trials=trying.best_first(),
        notes=_notes(
            collection.gate_threshold,
            trying.count,
            sampled,
            is_shared=slice_name == "all",
            share=share if "shared_min_users" in space else None,
        ),
        seed=seed,
    )


def _check(trials: int, max_worse: float, share: int | None, searches: int) -> None:
    if trials < 1:
        raise InvalidInputError(f"{trials} trials are none; give 1 or more")
    if not 0 <= max_worse <= 1:
        raise InvalidInputError(f"a share of users from 0 to 1 may fare worse; {max_worse} is none")
    if share is not None and share < 2:
        raise InvalidInputError(
            f"sharing from {counted(share, 'user')} on shows what one clicked to others; give 2 or more"
        )
    if searches < FEWEST_SEARCHES:
        raise InvalidInputError(
            f"{counted(searches, 'search', 'searches')} a trial {plural(searches, 'is', 'are')} too few to "
            f"tell; give {FEWEST_SEARCHES} or more"
        )


def _sampler(seed: int) -> "optuna.samplers.BaseSampler":
    try:
        import optuna
    except ImportError as error:
        raise EmbeddingStudioError(
            "tuning settings needs the extra 'tune'; pip install 'embedding-studio[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=RANDOM_TRIALS)


def _space(settings: Settings, share: int | None, *, has_own_gate: bool) -> dict[str, Range | Choices]:
    """Return what is tried. What bounds harm or protects people is not: it is theirs to decide.

    ``SHARED_MIN_USERS`` is what is in force or what was asked for, and ``LEARN_OWN_PAST`` is not turned on.
    """
    rate = KNOBS["adjustment_rate"]
    space: dict[str, Range | Choices] = {
        "query_shift": _around(settings.query_shift, 0.0, 2.0),
        "adjustment_rate": _around(settings.adjustment_rate, rate.low, rate.high, is_log=True),
    }
    if not has_own_gate:
        space["gate_threshold"] = _around(settings.gate_threshold, 0.5, 0.95)
    if settings.learn_own_past:
        space["learn_own_past"] = Choices((True, False))
    if share is not None and share != settings.shared_min_users:
        space["shared_min_users"] = Choices((settings.shared_min_users, share))
    return space


def _around(value: float, low: float, high: float, *, is_log: bool = False) -> Range:
    return Range(min(low, value), max(high, value), is_log)


def _with(settings: Settings, given: Given) -> Settings:
    return settings.model_copy(update=dict(given))


def _parts(steps: Steps, slice_name: str, judge_from: int | None) -> tuple[list[Step], list[Step], int]:
    """Return the steps of the earlier part, all steps, and the second from which on the later part is.

    Measured are of the earlier part what comes after the first third (or after its half, where the later part
    was said to begin elsewhere), of all steps the later part.

    Args:
        slice_name: of the searches that some settings could change.
    """
    at = [step.search.at for step in steps.measured if slice_name in step.slices]
    reasons = "; ".join(f"{number} x {reason}" for reason, number in steps.left_out.items())
    left_out = f" (left out: {reasons})" if reasons else ""
    if not at and reasons and not steps.each:
        raise InvalidInputError(f"nothing in the log can be used: {reasons}; mend what is named here")
    if not at:
        raise InvalidInputError(
            f"there is no search to tune on{left_out}: it takes searches with a "
            "click, by users who had clicked something before; record more, or let what others clicked count "
            "(--share)"
        )
    judged_from = at[2 * len(at) // 3] if judge_from is None else judge_from // 1000
    before = [each for each in at if each < judged_from]
    tuned_from = before[len(before) // 2] if before else judged_from
    earlier = [_measured(step, tuned_from) for step in steps.each if step.search.at < judged_from]
    later = [_measured(step, judged_from) for step in steps.each]
    for part, told in ((earlier, "to choose settings on"), (later, "to judge them on")):
        rows = [step for step in part if slice_name in step.slices]
        users = len({step.search.user_id for step in rows})
        if len(rows) < FEWEST_SEARCHES or users < FEWEST_USERS:
            of = " of users who had clicked something before" if slice_name == "past" else ""
            raise InvalidInputError(
                f"{told} there {plural(len(rows), 'is', 'are')} {counted(len(rows), 'search', 'searches')} "
                f"with clicks{of}, by {counted(users, 'user')}, which is too few to tell{left_out}; it "
                f"takes {FEWEST_SEARCHES} by {FEWEST_USERS}: record more searches"
                + ("" if judge_from is None else ", or let the later part begin at another time")
            )
    return earlier, later, judged_from


def _measured(step: Step, since: int) -> Step:
    return step if step.search.at >= since else replace(step, slices=())


def _sampled(steps: Sequence[Step], slice_name: str, share: float, seed: int) -> list[Step]:
    """Return the steps, of which only those of a share of the users are measured, and of one slice.

    All steps stay: with fewer users to learn from, what others clicked would count for less than it does.
    """
    return [
        step
        if slice_name in step.slices and _drawn(step.search.user_id, seed) < share
        else replace(step, slices=())
        for step in steps
    ]


def _drawn(user_id: str, seed: int) -> float:
    """Return a user's number in [0, 1), equal wherever they come."""
    digest = hashlib.sha256(f"{seed} {user_id}".encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56


@dataclass(slots=True)
class _Trying:
    """Settings tried on the earlier part; equal ones once."""

    world: World
    in_force: Settings
    current: Given
    steps: Sequence[Step]
    max_worse: float
    processes: int
    seed: int
    part: Part = field(init=False)
    _tried: dict[str, Tried] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.part = Part(self.steps, self.seed)

    @property
    def count(self) -> int:
        return len(self._tried)

    def tried(self, several: Sequence[Given], show: Progress) -> list[Tried]:
        """Return what settings come to, of which those are given that are to differ from those in force."""
        changes = [self._changes(given) for given in several]
        new = {repr(given): given for given in changes if repr(given) not in self._tried}
        if new:
            methods = {key: self.world.served(_with(self.in_force, given)) for key, given in new.items()}
            for key, played in play(self.steps, methods, processes=self.processes, progress=show).items():
                found = self.part.against_plain(played)
                difference = found.metrics[METRICS[0]].difference.mean
                self._tried[key] = Tried(new[key], difference, found.users_worse)
        return [self._tried[repr(given)] for given in changes]

    def value(self, tried: Tried) -> float:
        """Return what is to be as large as can be: the gain, less what harms more users than may be."""
        return tried.difference - max(0.0, tried.users_worse - self.max_worse)

    def best_first(self) -> list[Tried]:
        """Return what was tried; of equal ones those first that change less."""
        return sorted(self._tried.values(), key=lambda each: (-self.value(each), len(each.settings)))

    def _changes(self, given: Given) -> Given:
        return {name: value for name, value in sorted(given.items()) if value != self.current[name]}


def _try_proposed(
    trying: _Trying, sampler: "optuna.samplers.BaseSampler", space: Space, trials: int, show: Progress
) -> None:
    """Try the settings in force, and what Optuna proposes, some at once."""
    import optuna

    distributions = {name: _distribution(each) for name, each in space.items()}
    study = optuna.create_study(direction="maximize", sampler=sampler)
    [first] = trying.tried([{}], _renamed(show, "settings in force"))
    study.add_trial(
        optuna.trial.create_trial(
            params=dict(trying.current), distributions=distributions, value=trying.value(first)
        )
    )
    for done in range(0, trials, AT_ONCE):
        asked = [study.ask(distributions) for _ in range(min(AT_ONCE, trials - done))]
        given = [
            {name: _rounded(space[name], value) for name, value in trial.params.items()} for trial in asked
        ]
        tried = trying.tried(given, _part_of(show, done, len(asked), trials))
        for trial, each in zip(asked, tried, strict=True):
            study.tell(trial, trying.value(each))


def _distribution(knob: Range | Choices) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(knob, Choices):
        return CategoricalDistribution(knob.each)
    return FloatDistribution(knob.low, knob.high, log=knob.is_log)


def _rounded(knob: Range | Choices, value: Any) -> Any:
    return knob.rounded(value) if isinstance(knob, Range) else value


def _best(trying: _Trying) -> Given:
    """Return what was best, as it differs from the settings in force; nothing where it may not be taken."""
    allowed = (
        each for each in trying.best_first() if each.users_worse <= trying.max_worse and each.difference > 0
    )
    return next((each.settings for each in allowed), {})


def _put_back(trying: _Trying, found: Given, show: Progress) -> Given:
    """Return what was found without the changes that gain nothing, each taken by itself and all together."""
    if not found:
        return found
    [whole] = trying.tried([found], show)
    without = [{each: found[each] for each in found if each != name} for name in found]
    alone = trying.tried(without, _renamed(show, "put back what gains nothing"))

    def is_as_good(tried: Tried) -> bool:
        return trying.value(tried) > trying.value(whole) - LEAST and tried.users_worse <= trying.max_worse

    kept = {
        name: value
        for (name, value), tried in zip(found.items(), alone, strict=True)
        if not is_as_good(tried)
    }
    [left] = trying.tried([kept], _renamed(show, "put back what gains nothing"))
    return kept if is_as_good(left) else found


def _notes(
    own_gate: float | None, tried: int, sampled: float, *, is_shared: bool, share: int | None
) -> list[str]:
    """Return what else to know.

    Args:
        sampled: share of the earlier searches that were ranked in each trial.
    """
    settings = counted(tried, "setting was", "different settings were")
    notes = [f"{settings} tried on the earlier part; the best was judged on the later, once"]
    if sampled < 1:
        notes.append(
            f"in a trial the searches of {sampled:.0%} of the users were ranked, drawn by the seed; what all "
            "of them clicked was learnt"
        )
    if own_gate is not None:
        notes.append(
            f"the collection has a gate of its own, {own_gate}, which counts instead of GATE_THRESHOLD; no "
            "other was tried"
        )
    if share is not None:
        notes.append(
            f"SHARED_MIN_USERS={share} was tried since you asked for it: what {share} users clicked then "
            "bears on what others see"
        )
    elif not is_shared:
        notes.append(
            "what others clicked does not count (SHARED_MIN_USERS=0): people have to decide that, so "
            "another number is tried only where it is asked for (--share N)"
        )
    return notes


def _renamed(show: Progress, what: str) -> Progress:
    return lambda _, done, total: show(what, done, total)


def _part_of(show: Progress, done: int, now: int, trials: int) -> Progress:
    """Return what tells of some trials of all."""
    return lambda _, steps, total: show("trials", round(1000 * (done + now * steps / total)), 1000 * trials)


def _ignored(what: str, done: int, total: int) -> None:
    """Take notice of no progress."""
