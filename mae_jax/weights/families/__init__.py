"""The code bases whose checkpoints can be read: a file for each, and the table of all of them."""

from collections.abc import Iterable

from mae_jax.weights.families import (
    audiomae,
    crossmae,
    huggingface,
    lightly,
    mae_st,
    reference,
    satmae,
    videomae,
)

# The first family with a mark in the file is that of the file.
FAMILIES = {
    "mae_st": mae_st.FAMILY,
    "crossmae": crossmae.FAMILY,
    "audiomae_swin": audiomae.FAMILY,
    "satmae_groups": satmae.FAMILY,
    "huggingface_videomae": huggingface.VIDEO,
    "videomae": videomae.FAMILY,
    "lightly": lightly.FAMILY,
    "huggingface": huggingface.FAMILY,
    "reference": reference.FAMILY,
}
MODEL_TYPES = {name for family in FAMILIES.values() for name in family.model_types}


def recognise(names: Iterable[str]) -> str:
    """Return a key of `FAMILIES` or, for names of this project, `mae_jax`.

    Raises:
      ValueError: the names belong to none of these.
    """
    names = list(names)
    for key, family in FAMILIES.items():
        if family.recognises(names):
            return key
    if any(name.startswith("encoder/") for name in names):
        return "mae_jax"
    raise ValueError(
        "the names are those of no masked autoencoder that is known here: "
        f"{', '.join(names[:3])} ..."
    )
