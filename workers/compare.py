"""`lookalike compare`: which model and which clustering suit one's own clips."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from lookalike.settings import CLUSTERINGS, Settings, share_cores

#: the article: EfficientNet-B0 against ViT-MAE, KMeans, 100 clusters of 300 clips
ARTICLE_EMBEDDERS = ("google/efficientnet-b0", "facebook/vit-mae-base")
ARTICLE_CLUSTERINGS = ("kmeans",)
ARTICLE_CLIPS, ARTICLE_CLUSTERS = 300, 100


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--embedders", help="Models, comma-separated: see 'lookalike models'.  [default: the setting's]")
@click.option("--clusterings", help=f"Of {', '.join(CLUSTERINGS)}; comma-separated.  [default: pca-kmeans,kmeans]")
@click.option("--clusters", type=int, help="Number of clusters; 0: each proposes its own.  [default: 0]")
@click.option("--labels", default="", help="'folders', or a CSV file with the columns file and category.")
@click.option("--preset", type=click.Choice(["article"]), help="300 clips, 100 clusters, KMeans, the article's models.")
@click.option("--mode", type=click.Choice(["exact", "fast"]), help="Read every frame, or I-frames first.")
@click.option("--share", type=float, help="Share of the frames to keep, about.  [default: 0.01]")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Repetitions of what is random.")
@click.option("--workers", type=click.IntRange(1, 256), help="Files decoded at a time.  [default: one per core]")
def command(
    paths: tuple[Path, ...],
    out: Path,
    embedders: str | None,
    clusterings: str | None,
    clusters: int | None,
    labels: str,
    preset: str | None,
    mode: str | None,
    share: float | None,
    seeds: int,
    workers: int | None,
) -> None:
    """Show which model and clustering suit your own clips or pictures, side by side.

    PATHS are videos or pictures, and folders to look through. The folder --out gets compare.html, one page that needs
    nothing else, and compare.json. It may be the folder of a 'lookalike prelabel': keyframes found there are taken, and
    a second run embeds only by models that are new.

    With --labels the labels are counted that each model would have saved people: an annotator is replayed as in
    'lookalike evaluate'. 'folders' takes the folder that each file lies in for its category. hdbscan finds the number
    of clusters itself, whatever --clusters says.
    """
    settings = Settings.from_environment(keyframe_mode=mode, keyframe_share=share, clustering="pca-kmeans")
    article = preset == "article"
    settings = settings.with_(clusters=clusters if clusters is not None else ARTICLE_CLUSTERS if article else 0)
    models_named = _listed(embedders) or (list(ARTICLE_EMBEDDERS) if article else [settings.embedder])
    methods = _listed(clusterings) or list(ARTICLE_CLUSTERINGS if article else ("pca-kmeans", "kmeans"))
    unknown = [method for method in methods if method not in CLUSTERINGS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(CLUSTERINGS)}", param_hint="--clusterings")
    share_cores()
    from workers.comparison import compare  # not atop: torch takes seconds, which --help need not wait for
    from workers.report import advise, write_report

    try:
        comparison = compare(
            paths,
            out,
            settings,
            models_named,
            methods,
            labels=labels,
            workers=workers or os.cpu_count() or 1,
            seeds=seeds,
            clips=ARTICLE_CLIPS if article else 0,
        )
    except KeyboardInterrupt:
        click.echo(f"\nstopped; what is done is kept in {out}, and the same command goes on from there", err=True)
        sys.exit(130)
    write_report(comparison, out, settings)
    click.echo(advise(comparison))
    click.echo(
        f"{len(comparison.shown):,} {comparison.unit}s, {len(comparison.variants)} variants → {out / 'compare.html'}"
    )


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
