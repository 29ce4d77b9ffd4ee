"""Masked autoencoder, ViT-B/16, ImageNet-1K: He et al. 2021 (arXiv 2111.06377), table 8.

    python -m mae_jax.train --config=configs/vit_base.py --workdir=runs/vit_base
    python -m mae_jax.train --config=configs/vit_base.py:1600 ...     # the long schedule
    python -m mae_jax.train --config=configs/vit_base.py:debug ...    # seconds, generated data

The published ViT-B (1600 epochs) fine-tunes to 83.6 % and linearly probes to 67.8 %.
The data set is read without TensorFlow; prepare it once with
`tfds build imagenet2012 --file_format=array_record` (TFDS_DATA_DIR says where it lies).
"""


def get_config(arg: str = "") -> dict:
    return with_argument(recipe(), arg)


def recipe(**model) -> dict:
    """The recipe, with some of `model` replaced: the other sizes are this and nothing else."""
    return dict(
        task="pretrain",
        seed=0,  # of the parameters, the data order, the crops and the masks
        init=dict(
            checkpoint="",  # what to start from: whatever `mae_jax.load` reads; "" = from scratch
            without="",  # expression over names of parameters that only one side may have
        ),
        epochs=800,
        batch_size=4096,  # global, over all devices; the learning rate scales with it
        accumulation=1,  # micro-batches in a step: the same result in less memory
        model=dict(
            patch=(16, 16),
            width=768,
            depth=12,
            heads=12,
            decoder_width=512,
            decoder_depth=8,
            decoder_heads=16,
            decoder_cross=False,  # cross-attention to the visible patches alone, as CrossMAE
            norm_pix=True,  # predict normalised patches: better features, less pretty pictures
            target_stride=(),  # predict every so many values along each axis: (2, 1, 1); () = all
            learned_positions=False,  # start as the fixed ones
            separable_positions=False,  # learned ones for the first axis and for the others, added
            groups=(),  # of channels, a token for each: ((0, 1, 2), (3, 4)); () = all in one
            categories=0,  # the values are whole numbers below this: 256 for bytes; 0 = pixels
            dtype="auto",  # of the computation: bfloat16 on accelerators, float32 on CPUs
            attention="auto",  # plain, light, mapped (CPU), cudnn (NVIDIA), pallas (TPU): speed
            remat="none",  # keep products or inputs of a block and compute the rest again: memory
            scan=False,  # compile one block for all: half the time of compiling, for slower steps
        )
        | model,
        mask=dict(
            ratio=0.75,  # share of hidden patches
            name="random",  # block, grid, joint, importance; of clips tube, frame; of sounds
            # time, frequency
            side=2,  # of the boxes of patches that `joint` hides together
            decode=1.0,  # share of the hidden patches that is predicted; the rate scales with it
        ),
        optimizer=dict(
            base_learning_rate=1.5e-4,  # times batch_size / 256
            warmup_epochs=40,
            b1=0.9,
            b2=0.95,
            weight_decay=0.05,  # on matrices and tokens, not on norms and biases
            clip=0.0,  # of the gradient's global norm; 0 = none, as in the paper
            ema=0.0,  # decay of a moving average that is evaluated instead; 0 = none
            mu_dtype="float32",  # of the first moment; bfloat16 saves 2 bytes a parameter
            shard=False,  # the moments over all devices, as ZeRO-1: less memory, the same result
        ),
        data=dict(
            train=dict(source="tfds:imagenet2012", split="train"),
            test=dict(source="same", split="validation"),  # "same" source as train; "" = none
            examples=0,  # a fixed random choice of so many training examples; 0 = all
            modality="image",  # or video, audio, volume, text: see the configs of these
            repeats=1,  # crops of each decoded example that stand in a batch; it counts crops
            size=(224, 224),  # height, width; each a multiple of the patch
            channels=3,
            crop_scale=(0.2, 1.0),  # share of a picture's area that a training crop takes
            crop_ratio=(3 / 4, 4 / 3),  # its width / height, relative to that of `size`
            flip=True,  # left and right, half of the time
            center_crop=0.875,  # share of the side that is evaluated: 224 of 256
            mean=(0.485, 0.456, 0.406),  # per channel, of pixels in [0, 1]; or "auto"
            std=(0.229, 0.224, 0.225),
            threads=16,  # that decode and crop, on each host; 0 = the one that trains
            max_bad_fraction=0.01,  # of the examples may be unreadable: others take their places
        ),
        mesh=dict(  # of the devices
            data=-1,  # copies of the model, which share the batch; -1 = all that the others leave
            fsdp=1,  # they share the batch, the parameters and the moments
            tensor=1,  # they share the heads and the width of the MLP of the same samples
        ),
        evaluate=dict(
            every=6240,  # steps: 20 epochs; 0 = only at the end
            batch_size=1024,  # global
            examples=10_000,  # held-out examples for the loss, at most
            pictures=8,
        ),
        probe=dict(  # kNN and linear accuracy of the frozen features; source "" = none
            train=dict(source="same", split="train"),
            test=dict(source="same", split="validation"),
            examples=20_000,  # of each, at most
            linear=False,  # with 1,000 classes it takes minutes each time
        ),
        log_every=50,  # steps
        save_every=1560,  # steps: 5 epochs
        keep=3,  # checkpoints
        recovery=dict(
            skips=3,  # updates in a row that are left out, as their loss or gradient is not finite;
            # 0 = go back at the first one: the optimiser waits for no gradient, faster on TPUs
            rewinds=2,  # to the last checkpoint, past the batches since; after that the run ends
            spike=0.0,  # a loss so many times the usual one counts as not finite; 0 = none does
            failed_saves=3,  # in a row, that end the run
            canary=False,  # compute the first step twice, which must give the same bits; this needs
            # memory for the state three times
            stall=600.0,  # seconds without a step, after which it is said what each thread does
            heartbeat=100,  # seconds of silence after which other processes give one up
        ),
    )


