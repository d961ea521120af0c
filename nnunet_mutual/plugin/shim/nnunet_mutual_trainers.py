"""Shows the classes of nnunet_mutual to nnU-Net's class finder; holds none itself.

nnU-Net imports this file by its path: from the folder that ``nnUNet_extTrainer`` names, or, after
``nnunet_mutual register``, as a copy inside the nnU-Net installation. A class that was defined here would be a second
copy of the installed one and could not be pickled, so names are looked up in the installed package. The end of the
module name says where: ``nnunet_mutual_trainers`` or ``nnunet_mutual_planners``.
"""


def __getattr__(name: str) -> object:
    try:
        from nnunet_mutual.plugin import resolve
    except ImportError:  # nnunet_mutual was uninstalled, or belongs to another Python: this file then shows nothing
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return resolve(__name__.rpartition("_")[2], name)
