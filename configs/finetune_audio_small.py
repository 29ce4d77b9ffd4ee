"""Fine-tuning to the instruments of `tones`, from a work directory of audio_small.

    python -m mae_jax.train --config=configs/finetune_audio_small.py --workdir=runs/instruments \\
        --config.init.checkpoint=runs/audio_small
"""

from configs import audio_small, finetune_audio_vit_base, vit_base


def get_config(arg: str = "") -> dict:
    config, small = finetune_audio_vit_base.recipe(), audio_small.recipe()
    config |= dict(epochs=20, batch_size=32, log_every=20, save_every=250)
    config["model"] |= {name: small["model"][name] for name in ("patch", "width", "depth", "heads")}
    config["data"] = small["data"] | dict(magnitude=True)
    config["optimizer"] |= dict(base_learning_rate=4e-3, warmup_epochs=2)
    config["regularize"] |= dict(drop_path=0.0, mixup=0.0)
    config["evaluate"] |= dict(every=0, batch_size=50, examples=150)
    return vit_base.with_argument(config, arg)
