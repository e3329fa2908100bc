"""`palate rounds`: draw, ask, learn, and again (D3PO's loop with people, arXiv:2311.13231 section 5; for any method).

    runs/taste/                  the run: config.yaml, metrics.jsonl (a row a round), samples/, adapter/, report.html
      rounds/000/preferences/    what was said until then, as preference data
      rounds/000/training/       an ordinary run's folder: its checkpoints, metrics, adapter
      rounds/000/round.json      the round is over

An offline method trains on the votes, round by round, each from where the last one ended. An online method (D3PO, DDPO)
trains on the trajectories of what was drawn, with people's votes as its reward. Stopped at any point, the same command
goes on: drawings are kept, votes are in the project, training has its checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from palate import config, durable, plugins
from palate.config import AlgorithmSettings, ConfigError, RoundsRecipe, RoundsSettings
from palate.doors import asking, judging, lookup, matching
from palate.doors.turns import FIRST, Tell
from palate.doors.turns_offline import Offline
from palate.doors.turns_online import Online
from palate.store import Store


def rounds(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """All rounds of a recipe, the comparison with the base, and the report. Returns the run's folder.

    The same command again goes on where it was stopped; a finished run says so. Raises ConfigError for a folder that
    was begun with another recipe, StorageError for one in use.
    """
    recipe = config.load(path, overrides, RoundsRecipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    options = config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    resolved = {"name": recipe.algorithm.name, **options.model_dump(mode="json")}
    recipe = recipe.model_copy(update={"algorithm": AlgorithmSettings.model_validate(resolved)})
    folder = Path(recipe.output)
    with durable.locked(folder):
        if _finished(folder, recipe):
            judging.mend(folder)
            print(f"{folder} is finished; its report is {folder / 'report.html'}")
            return folder
        _check_kinds(recipe)
        config.dump(recipe, folder / "config.yaml")
        with Store.open(Path(recipe.rounds.project), create=True) as store, _asker(recipe, store) as (ask, tell):
            kind = Offline if algorithm.NEEDS.source == "offline" else Online
            run = kind(recipe, algorithm, options, folder, Path(path).parent, store, ask, tell)
            run.learn()
            run.conclude()
    return folder


def _finished(folder: Path, recipe: RoundsRecipe) -> bool:
    held = folder / "config.yaml"
    if not held.is_file() or not ((folder / "rounds").is_dir() or (folder / "result.json").is_file()):
        return False
    if changes := config.difference(config.load(held, (), RoundsRecipe), recipe):
        raise ConfigError(f"{folder} was begun with another recipe: {'; '.join(changes)}; choose another output")
    return (folder / "result.json").is_file()


def _check_kinds(recipe: RoundsRecipe) -> None:
    """Raises ConfigError for a scorer that judges other media than the model makes: before either is loaded."""
    scorers = [*(recipe.rounds.scorers or ()), *(recipe.evaluation.scorers if recipe.evaluation else ())]
    matching.check_models(scorers, [recipe.model.name])


@contextlib.contextmanager
def _asker(recipe: RoundsRecipe, store: Store) -> Iterator[tuple[asking.Asker, Tell]]:
    """Who votes, and how they are told what is to come.

    The studio is open as long as the block, also while the model trains. SIGTERM ends it as Ctrl-C does.
    """
    wanted = recipe.rounds
    if wanted.people == "studio":
        from palate.doors.labelling import open_studio
        from palate.studio.serve import terminable

        print(_plan(wanted))
        with terminable(), open_studio(store, port=wanted.port, note=FIRST) as studio:
            print("Open your link in the browser.", flush=True)
            yield studio.wait, studio.tell
        return
    assert wanted.scorers
    scorer = lookup.weighted(wanted.scorers)
    if wanted.people == "scorers":
        yield asking.Judged(scorer), _nobody_reads
    else:
        yield asking.Simulated(scorer, wanted.temperature, recipe.training.seed), _nobody_reads


def _nobody_reads(note: str) -> None:
    """Who is no person needs no page."""


def _plan(wanted: RoundsSettings) -> str:
    """What people are in for."""
    pairs = wanted.k * (wanted.k - 1) // 2
    votes = wanted.prompts_per_round * min(pairs, wanted.pairs or pairs) * wanted.votes
    verdict = f", then {wanted.verdict * wanted.votes} that judge the outcome" if wanted.verdict else ""
    rounds = f"{wanted.n} rounds" if wanted.n > 1 else "1 round"
    return f"{rounds} of {votes} votes{verdict}; Ctrl-C stops, the same command goes on."
