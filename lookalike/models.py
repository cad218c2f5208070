"""Embedding models by name: how one is asked for, and what is known of those that are often asked for.

Nothing here loads a model, so that the web process and the command line may ask too.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, fields
from pathlib import Path

import click

from lookalike.errors import EmbedderError

LITE0 = "efficientnet-lite0"
#: a Python package of the user's gives functions to embed with under this group of entry points
ENTRY_POINTS = "lookalike.embedders"
POOLINGS = ("pooled", "cls", "mean", "sum")
VECTOR_FILES = (".npz", ".parquet")


@dataclass(frozen=True, slots=True)
class Spec:
    """`NAME[@REVISION][#POOLING]`, taken apart."""

    name: str  # efficientnet-lite0, a Hugging Face id, a folder, an entry point, or a file of vectors
    revision: str = ""  # of a Hugging Face id: branch, tag or commit; empty: its main branch
    pooling: str = ""  # one of POOLINGS; empty: the model's own, see the cards


@dataclass(frozen=True, slots=True)
class Card:
    """What one wants to know of a model before one takes it. The weights are their authors', under their licence."""

    name: str
    takes: str  # pictures, sound, text; "pictures, text": embeds text into the same space too
    dim: int
    parameters_m: float  # millions, of the part that embeds what it takes first
    licence: str
    pooling: str  # how its output becomes one vector
    normalisation: str  # of what goes in: mean and standard deviation by channel
    preprocessing: str
    gated: bool = False  # its terms are to be accepted at the hub first


_IMAGENET = "mean .485 .456 .406, std .229 .224 .225"
_HALF = "mean .5, std .5"
_CLIP = "mean .481 .458 .408, std .269 .261 .276"
_SQUASHED = "224 × 224, bilinear"
_CROPPED = "shortest edge 256, bicubic, central 224 × 224"
_DINOV3 = "DINOv3 License"

CARDS = {
    card.name: card
    for card in (
        Card(LITE0, "pictures", 1280, 3.4, "Apache-2.0", "pooled", _HALF, "224 × 224, bicubic"),
        Card(
            "google/efficientnet-b0",
            *("pictures", 1280, 4.0, "Apache-2.0", "pooled"),
            "mean .485 .456 .406, std .479 .473 .474; then divided by std again, as it was trained",
            "224 × 224, nearest",
        ),
        Card("facebook/vit-mae-base", "pictures", 768, 85.8, "Apache-2.0", "sum", _IMAGENET, _SQUASHED),
        Card("facebook/dinov2-small", "pictures", 384, 22.1, "Apache-2.0", "pooled", _IMAGENET, _CROPPED),
        Card("facebook/dinov2-base", "pictures", 768, 86.6, "Apache-2.0", "pooled", _IMAGENET, _CROPPED),
        Card(
            "facebook/dinov3-vits16-pretrain-lvd1689m",
            *("pictures", 384, 21.6, _DINOV3, "pooled", _IMAGENET, _SQUASHED),
            gated=True,
        ),
        Card(
            "facebook/dinov3-vitb16-pretrain-lvd1689m",
            *("pictures", 768, 85.7, _DINOV3, "pooled", _IMAGENET, _SQUASHED),
            gated=True,
        ),
        Card("google/vit-base-patch16-224", "pictures", 768, 85.8, "Apache-2.0", "cls", _HALF, _SQUASHED),
        Card(
            "facebook/convnext-tiny-224",
            *("pictures", 768, 27.8, "Apache-2.0", "pooled", _IMAGENET),
            "shortest edge 256, bicubic, central 224 × 224",
        ),
        Card(
            "facebook/convnextv2-tiny-1k-224",
            *("pictures", 768, 27.9, "Apache-2.0", "pooled", _IMAGENET),
            "shortest edge 256, bicubic, central 224 × 224",
        ),
        Card(
            "openai/clip-vit-base-patch32",
            *("pictures, text", 512, 87.8, "MIT", "pooled", _CLIP),
            "shortest edge 224, bicubic, central 224 × 224",
        ),
        Card("google/siglip2-base-patch16-224", "pictures, text", 768, 92.9, "Apache-2.0", "pooled", _HALF, _SQUASHED),
        Card(
            "MIT/ast-finetuned-audioset-10-10-0.4593",
            *("sound", 768, 86.2, "BSD-3-Clause", "pooled", "mean -4.268, std 2 × 4.569"),
            "16 kHz, 128 mel bands, 10.24 s",
        ),
        Card(
            "laion/clap-htsat-unfused",
            *("sound, text", 512, 28.3, "Apache-2.0", "pooled", "none"),
            "48 kHz, 64 mel bands, 10 s",
        ),
        Card(
            "facebook/wav2vec2-base",
            *("sound", 768, 94.4, "Apache-2.0", "mean", "each clip to mean 0, variance 1"),
            "16 kHz",
        ),
        Card(
            "sentence-transformers/all-MiniLM-L6-v2",
            *("text", 384, 22.7, "Apache-2.0", "mean", "none"),
            "word pieces, lower case, 512 at most",
        ),
    )
}


