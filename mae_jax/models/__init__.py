"""The networks, as flax modules without state.

Read them in this order: `patches`, `masking`, `positions`, `tokenizers`, `layers`, `transformer`,
`vit` (the encoder), `targets`, `mae` (the decoder and the whole model) and `cross_decoder`. `build`
makes a network of the names in a config.

Two idioms of flax appear throughout. `nn.share_scope(self, part)` lets a part keep its parameters
under the names of the whole, such as `encoder/block_0` in place of `encoder/trunk/block_0`.
`nn.nowrap` marks a method that runs in the scope of `__call__`, which calls it.
"""
