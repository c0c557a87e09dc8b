"""``mmdiff shard``: many files in few archives."""

from omegaconf import DictConfig

from mmdiff.cli.app import run


def shard(config: DictConfig) -> None:
    """Pack the files of a folder of any modality."""
    from mmdiff.generation import make_folder
    from mmdiff.shards import pack

    files, shards = pack(config.data.root, make_folder(config.output), size=int(config.size * 2**20))
    print(f"packed {files} files into {shards} shards; train with data.root={config.output}")


if __name__ == "__main__":
    run("shard", shard)
