"""The models of the paper's experiments, in Flax, and what they are trained and judged by."""

from models.losses import accuracy as accuracy
from models.losses import cross_entropy as cross_entropy
from models.losses import length_mask as length_mask
from models.lstm import SlotTagger as SlotTagger
from models.resnet import ResNet as ResNet
from models.slot_f1 import decode_tags as decode_tags
from models.slot_f1 import slot_f1 as slot_f1