def parse_spec(text: str) -> Spec:
    """How an embedder is asked for, taken apart. A folder or file of that very name is taken as it is written.

    Raises EmbedderError for a pooling that there is not, and for a revision of what has none.
    """
    if text and Path(text).expanduser().exists():
        return Spec(text)
    name, _, pooling = text.partition("#")
    if "#" in text and pooling not in POOLINGS:
        raise EmbedderError(f"embedder {text!r}: after # comes one of {', '.join(POOLINGS)}, got {pooling!r}")
    name, at, revision = name.partition("@")
    if not name:
        raise EmbedderError(f"embedder {text!r} names no model; choose one of 'lookalike models', or a folder")
    if at and (name == LITE0 or Path(name).expanduser().is_dir()):
        raise EmbedderError(f"embedder {text!r}: only models of the hub have revisions; leave @{revision} out")
    if at and not revision:
        raise EmbedderError(f"embedder {text!r}: after @ comes a revision, such as main or a commit")
    return Spec(name, revision, pooling)


def card(text: str) -> Card | None:
    """What is known of an embedder as it is asked for; its pooling is told as asked."""
    spec = parse_spec(text)
    return CARDS.get(spec.name)


def functions() -> dict[str, importlib.metadata.EntryPoint]:
    """The users' own functions that are installed, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def table() -> str:
    """The cards as a Markdown table, for docs/models.md."""
    titles = [f.name.removesuffix("_m") for f in fields(Card) if f.name != "gated"]
    lines = [f"| {' | '.join('model' if title == 'name' else title for title in titles)} |"]
    lines.append(f"|{'|'.join('--:' if title in ('dim', 'parameters') else '---' for title in titles)}|")
    for c in CARDS.values():
        licence = f"{c.licence}, gated" if c.gated else c.licence
        cells = (f"`{c.name}`", c.takes, f"{c.dim}", f"{c.parameters_m:g} M", licence, c.pooling)
        lines.append(f"| {' | '.join((*cells, c.normalisation, c.preprocessing))} |")
    return "\n".join(lines) + "\n"


@click.command()
def command() -> None:
    """List the embedding models that are known by name, and your own that are installed.

    Any other model of transformers goes by its Hugging Face id or folder too; see docs/models.md.
    """
    width = max(map(len, CARDS))
    for c in CARDS.values():
        licence = f"{c.licence}, gated" if c.gated else c.licence
        click.echo(f"{c.name:{width}}  {c.takes:14}  {c.dim:5}-d  {c.parameters_m:5.1f} M  {c.pooling:6}  {licence}")
    for name, point in sorted(functions().items()):
        click.echo(f"{name:{width}}  {'pictures':14}  yours: {point.value}")
