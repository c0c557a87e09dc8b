"""Weights, averages, gradients and the optimizer's state split over processes: FSDP2, by Lightning's strategy."""

from lightning.pytorch.strategies import ModelParallelStrategy


class Sharded(ModelParallelStrategy):
    """Every process keeps its part of the weights and sees all of them during a step.

    Checkpoints are whole: one file, which samples on one device and resumes on any number of processes.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def set_world_ranks(self) -> None:
        """Let all processes share the data."""
        super().set_world_ranks()
        self._data_parallel_size = self.world_size
