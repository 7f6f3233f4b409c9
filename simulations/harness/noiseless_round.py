"""A round of private training whose noise is zero.

It is for made-up images only, because its result is NOT PRIVATE.
"""

from client.training.trainer import Trainer
from common.arrays import Arrays
from common.data.client_dataset import Shard
from common.privacy.plan import PrivacyPlan
from simulations.harness.harness_streams import Repeated, WithoutNoise


def noiseless_round(trainer: Trainer, arrays: Arrays, shard: Shard, plan: PrivacyPlan | None) -> Arrays:
    """Train for a round with the same batches in each call.

    Noise would hide how the clipped sums of two devices differ.
    """
    streams = WithoutNoise(Repeated("sampling", []))
    return trainer.train(arrays, shard, name="client-0", server_round=1, plan=plan, streams=streams)
