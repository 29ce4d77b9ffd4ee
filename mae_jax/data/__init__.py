"""The input pipeline on the host, from sources of examples to batches.

`sources` opens collections of examples, `modalities` turns an example into arrays (with `image_io`
for pictures), `pipeline` makes batches, and `augment` changes batches on the device. `prepare`
packs pictures into shards.
"""
