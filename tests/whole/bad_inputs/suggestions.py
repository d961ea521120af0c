"""What suggest cannot rank, and what it is asked wrongly."""

from __future__ import annotations

from typing import Any

from bad_inputs.rows import FOLD, PRE, RAW, SPLITS, SUGGEST, Spoil, both, edit, nothing, removed, row, text

KIND = "Suggestions"


def table(place: str, value: Any) -> Spoil:
    """Changes both tables."""
    return both(*(edit(f"{top}dataset.json", f"mutual/{place}", value) for top in (RAW, PRE)))


NO_IMAGES = both(removed(RAW + "imagesUn"), removed(PRE + "unlabelled"))
ONE_PATIENT = both(*(table(f"cases/case_0{n}/patient", "p") for n in range(6)))
EVERYTHING = both(*(table(f"sources/{source}/annotated", ["liver", "tumour", "spleen"]) for source in "ab"))

ROWS = [
    row("minutes of an unknown label", nothing, f"{SUGGEST} --minutes splen=3", "--minutes splen=3", "mean 'spleen'"),
    row("0 minutes", nothing, f"{SUGGEST} --minutes spleen=0", "--minutes spleen=0", "above 0"),
    row("minutes below 0", nothing, f"{SUGGEST} --minutes=-3", "--minutes -3", "above 0"),
    row("minutes that are no number", nothing, f"{SUGGEST} --minutes spleen=nan", "--minutes spleen=nan", "above 0"),
    row("endless minutes", nothing, f"{SUGGEST} --minutes inf", "--minutes inf", "above 0"),
    row("no suggestion", nothing, f"{SUGGEST} --max 0", "--max", "1"),
    row("suggestions into a review", nothing, SUGGEST.replace("-o new", "-o review"), "-o review", "not empty"),
    row("suggestions into a file", nothing, SUGGEST.replace("-o new", "-o cases.csv"), "cases.csv", "no folder"),
    row("suggestions of a trainer that was not trained", nothing, SUGGEST.replace("Partial", "MeanTeacher"), "train"),
    row(
        "suggestions of stock nnU-Net",
        nothing,
        SUGGEST.replace("PartialTrainer", "nnUNetTrainer"),
        "no trainer of this",
    ),
    row("suggestions of groups", nothing, SUGGEST.replace("Partial", "MutualCrossModal"), "modality group", "-tr"),
    row("suggestions of a fold that was not trained", nothing, f"{SUGGEST} -f 0 3", "fold 3", "there: 0"),
    row("suggestions of no checkpoint", nothing, f"{SUGGEST} -chk checkpoint_none.pth", "checkpoint_none.pth", "-chk"),
    row("suggestions of a damaged checkpoint", text(f"{FOLD}checkpoint_final.pth", "no"), SUGGEST, "checkpoint_final"),
    row("nothing undrawn", both(NO_IMAGES, EVERYTHING), SUGGEST, "nothing to draw", "imagesUn"),
    row(
        "everything in validation",
        both(
            NO_IMAGES, ONE_PATIENT, edit(SPLITS, "0/train", ["case_00", "case_01"]), edit(SPLITS, "0/val", ["case_02"])
        ),
        SUGGEST,
        "fold 0",
        "never suggested",
    ),
    row("images that are not preprocessed", removed(PRE + "unlabelled"), SUGGEST, "preprocess_unlabelled -d 901"),
    row(
        "an image that was withdrawn",
        removed(RAW + "imagesUn/un_0_0000.nii.gz"),
        SUGGEST,
        "no longer in",
        "put them back",
    ),
    row(
        "a training case that came after the training",
        both(
            table("cases/new", {"source": "a"}),
            *(text(f"{RAW}{place}", b"") for place in ("imagesTr/new_0000.nii.gz", "labelsTr/new.nii.gz")),
        ),
        SUGGEST,
        "new became training cases",
        "train 901",
    ),
]