def with_argument(config: dict, arg: str) -> dict:
    """What stands behind the colon of `--config=FILE:ARG`: a number of epochs, or `debug`."""
    if arg == "debug":
        return debug(config)
    if arg and not arg.isdigit():
        raise ValueError(f"config argument {arg!r} is unknown: use a number of epochs, or debug")
    return config | (dict(epochs=int(arg)) if arg else {})


def with_data(config: dict, modality: str, **data) -> dict:
    """The config for another kind of input, without the keys that are of pictures alone."""
    for name in ("crop_scale", "crop_ratio", "flip", "center_crop"):
        del config["data"][name]
    config["data"] |= dict(modality=modality) | data
    return config


GENERATED = dict(video="pans", audio="tones", volume="phantoms", text="stdlib")


def debug(config: dict) -> dict:
    """The same run in seconds on a CPU: a tiny network, 64 generated pictures, 8 steps."""
    config |= dict(epochs=1, batch_size=8, log_every=2, save_every=4, keep=2)
    tiny = dict(width=48, depth=2, heads=3, decoder_width=32, decoder_depth=1, decoder_heads=2)
    config["model"] |= {name: x for name, x in tiny.items() if name in config["model"]}
    config["optimizer"] |= dict(warmup_epochs=0.25)
    modality = config["data"]["modality"]
    source = GENERATED.get(modality, "synthetic")
    if modality == "volume" and len(config["data"]["size"]) == 2:
        source = "spectra"
    config["data"] |= dict(
        train=dict(source=source, split="train"),
        test=dict(source="same", split="test"),
        size=tuple(4 * side for side in config["model"]["patch"]),
        threads=2,
        examples=0 if modality == "image" else 64,
    )
    config["evaluate"] |= dict(every=4, batch_size=8, examples=32)
    if config["task"] == "pretrain":
        config["evaluate"] |= dict(pictures=2)
        config["probe"] |= dict(
            train=dict(source="same", split="train"),
            test=dict(source="same", split="test"),
            examples=32,
            linear=True,
        )
    return config
