"""A model of timm's, without weights of others: the file that the command line takes is three lines long.

Needs pip install '.[examples]':
swcompile transform examples/timm_resnet.py --out out/ --p 0.3
"""

import timm
from torch import nn


def build_model() -> nn.Module:
    return timm.create_model("resnet18", pretrained=False, num_classes=10)
