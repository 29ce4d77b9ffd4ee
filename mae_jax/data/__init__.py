"""The host side: where examples come from, and how they become batches.

`sources` opens collections of examples, `modalities` turns an example into arrays (with `image_io`
for pictures), `pipeline` makes batches, and `augment` changes batches on the device. `prepare`
packs pictures into shards.
"""
