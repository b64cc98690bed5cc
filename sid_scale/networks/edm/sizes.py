"""The published teachers of EDM (arXiv 2206.00364, Table 7) and what runs of SiD make of them."""

from dataclasses import replace

from sid_scale.networks.edm.architecture import EDMArchitecture

DDPMPP = EDMArchitecture(
    model_type="SongUNet", img_resolution=32, img_channels=3, label_dim=0, augment_dim=9
)
# Name of a published teacher's data set and labels -> its architecture, without dropout.
VP = {
    "cifar10-32x32-uncond": DDPMPP,
    "cifar10-32x32-cond": replace(DDPMPP, label_dim=10),
    "ffhq-64x64-uncond": replace(DDPMPP, img_resolution=64, channel_mult=(1, 2, 2, 2)),
    "afhqv2-64x64-uncond": replace(DDPMPP, img_resolution=64, channel_mult=(1, 2, 2, 2)),
}


def ncsnpp(ddpmpp: EDMArchitecture) -> EDMArchitecture:
    """NCSN++ of the same size as a DDPM++: the published teachers called `-ve`."""
    return replace(
        ddpmpp,
        embedding_type="fourier",
        channel_mult_noise=2,
        encoder_type="residual",
        resample_filter=(1, 3, 3, 1),
    )


# Name of a published teacher (edm-NAME.pkl) -> its architecture, without dropout.
TEACHERS = {
    **{f"{name}-vp": architecture for name, architecture in VP.items()},
    **{f"{name}-ve": ncsnpp(architecture) for name, architecture in VP.items()},
    "imagenet-64x64-cond-adm": EDMArchitecture(
        model_type="DhariwalUNet",
        img_resolution=64,
        img_channels=3,
        label_dim=1000,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
    ),
}
