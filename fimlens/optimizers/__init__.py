"""The named optimizers, one family a file, in the order of their complexity; `OPTIMIZERS` has each by its name.

To add an optimizer, write its family's file and export it here: the commands, pre-training and the comparisons find it.
"""

# ruff: noqa: I001  (the order of the exports is the order in which tables list the optimizers)

import inspect

from fimlens.optimizers.elementwise import sgd as sgd
from fimlens.optimizers.elementwise import adam as adam
from fimlens.optimizers.elementwise import adamw as adamw
from fimlens.optimizers.rank_one import adafactor as adafactor
from fimlens.optimizers.layerwise import lars as lars
from fimlens.optimizers.layerwise import lamb as lamb
from fimlens.optimizers.whitening import muon as muon
from fimlens.optimizers.whitening import swan as swan
from fimlens.optimizers.eigenbasis import shampoo as shampoo
from fimlens.optimizers.eigenbasis import osoap as osoap
from fimlens.optimizers.eigenbasis import soap as soap
from fimlens.optimizers.rank_one import racs as racs
from fimlens.optimizers.adadiag import adadiag as adadiag
from fimlens.optimizers.adadiag import adadiag_pp as adadiag_pp
from fimlens.optimizers.adadiag import adafacdiag as adafacdiag
from fimlens.optimizers.alice import alice as alice
from fimlens.optimizers.alice import alice0 as alice0
from fimlens.optimizers.galore import galore as galore
from fimlens.optimizers.galore import fira as fira
from fimlens.optimizers.galore import apollo as apollo
from fimlens.optimizers.low_rank_soap import low_rank_soap as low_rank_soap

# Of the functions here, the optimizers are those that take a learning rate.
OPTIMIZERS = {
    name: value
    for name, value in globals().items()
    if inspect.isfunction(value) and "learning_rate" in inspect.signature(value).parameters
}
