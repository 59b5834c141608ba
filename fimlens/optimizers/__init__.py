"""The named optimizers, one family for each file, in the order of their complexity; `OPTIMIZERS` has each by its name.

A bare name is the full optimizer, learning rate first, as in Optax; `scale_by_*` is its direction alone, without a rate or a
sign. Docstrings count the state in elements for an m x n matrix with r = min(m, n). They leave out counters, random keys and
the three numbers for each matrix that a limiter keeps. "[G]" is Gong et al. 2025 (arXiv 2502.07752), "[D]" Nguyen et al. 2025
(arXiv 2502.07488).

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
from fimlens.optimizers.muon_family import alice_muon as alice_muon
from fimlens.optimizers.muon_family import normuon as normuon
from fimlens.optimizers.whitening import swan as swan
from fimlens.optimizers.eigenbasis import shampoo as shampoo
from fimlens.optimizers.eigenbasis import osoap as osoap
from fimlens.optimizers.eigenbasis import soap as soap
from fimlens.optimizers.muon_family import soap_muon as soap_muon
from fimlens.optimizers.kl_shampoo import kl_shampoo as kl_shampoo
from fimlens.optimizers.kl_shampoo import kl_soap as kl_soap
from fimlens.optimizers.aro import aro as aro
from fimlens.optimizers.rank_one import racs as racs
from fimlens.optimizers.rank_one import sinkgd as sinkgd
from fimlens.optimizers.adadiag import adadiag as adadiag
from fimlens.optimizers.adadiag import adadiag_pp as adadiag_pp
from fimlens.optimizers.adadiag import adafacdiag as adafacdiag
from fimlens.optimizers.alice import alice as alice
from fimlens.optimizers.alice import alice0 as alice0
from fimlens.optimizers.galore import galore as galore
from fimlens.optimizers.galore import fira as fira
from fimlens.optimizers.galore import apollo as apollo
from fimlens.optimizers.complements import cosmos as cosmos
from fimlens.optimizers.complements import frugal as frugal
from fimlens.optimizers.low_rank_soap import low_rank_soap as low_rank_soap

from fimlens.optimizers.adadiag import scale_by_adadiag as scale_by_adadiag
from fimlens.optimizers.adadiag import scale_by_adadiag_pp as scale_by_adadiag_pp
from fimlens.optimizers.adadiag import scale_by_adafacdiag as scale_by_adafacdiag
from fimlens.optimizers.alice import scale_by_alice as scale_by_alice
from fimlens.optimizers.alice import scale_by_alice0 as scale_by_alice0
from fimlens.optimizers.aro import scale_by_aro as scale_by_aro
from fimlens.optimizers.eigenbasis import scale_by_osoap as scale_by_osoap
from fimlens.optimizers.eigenbasis import scale_by_shampoo as scale_by_shampoo
from fimlens.optimizers.eigenbasis import scale_by_soap as scale_by_soap
from fimlens.optimizers.complements import scale_by_cosmos as scale_by_cosmos
from fimlens.optimizers.complements import scale_by_frugal as scale_by_frugal
from fimlens.optimizers.galore import scale_by_apollo as scale_by_apollo
from fimlens.optimizers.galore import scale_by_fira as scale_by_fira
from fimlens.optimizers.galore import scale_by_galore as scale_by_galore
from fimlens.optimizers.low_rank_soap import scale_by_low_rank_soap as scale_by_low_rank_soap
from fimlens.optimizers.kl_shampoo import scale_by_kl_shampoo as scale_by_kl_shampoo
from fimlens.optimizers.kl_shampoo import scale_by_kl_soap as scale_by_kl_soap
from fimlens.optimizers.muon_family import scale_by_alice_muon as scale_by_alice_muon
from fimlens.optimizers.muon_family import scale_by_normuon as scale_by_normuon
from fimlens.optimizers.muon_family import scale_by_soap_muon as scale_by_soap_muon
from fimlens.optimizers.rank_one import scale_by_racs as scale_by_racs
from fimlens.optimizers.rank_one import scale_by_sinkgd as scale_by_sinkgd
from fimlens.optimizers.whitening import scale_by_muon as scale_by_muon
from fimlens.optimizers.whitening import scale_by_swan as scale_by_swan
from fimlens.optimizers.whitening import whiten as whiten

# Of the functions here, the optimizers are those that take a learning rate.
OPTIMIZERS = {
    name: value
    for name, value in globals().items()
    if inspect.isfunction(value) and "learning_rate" in inspect.signature(value).parameters
}
